"""tau2-bench's reward: a product over the criteria that a task names, each 0 or 1 [S2]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from agentgym.envs.judging import Judge
from agentgym.envs.user.users import Line


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made, by whichever side, after so many lines of the dialogue. ``arguments`` are JSON."""

    name: str
    arguments: str
    after: int


def acted(gold: Sequence[Mapping[str, Any]], calls: Sequence[Made]) -> bool:
    """ACTION: whether each gold action was called by somebody, with equal values of the arguments that are compared."""
    made = [(call.name, orjson.loads(call.arguments)) for call in calls]
    return all(any(_same(action, name, arguments) for name, arguments in made) for action in gold)


def communicated(wanted: Sequence[str], dialogue: Sequence[Line]) -> bool:
    """COMMUNICATE: whether each text occurs in something that the agent said, whatever its case and without its commas."""
    said = [line.text.lower().replace(",", "") for line in dialogue if line.speaker == "agent"]
    return all(any(text.lower() in words for words in said) for text in wanted)


def judged(assertions: Sequence[str], judge: Judge, dialogue: Sequence[Line], calls: Sequence[Made], seed: int) -> bool:
    """NL_ASSERTION: whether a judge finds all of them true."""
    return all(judge.checklist(assertions, _transcript(dialogue, calls), seed))


def _same(action: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> bool:
    compared = action["compare_args"]
    if name != action["name"] or compared is None:
        return bool(name == action["name"] and arguments == action["arguments"])
    return all(arguments.get(key) == action["arguments"].get(key) for key in compared)


def _transcript(dialogue: Sequence[Line], calls: Sequence[Made]) -> list[dict[str, str]]:
    """What both said and the agent's calls, each before what was said after it. What the user did with the phone is left out."""
    places = [(call.after, 0, "assistant", f"{call.name}({call.arguments})") for call in calls]
    roles = {"agent": "assistant", "user": "user"}
    places += [(place, 1, roles[line.speaker], line.text) for place, line in enumerate(dialogue) if line.speaker in roles]
    return [{"role": role, "content": text} for _, _, role, text in sorted(places, key=lambda one: one[:2])]
