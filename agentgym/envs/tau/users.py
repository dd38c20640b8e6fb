"""Users of tau-bench's tasks: a model that is told the task's instruction, and one that says what a recorded user said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as shared
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from agentgym.action import parse_action
from agentgym.envs.user.users import TRIES, CachedUser, Line, User, UserFailure, UserTurn, UserView, can_be_noted
from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes, Specs

STOP = "###STOP###"
GREETING = "Hi! How can I help you today?"


def role_by_instruction(view: UserView) -> str:
    return (
        f"You play a customer who talks to a support agent. This is who you are and what you want:\n\n{view.goal}\n\n"
        "Write one line each time, the customer's next words and nothing else. Stay in character, and put things in your own words rather "
        "than those above. Do not tell all at once: say what the moment needs. What is not said above you do not know: say that you do "
        f"not remember it, and make nothing up. Once you have what you want, write {STOP} alone, which ends the conversation."
    )


class InstructedUser:
    """A model that plays the user by the benchmark's rules, in our words [S2]. Published scores are with gpt-4o; another shifts them.

    ``role`` writes what it is told of itself. With ``specs``, tools in OpenAI's form, it may act before it speaks.
    Raises `UserFailure` where it says nothing three times in a row, or nothing that can be noted.
    """

    blocking = True

    def __init__(self, completion: Completes, role: Callable[[UserView], str] = role_by_instruction, specs: Specs = ()) -> None:
        self.completion, self.role, self.specs = completion, role, specs

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        messages = [{"role": "system", "content": self.role(view)}, *_messages(view)]
        for _ in range(TRIES):
            said = self.completion.complete(messages, self.specs, seed=rng.getrandbits(31))
            if said.calls and self.specs and all(map(can_be_noted, said.calls)):
                return UserTurn(actions=said.calls)
            if said.text.strip() and not said.calls:
                return UserTurn(said.text)
        raise UserFailure(f"the simulated user was asked {TRIES} times and said nothing: choose another model for it")


class ReplayingUser:
    """Says ``words`` in their order, whatever it hears. Raises `UserFailure` after the last."""

    blocking = False

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        said = sum(line.speaker == "user" for line in view.dialogue)
        if said >= len(self.words):
            raise UserFailure(f"the replaying user has {len(self.words)} replies, and one more was asked for: add it")
        return UserTurn(self.words[said])


def chosen(
    user: User | None,
    url: str | None,
    model: str | None,
    key: str | None,
    cache: str | Path | None,
    play: Callable[[Completes], User] = InstructedUser,
) -> User | None:
    """The user that the arguments of an environment ask for: ``play`` makes one of a model. Raises `AgentGymError` where they clash."""
    if (url is None) is not (model is None) or (user is not None and url is not None):
        raise AgentGymError("a model as the user takes url= and model= together, and then no user=")
    if url is not None and model is not None:
        user = _served(url, model, key, play)
    if cache is None:
        return user
    if user is None:
        raise AgentGymError("cache= remembers what a user says: give user=, or url= and model=, too")
    return CachedUser(user, cache, model or "")


@shared
def _served(url: str, model: str, key: str | None, play: Callable[[Completes], User]) -> User:
    """One for all environments of a process."""
    from agentgym.tools.completion import Completion

    return play(Completion(url, model, key))


def _messages(view: UserView) -> list[dict[str, Any]]:
    """The dialogue with the roles turned round: to the user's model, the agent is the one who asks."""
    return [_message(number, line) for number, line in enumerate(view.dialogue)]


def _message(number: int, line: Line) -> dict[str, Any]:
    """Each deed is followed by what came of it, so that the number of the one names the other's call."""
    match line.speaker:
        case "agent":
            return {"role": "user", "content": line.text}
        case "user":
            return {"role": "assistant", "content": line.text}
        case "deed":
            (call,) = parse_action(line.text).calls
            function = {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()}
            return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": f"deed_{number}", "function": function}]}
        case "device":
            return {"role": "tool", "tool_call_id": f"deed_{number - 1}", "content": line.text}
