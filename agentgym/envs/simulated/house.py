"""A stand-in for the model: a house whose things can be switched, written, played and judged by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import orjson

from agentgym.envs import judging
from agentgym.envs.simulated.simulator import STRICTER, TOOLS, USER, WRITER
from agentgym.tools.completion import Messages, Said, Specs

THINGS = ("lamp", "fan", "heater", "radio", "oven", "gate", "pump", "alarm", "fridge", "mixer", "tv", "printer")
SYSTEMS = {
    "detailed": "You help in a house. Switch things with the tools, ask the user with say, and call done at the end.",
    "brief": "You help in a house.",
    "none": "",
}
SAYS = {"expert": "I want {}.", "beginner": "Well, I want {}.", "novice": "I do not know how, but I want {}."}
_DEEDS = re.compile(r"^assistant: (.*)$", re.MULTILINE)
_CALL = re.compile(r"\b(?!say\(|done\()\w+\(\{[^{}]*\}\)")
_STATE = re.compile(r"^final state: (.*)$", re.MULTILINE)
_ITEM = re.compile(r"^Is this true of it\? (.*)$", re.MULTILINE)
_POSITION = re.compile(r"The (\w+) is (on|off)\.")


class House:
    """Answers in all four roles; another seed gives another task, and changes nothing else."""

    def complete(self, messages: Messages, tools: Specs = (), *, temperature: float = 1.0, seed: int | None = None) -> Said:
        said = _ROLES[messages[0]["content"]](messages[1]["content"], seed or 0)
        return Said(said if isinstance(said, str) else orjson.dumps(said).decode())


def _write(payload: str, seed: int) -> dict[str, Any]:
    knobs, rng = orjson.loads(payload)["knobs"], Random(seed)
    things = rng.sample(THINGS, knobs["tools"])
    state = {thing: rng.choice(["on", "off"]) for thing in things}
    wanted = {thing: "off" if state[thing] == "on" else "on" for thing in rng.sample(things, knobs["calls"])}
    request = {
        "clear": f"Please switch {_listed([f'the {thing} {position}' for thing, position in wanted.items()])}.",
        "partial": f"Please switch {_listed([f'the {thing}' for thing in wanted])}.",
        "vague": "Please set my house as I like it.",
    }
    return {
        "system": SYSTEMS[knobs["prompt"]],
        "tools": [_tool(thing) for thing in things],
        "request": request[knobs["ambiguity"]],
        "goal": _listed([f"the {thing} {position}" for thing, position in wanted.items()]),
        "state": state,
        "checklist": [f"The {thing} is {position}." for thing, position in {**wanted, **state, **wanted}.items()][:8],
        "plan": [{"name": thing, "arguments": {"position": position}} for thing, position in wanted.items()],
    }


def _tool(thing: str) -> dict[str, Any]:
    return {"name": thing, "description": f"Switch the {thing}.", "parameters": {"position": {"type": "string", "enum": ["on", "off"]}}}


def _switch(payload: str, seed: int) -> dict[str, Any]:
    given = orjson.loads(payload)
    thing, position = given["call"]["name"], given["call"]["arguments"]["position"]
    return {"result": f"The {thing} is {position}.", "state": {**given["state"], thing: position}}


def _speak(payload: str, seed: int) -> dict[str, Any]:
    given = orjson.loads(payload)
    return {"text": SAYS[given["persona"]].format(given["goal"])}


def _judge(question: str, seed: int) -> str:
    item = _ITEM.findall(question)[-1]
    calls: Sequence[str] = _CALL.findall(" ".join(_DEEDS.findall(question)))
    if (position := _POSITION.fullmatch(item)) is not None:
        state = orjson.loads(_STATE.findall(question)[-1])
        return "yes" if state.get(position[1]) == position[2] else "no"
    if item == STRICTER[0]:
        return "yes" if calls else "no"
    if item == STRICTER[2]:
        return "yes" if len(set(calls)) == len(calls) else "no"
    most = re.search(r"at most (\d+)", item)
    return "yes" if most is None or len(calls) <= int(most[1]) else "no"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


_ROLES: Mapping[str, Callable[[str, int], Any]] = {WRITER: _write, TOOLS: _switch, USER: _speak, judging.TASK: _judge}
