"""BFCL's files: tasks of one turn and of many, and what is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field, field_validator, model_validator

from agentgym.envs.bfcl.apis import APIS, DOCUMENTS
from agentgym.envs.bfcl.matching import TYPES
from agentgym.envs.bfcl.offers import described
from agentgym.envs.calls import read_written
from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task

MULTI_TURN = "multi_turn"
FOLDER = "give BFCL's folder, with a *.jsonl for each category and, for multi_turn_*, multi_turn_func_doc/ and backend_tables.json"
# What makes an answer of one turn right: the allowed calls, no call, or any call.
Grading = Literal["match", "none", "some"]


class Message(BaseModel):
    role: str
    content: str


class Row(BaseModel):
    """What all lines have. ``question``: of each turn of the user, its messages."""

    id: str = Field(min_length=1)
    question: list[list[Message]] = Field(min_length=1)

    @field_validator("question")
    @classmethod
    def _begins(cls, question: list[list[Message]]) -> list[list[Message]]:
        if not question[0]:
            raise ValueError("the first turn has no message")
        return question

    def task(self, split: str) -> Task:
        raise NotImplementedError

    def turns(self) -> list[list[dict[str, str]]]:
        return [[message.model_dump() for message in turn] for turn in self.question]

    def prompt(self) -> str:
        return "\n\n".join(message.content for message in self.question[0])


class Parameters(BaseModel):
    properties: dict[str, dict[str, Any]]
    required: list[str] = []


class Function(BaseModel):
    """``response``: what the function gives, described as a parameter is."""

    name: str = Field(min_length=1)
    description: str
    parameters: Parameters
    response: dict[str, Any] = {}

    def faults(self) -> list[str]:
        """The parameters whose type the metric does not know."""
        parts = self.parameters.properties.items()
        kinds = [(name, kind) for name, part in parts for kind in (part.get("type"), part.get("items", {}).get("type", "any"))]
        return [f"{name} has the type {kind!r}, not one of {', '.join(TYPES)}" for name, kind in kinds if kind not in TYPES]


class AnyRow(Row):
    """A task of one turn in which a call is right or wrong, whichever it is."""

    function: list[Function] = Field(min_length=1)

    def task(self, split: str) -> Task:
        grading: Grading = "none" if "irrelevance" in split else "some"
        return Task(self.id, self.prompt(), {"calls": []}, split, self.data(grading))

    def data(self, grading: Grading) -> dict[str, Any]:
        return {"grading": grading, "turns": self.turns(), "functions": [function.model_dump() for function in self.function]}


class MatchRow(AnyRow):
    """``ground_truth``: for each call that must be made, its allowed values by parameter."""

    ground_truth: list[dict[str, dict[str, list[Any]]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> MatchRow:
        functions = {function.name: function for function in self.function}
        for wanted in self.ground_truth:
            if len(wanted) != 1 or not wanted.keys() <= functions.keys():
                raise ValueError(f"ground_truth: {', '.join(wanted) or 'nothing'} is no one function of {', '.join(functions)}")
            if faults := functions[next(iter(wanted))].faults():
                raise ValueError(f"function: {faults[0]}")
        return self

    def task(self, split: str) -> Task:
        return Task(self.id, self.prompt(), {"calls": self.ground_truth}, split, self.data("match"))


class MultiRow(Row):
    """``ground_truth``: of each turn, the calls that are right, as Python. ``missed_function``: by the turn from which they are offered."""

    initial_config: dict[str, dict[str, Any]]
    involved_classes: list[str]
    excluded_function: list[str] = []
    missed_function: dict[int, list[str]] = {}
    ground_truth: list[list[str]]

    @model_validator(mode="after")
    def _fits(self) -> MultiRow:
        if unknown := set(self.involved_classes) - APIS.keys():
            raise ValueError(f"there are no classes {', '.join(sorted(unknown))}; those known are {', '.join(APIS)}")
        if len(self.ground_truth) != len(self.question):
            raise ValueError(f"ground_truth has {len(self.ground_truth)} turns, but question {len(self.question)}")
        for call in (call for turn in self.ground_truth for call in turn):
            read_written(call)
        return self

    def task(self, split: str) -> Task:
        data = {
            "turns": self.turns(),
            "classes": self.involved_classes,
            "config": self.initial_config,
            "excluded": self.excluded_function,
            "missed": {str(turn): names for turn, names in self.missed_function.items()},
        }
        return Task(self.id, self.prompt(), {"calls": self.ground_truth}, split, data)


@dataclass(frozen=True, eq=False, slots=True)
class Benchmark:
    """One folder. ``functions``: of the backends, by class, described as tools. ``tables``: their defaults and what never changes."""

    folder: Path
    splits: tuple[str, ...]
    tables: Mapping[str, Any]
    functions: Mapping[str, Sequence[Mapping[str, Any]]]


@cache
def load(folder: Path) -> Benchmark:
    """Read once in a process. Raises `AgentGymError` that names what is missing."""
    splits = tuple(sorted(path.stem for path in folder.glob("*.jsonl")))
    if not splits:
        raise AgentGymError(f"{folder} holds no *.jsonl: {FOLDER}")
    if not any(split.startswith(MULTI_TURN) for split in splits):
        return Benchmark(folder, splits, {}, {})
    documents = folder / "multi_turn_func_doc"
    functions = {
        api.__name__: [described(function.model_dump()) for _, function in read(documents / f"{name}.jsonl", Function)]
        for api, name in DOCUMENTS.items()
    }
    return Benchmark(folder, splits, _tables(folder / "backend_tables.json"), functions)


@cache
def tasks(folder: Path, split: str) -> tuple[Task, ...]:
    """The tasks of one file. Raises `AgentGymError` that names a bad line, its field and the reason."""
    model: type[Row] = MultiRow if split.startswith(MULTI_TURN) else AnyRow if "relevance" in split else MatchRow
    return tuple(row.task(split) for _, row in read(folder / f"{split}.jsonl", model))


def _tables(path: Path) -> Mapping[str, Any]:
    try:
        tables: Mapping[str, Any] = orjson.loads(path.read_bytes())
    except OSError as error:
        raise AgentGymError(f"{path} cannot be read ({error.strerror or error}): {FOLDER}") from error
    except ValueError as error:
        raise AgentGymError(f"{path} is not JSON ({error})") from error
    return tables
