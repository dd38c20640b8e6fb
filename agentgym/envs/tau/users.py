"""Users of tau-bench's tasks: a model that is told the task's instruction, and one that says what a recorded user said."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as shared
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from agentgym.envs.user.users import TRIES, CachedUser, User, UserFailure, UserTurn, UserView
from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

STOP = "###STOP###"
GREETING = "Hi! How can I help you today?"


class InstructedUser:
    """A model that plays the user by the benchmark's rules, in our words [S2]. Published scores are with gpt-4o; another shifts them.

    Raises `UserFailure` where it says nothing three times in a row.
    """

    blocking = True

    def __init__(self, completion: Completes) -> None:
        self.completion = completion

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        messages = [{"role": "system", "content": _role(view.goal)}, *_messages(view)]
        for _ in range(TRIES):
            said = self.completion.complete(messages, seed=rng.getrandbits(31))
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


def chosen(user: User | None, url: str | None, model: str | None, key: str | None, cache: str | Path | None) -> User | None:
    """The user that the arguments of an environment ask for. Raises `AgentGymError` where they contradict each other."""
    if (url is None) is not (model is None) or (user is not None and url is not None):
        raise AgentGymError("a model as the user takes url= and model= together, and then no user=")
    if url is not None and model is not None:
        user = _served(url, model, key)
    if cache is None:
        return user
    if user is None:
        raise AgentGymError("cache= remembers what a user says: give user=, or url= and model=, too")
    return CachedUser(user, cache, model or "")


@shared
def _served(url: str, model: str, key: str | None) -> InstructedUser:
    """One for all environments of a process."""
    from agentgym.tools.completion import Completion

    return InstructedUser(Completion(url, model, key))


def _role(instruction: str) -> str:
    return (
        f"You play a customer who talks to a support agent. This is who you are and what you want:\n\n{instruction}\n\n"
        "Write one line each time, the customer's next words and nothing else. Stay in character, and put things in your own words rather "
        "than those above. Do not tell all at once: say what the moment needs. What is not said above you do not know: say that you do "
        f"not remember it, and make nothing up. Once you have what you want, write {STOP} alone, which ends the conversation."
    )


def _messages(view: UserView) -> list[dict[str, Any]]:
    """The dialogue with the roles turned round: to the user's model, the agent is the one who asks."""
    roles = {"agent": "user", "user": "assistant"}
    return [{"role": roles[line.speaker], "content": line.text} for line in view.dialogue]
