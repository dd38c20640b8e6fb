"""A scripted expert that knows of a household what it has read, and can be made to err, for demonstrations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from agentgym.action import call, parse_action
from agentgym.envs.household.homes import APPLIANCES, LIGHT, PREPARED, TWO
from agentgym.envs.household.texts import NOTHING_HAPPENS
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.turn import path

_NAME = r"(\w+(?: \d+)?)"
_THING = re.compile(rf"\ba {_NAME}")
_CLOSED = re.compile(rf"The {_NAME} is closed\.")
_SEEN = re.compile(rf"(?:On the {_NAME}|The {_NAME} is open\. In it), you see (.*)\.")
_TAKE = re.compile(r"take (.+) from (.+)")
_PUT = re.compile(r"put (.+) in/on (.+)")
_PREPARE = re.compile(r"(clean|heat|cool) (.+) with .+")


@dataclass(slots=True)
class Memory:
    """What the texts of an episode have told so far."""

    receptacles: list[str]
    here: str = ""
    holding: str = ""
    contents: dict[str, list[str]] = field(default_factory=dict)  # of the receptacles that were seen open
    closed: set[str] = field(default_factory=set)
    prepared: set[tuple[str, str]] = field(default_factory=set)  # verbs and things

    @classmethod
    def of(cls, opening: str) -> Memory:
        """From an episode's first text, which names all receptacles."""
        return cls(_THING.findall(opening.split("\n")[0].partition("you see")[2]))

    def read(self, command: str, answer: str) -> None:
        if answer == NOTHING_HAPPENS or answer.startswith("Error: "):
            return
        if command.startswith("go to "):
            self.here = command.removeprefix("go to ")
        if command.startswith("close "):
            self.closed.add(self.here)
        if (closed := _CLOSED.search(answer)) is not None:
            self.closed.add(closed[1])
        if (seen := _SEEN.search(answer)) is not None:
            place = seen[1] or seen[2]
            self.closed.discard(place)
            self.contents[place] = _THING.findall(seen[3])
        if (taken := _TAKE.fullmatch(command)) is not None:
            self.holding = taken[1]
            self.contents[taken[2]].remove(taken[1])
        if (put := _PUT.fullmatch(command)) is not None:
            self.holding = ""
            self.contents.setdefault(put[2], []).append(put[1])
        if (prepared := _PREPARE.fullmatch(command)) is not None:
            self.prepared.add((prepared[1], prepared[2]))

    def place_of(self, kind: str) -> str:
        """Where a thing of this kind was seen last; empty if nowhere."""
        return next((place for place, things in self.contents.items() if any(_is(thing, kind) for thing in things)), "")


@dataclass(frozen=True, slots=True)
class Step:
    """What the expert is about, in a few words, and its command."""

    purpose: str
    command: str


def next_step(task: Mapping[str, Any], memory: Memory) -> Step:
    """A good next command in any state. ``task`` has ``type``, ``object`` and ``target``."""
    type, thing, target = task["type"], task["object"], task["target"]
    verb = PREPARED.get(type)
    if memory.holding and not _is(memory.holding, thing):
        return _put_down(memory)
    if memory.holding and type == LIGHT:
        return _use(memory, target)
    if memory.holding and verb and (verb, memory.holding) not in memory.prepared:
        return _prepare(memory, verb, thing)
    goal = _goal_place(memory, thing, target)
    if memory.holding:
        return _at(memory, goal, f"put {thing} in {target}", f"put {memory.holding} in/on {goal}")
    for place, things in memory.contents.items():
        for found in things:
            done = (place == goal if type == TWO else _is(place, target)) and (verb is None or (verb, found) in memory.prepared)
            if _is(found, thing) and (type == LIGHT or not done):
                return _at(memory, place, f"take {thing}", f"take {found} from {place}")
    return _explore(memory, f"find {thing}")


def mistake(memory: Memory, rng: Random) -> str:
    """A possible command that leads nowhere: to walk off, or to put down what is held."""
    ways = [f"go to {rng.choice(memory.receptacles)}"]
    if memory.here in memory.contents and memory.here not in memory.closed:
        ways += [f"put {memory.holding} in/on {memory.here}"] if memory.holding else []
    return rng.choice(ways)


@dataclass(frozen=True, slots=True)
class Expert:
    """Looks for the thing in one receptacle after the other, prepares it and puts it where it belongs.

    It reads the episode's texts alone, so it goes on from any state, whoever led there. With probability ``mistakes`` at
    each turn it does something useless instead.
    """

    seed: int = 0
    mistakes: float = 0.0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt, Lineage.of(self.seed, "expert", sampling.seed).rng()))

    def act(self, prompt: Prompt, rng: Random) -> str:
        task = prompt.tree.task
        memory = Memory.of(task.prompt)
        for turn in path(prompt.turn)[1:]:
            for command, reply in zip(_commands(turn.action), turn.replies, strict=False):
                memory.read(command, str(reply["content"]))
        step = next_step(task.data, memory)
        return action_of(Step(step.purpose, mistake(memory, rng)) if rng.random() < self.mistakes else step)


@lru_cache(4096)
def _commands(action: str) -> list[str]:
    return [str(one.arguments.get("command", "")) for one in parse_action(action).calls]


def action_of(step: Step) -> str:
    return call("do", command=step.command, thought=step.purpose)


def _is(name: str, kind: str) -> bool:
    return name.split(" ")[0].lower() == kind.lower()


def _goal_place(memory: Memory, thing: str, target: str) -> str:
    """The receptacle of the wanted kind that holds the most of the thing already."""
    places = [place for place in memory.receptacles if _is(place, target)]
    return max(places, key=lambda place: sum(_is(one, thing) for one in memory.contents.get(place, ())), default="")


def _at(memory: Memory, place: str, purpose: str, command: str) -> Step:
    """``command`` once the expert stands at ``place`` and it is open."""
    if memory.here != place:
        return Step(purpose, f"go to {place}")
    return Step(purpose, f"open {place}" if place in memory.closed else command)


def _prepare(memory: Memory, verb: str, thing: str) -> Step:
    place = next((place for place in memory.receptacles if _is(place, APPLIANCES[verb])), "")
    command = f"{verb} {memory.holding} with {place}" if memory.here == place else f"go to {place}"
    return Step(f"{verb} {thing}", command)


def _use(memory: Memory, lamp: str) -> Step:
    place = memory.place_of(lamp)
    if not place:
        return _explore(memory, f"find {lamp}")
    found = next(thing for thing in memory.contents[place] if _is(thing, lamp))
    return _at(memory, place, f"use {lamp}", f"use {found}")


def _explore(memory: Memory, purpose: str) -> Step:
    """The next receptacle, in the order in which they were named, whose inside was not seen."""
    if memory.here in memory.closed and memory.here not in memory.contents:
        return Step(purpose, f"open {memory.here}")
    start = memory.receptacles.index(memory.here) + 1 if memory.here else 0
    onwards = [*memory.receptacles[start:], *memory.receptacles[:start]]
    return Step(purpose, f"go to {next((place for place in onwards if place not in memory.contents), onwards[0])}")


def _put_down(memory: Memory) -> Step:
    free = [place for place in memory.receptacles if place in memory.contents and place not in memory.closed]
    place = memory.here if memory.here in free or not free else free[0]
    return _at(memory, place, "put down", f"put {memory.holding} in/on {place}")
