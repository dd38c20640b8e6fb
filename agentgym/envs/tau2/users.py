"""Users of tau2-bench's tasks: a model that is told its scenario, and one that has a phone to use as well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

from agentgym.action import Call
from agentgym.envs.tau.users import STOP, InstructedUser
from agentgym.envs.user.users import Line, UserTurn, UserView

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

TRANSFERRED, OUT_OF_SCOPE = "###TRANSFER###", "###OUT-OF-SCOPE###"
MOST_DEEDS = 30  # of the user, before it says something
ENOUGH = "I can only do one thing at a time. Which one first?"  # said in place of a user that does not cease to do things
STOPS = (STOP, TRANSFERRED, OUT_OF_SCOPE)
_GOODBYE = re.compile(r"\b(?:goodbye|bye|resolved|solved|fixed|all set)\b", re.IGNORECASE)
_ARGUMENT = re.compile(r"\b(\w+)\s*[=:]\s*[\"'`]?([\w.-]+)[\"'`]?")
_VALUE = re.compile(r"^\s*[\"'`]?([\w.-]+)[\"'`]?\s*$")


def role(view: UserView) -> str:
    """The benchmark's guidelines for a user, in our words [S2]."""
    return "\n\n".join(part for part in (_ROLE, _SCENARIO.format(view.goal), view.persona and _PERSONA.format(view.persona)) if part)


def role_with_phone(view: UserView) -> str:
    return f"{role(view)}\n\n{_PHONE}"


class ObedientUser:
    """Rules in place of a model, for tests and for a policy that learns: it does what the agent names, and tells what came of it.

    ``specs``: the phone's tools. It reads their names, with or without arguments as of a call, in what the agent says, does them in that
    order, one after another, as many as it may before it speaks, and repeats what it was shown. A word such as "resolved" or "goodbye"
    ends the conversation, and so does a transfer to a human agent.
    """

    blocking = False

    def __init__(self, specs: Sequence[Mapping[str, Any]]) -> None:
        self._parameters = {spec["function"]["name"]: list(spec["function"]["parameters"]["properties"]) for spec in specs}
        self._name = re.compile(rf"\b({'|'.join(self._parameters)})\b(?:\(([^()]*)\))?")

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        last = max(place for place, line in enumerate(view.dialogue) if line.speaker == "agent")
        if last == 0:
            return UserTurn(" ".join(view.knowledge[name] for name in ("reason_for_call", "known_info") if name in view.knowledge))
        asked, shown = view.dialogue[last].text, view.dialogue[last + 2 :: 2]
        wanted = [self._call(found) for found in islice(self._name.finditer(asked), MOST_DEEDS - 1)]
        if len(shown) < len(wanted):
            return UserTurn(actions=(wanted[len(shown)],))
        return UserTurn(self._answer(asked, wanted, shown))

    def _call(self, found: re.Match[str]) -> Call:
        name, inside = found[1], found[2] or ""
        if (alone := _VALUE.match(inside)) is not None and self._parameters[name]:
            return Call(name, {self._parameters[name][0]: alone[1]})
        return Call(name, dict(_ARGUMENT.findall(inside)))

    def _answer(self, asked: str, done: Sequence[Call], shown: Sequence[Line]) -> str:
        if "BEING TRANSFERRED" in asked.upper():
            return TRANSFERRED
        if done:
            return "\n".join(f"{call.name}: {line.text}" for call, line in zip(done, shown, strict=True))
        return STOP if _GOODBYE.search(asked) else "What shall I do with my phone?"


def instructed(completion: Completes) -> InstructedUser:
    return InstructedUser(completion, role)


_ROLE = (
    "You play a customer who writes to a support agent. Write the customer's next message and nothing else. Keep to the scenario below: "
    "what it does not say, you do not know, and you never make it up. Put it in your own words, and tell it bit by bit, when asked. "
    f"When you have what the scenario wants, write {STOP}; when the agent hands you over to somebody else, write {TRANSFERRED}; when the "
    f"scenario does not say enough to go on, write {OUT_OF_SCOPE}. Each of these ends the conversation."
)
_SCENARIO = "The scenario:\n{}"
_PERSONA = "Who you are:\n{}"
_PHONE = (
    "You hold the phone, and use it with the tools: only when the agent asks for it, or to find out what it asks. Each time you either "
    "write a message or make one call, never both; the agent sees your messages alone. Say of the phone what a tool has shown you. "
    "Where a call is answered with an error, mend it and try again. Asked for several things at once, say that you can do one at a time. "
    "Where it is not clear what to do, ask."
)
