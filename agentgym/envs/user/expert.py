"""A scripted expert that knows of a phone what it has read, and can be made to err, for demonstrations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from agentgym.action import Call, format_action, parse_action
from agentgym.envs.user.phone import CONNECTED, PLANS, STATUSES
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.turn import path

LOOK, ASK_NAME, ASK_PLAN = "What do you see?", "What is your name?", "Which plan?"
TELL = {"airplane mode": "Turn airplane mode off.", "no SIM": "Put the SIM in again.", "data is off": "Turn mobile data on."}
RESTART = "Restart the phone."
FATAL = 0.5  # of the mistakes: what cannot be made good again
_NAME = re.compile(r"(?:\bI am |\bname is |^)([A-Z][a-z]+)\.")
_ACCOUNT = re.compile(r"plan (\w+), (\d+) GB, (blocked|open)")


@dataclass(slots=True)
class Memory:
    """What the texts of an episode have told so far. Empty: not known, or not any more."""

    name: str = ""
    wants: str = ""
    status: str = ""
    plan: str = ""
    gb: int = 0
    blocked: bool = False

    @classmethod
    def of(cls, opening: str) -> Memory:
        found = _NAME.search(opening) if opening.startswith("I am ") else None
        return cls(found[1] if found else "")

    def read(self, call: Call, answer: str) -> None:
        if answer.startswith("Error: "):
            return
        if call.name != "say":
            self._read_account(answer)
            self.status = self.status if call.name == "account" else ""
            return
        text = call.arguments.get("text")
        if text == ASK_NAME and (found := _NAME.search(answer)) is not None:
            self.name = found[1]
        if text == ASK_PLAN:
            self.wants = next((plan for plan in PLANS if plan in answer), "")
        self.status = next((status for status in STATUSES if status in answer), self.status)

    def _read_account(self, answer: str) -> None:
        if (found := _ACCOUNT.search(answer)) is not None:
            self.plan, self.gb, self.blocked = found[1], int(found[2]), found[3] == "blocked"


@dataclass(frozen=True, slots=True)
class Step:
    """What the expert is about, in a word or two, and its call."""

    purpose: str
    call: Call


def next_step(memory: Memory) -> Step:
    """A good next action in any state."""
    if not memory.status:
        return _say("look", LOOK)
    if memory.status == CONNECTED:
        return Step("connected", Call("done", {}))
    if memory.status in TELL:
        return _say(memory.status, TELL[memory.status])
    if not memory.name:
        return _say("name", ASK_NAME)
    if not memory.plan:
        return Step("account", Call("account", {"name": memory.name}))
    if memory.status == "no service":
        return Step("blocked", Call("unblock", {"name": memory.name})) if memory.blocked else _say("stuck", RESTART)
    if memory.plan != "Talk":
        return Step("no data", Call("add_data", {"name": memory.name}))
    if not memory.wants:
        return _say("plan", ASK_PLAN)
    return Step("plan", Call("set_plan", {"name": memory.name, "plan": memory.wants}))


def mistake(memory: Memory, rng: Random) -> Step:
    """To give up or to sell what nobody wanted; else to ask or tell for nothing."""
    if rng.random() < FATAL:
        sells = memory.name and memory.plan not in ("", "Talk") and memory.gb > 0 and rng.random() < 0.5
        return Step("no data", Call("add_data", {"name": memory.name})) if sells else Step("connected", Call("done", {}))
    return rng.choice([_say("look", LOOK), _say("name", ASK_NAME), _say("stuck", RESTART), _say("no SIM", TELL["no SIM"])])


@dataclass(frozen=True, slots=True)
class Expert:
    """Asks what the phone shows, has the user mend what the user can, and mends the account itself.

    It reads the conversation alone, so it goes on from any state, whoever led there. With probability ``mistakes`` at each
    turn it does something wrong instead.
    """

    seed: int = 0
    mistakes: float = 0.0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt, Lineage.of(self.seed, "expert", sampling.seed).rng()))

    def act(self, prompt: Prompt, rng: Random) -> str:
        memory = Memory.of(prompt.tree.task.prompt)
        for turn in path(prompt.turn)[1:]:
            for call, reply in zip(said_or_done(turn.action), turn.replies, strict=False):
                memory.read(call, str(reply["content"]))
        return action_of(mistake(memory, rng) if rng.random() < self.mistakes else next_step(memory))


def said_or_done(text: str) -> list[Call]:
    """The calls of an action; one without calls, in plain words, says these."""
    action = parse_action(text)
    return list(action.calls) or [Call("say", {"text": action.content})]


def action_of(step: Step) -> str:
    return format_action(step.call, thought=step.purpose)


def _say(purpose: str, text: str) -> Step:
    return Step(purpose, Call("say", {"text": text}))
