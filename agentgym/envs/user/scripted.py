"""A user by rules of words: what it is told to do, what it is asked, and in which manner it answers."""

from __future__ import annotations

import re
from random import Random

from agentgym.action import Call
from agentgym.envs.user.users import UserTurn, UserView

COMPLAINT = "My phone has no connection."
TERSE, WORDY, FORGETFUL = PERSONAS = ("terse", "wordy", "forgetful")
PUZZLED, ONCE_MORE = "What do you mean?", "Sorry, what?"
SHOWS = {TERSE: "{}.", WORDY: "It says {} here.", FORGETFUL: "I see {}."}
DONE = {TERSE: "Done: {}.", WORDY: "I did that. It says {} now.", FORGETFUL: "Done. I see {}."}
ANSWERS = {
    "name": {TERSE: "{}.", WORDY: "My name is {}.", FORGETFUL: "I am {}."},
    "plan": {TERSE: "{}.", WORDY: "I want the plan {}.", FORGETFUL: "{}, please."},
}
_REQUEST = re.compile(
    r"\b(?:(?P<airplane_mode>airplane|flight)|(?P<mobile_data>data)|(?P<reseat_sim>sim)|(?P<restart>restart|reboot)"
    r"|(?P<look>see|shows?|screen|status)|(?P<name>name)|(?P<plan>plan))\b",
    re.IGNORECASE,
)
_OFF = re.compile(r"\boff\b", re.IGNORECASE)
_ON = re.compile(r"\bon\b", re.IGNORECASE)


def opening(persona: str, name: str) -> str:
    """The first words: who is terse does not say the name unasked."""
    return COMPLAINT if persona == TERSE else f"I am {name}. {COMPLAINT}"


class ScriptedUser:
    """Understands one request at a time: the first that it finds. Who is forgetful must be told a first time in vain."""

    blocking = False

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        last = view.dialogue[-1]
        if last.speaker == "device":
            return UserTurn(DONE[view.persona].format(view.status))
        request = _first_request(last.text)
        if request in ANSWERS:
            return UserTurn(ANSWERS[request][view.persona].format(view.knowledge[request]))
        if request == "look":
            return UserTurn(SHOWS[view.persona].format(view.status))
        call = _call(request, last.text)
        if call is None:
            return UserTurn(PUZZLED)
        told = sum(_call(_first_request(line.text), line.text) is not None for line in view.dialogue if line.speaker == "agent")
        return UserTurn(ONCE_MORE) if view.persona == FORGETFUL and told == 1 else UserTurn(actions=(call,))


def requests(text: str) -> list[str]:
    """What a text asks for or tells to do, in its order."""
    return [str(found.lastgroup) for found in _REQUEST.finditer(text)]


def _first_request(text: str) -> str:
    return next(iter(requests(text)), "")


def _call(request: str, text: str) -> Call | None:
    """What a request asks to do with the device; None where it says nothing, or not whether on or off."""
    if request in ("reseat_sim", "restart"):
        return Call(request, {})
    on, off = _ON.search(text) is not None, _OFF.search(text) is not None
    return Call(request, {"on": on}) if request in ("airplane_mode", "mobile_data") and on != off else None
