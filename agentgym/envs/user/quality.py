"""What a simulated user did wrong, read off the finished dialogue, and who is to blame for a failure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agentgym.envs.user.phone import DEVICE_TOOLS, STATUSES
from agentgym.envs.user.scripted import requests
from agentgym.envs.user.users import Line

Blamed = Literal["agent", "user"]
_QUESTION = re.compile(r"\?|\b(?:tell|give|what|which|who)\b", re.IGNORECASE)
_GOODBYE = re.compile(r"\b(?:good)?bye\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<![.!?:] )(?<!^)\b[A-Z][a-z]+\b")  # a word at the beginning of a sentence may be any
_DEVICE_WORDS = " ".join((*STATUSES, *(f"{tool.name} {tool.description}" for tool in DEVICE_TOOLS.values())))


@dataclass(frozen=True, slots=True)
class Faults:
    """Facts that it was asked for and did not give; whether it left with its goal unmet; numbers and names from nowhere."""

    withheld: tuple[str, ...] = ()
    stopped_early: bool = False
    invented: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.withheld or self.stopped_early or self.invented)


def says_goodbye(text: str) -> bool:
    return _GOODBYE.search(text) is not None


def faults(goal: str, knowledge: Mapping[str, str], dialogue: Sequence[Line], met: bool) -> Faults:
    """The user's faults. ``met``: whether its goal is.

    They are rules on words [R]: a fact counts as asked for where a question of the agent has its name and asks for nothing else, or two
    questions have it, since a user may answer one request at a time; and as given where the user ever says its value. A number or a
    name counts as invented where nothing that the user knew by then has it.
    """
    said = [line.text for line in dialogue if line.speaker == "user"]
    questions = [line.text for line in dialogue if line.speaker == "agent" and _QUESTION.search(line.text)]
    withheld = [
        name for name, value in knowledge.items() if _asked_for(name, questions) and not any(_has(text, value) for text in said)
    ]
    left = bool(said) and says_goodbye(said[-1]) and not met
    return Faults(tuple(withheld), left, tuple(_invented(f"{goal} {' '.join(knowledge.values())} {_DEVICE_WORDS}", dialogue)))


def _asked_for(name: str, questions: Sequence[str]) -> bool:
    naming = [question for question in questions if _has(question, name)]
    return len(naming) > 1 or any(set(requests(question)) <= {name} for question in naming)


def _invented(known: str, dialogue: Sequence[Line]) -> dict[str, None]:
    found: dict[str, None] = {}
    for line in dialogue:
        if line.speaker == "user":
            words = [*_NUMBER.findall(line.text), *_NAME.findall(line.text)]
            found |= {word: None for word in words if not _has(known, word)}
        known += f" {line.text}"
    return found


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def blame(success: bool, faults: Faults) -> Blamed | None:
    """Who is to blame for a failure: a user with a fault before the agent. None for a success.

    What has no verdict is told apart by its exception: see `agentgym.evaluation.blamed`.
    """
    if success:
        return None
    return "user" if faults else "agent"
