"""API-Bank's dialogues as tasks, and the tables of its APIs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field, field_validator, model_validator

from agentgym.envs.apibank.checks import ELSEWHERE, METHODS, READ_ONLY, SEARCHER
from agentgym.envs.apibank.examples import EXAMPLES, TABLES
from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task

FOLDER = "give API-Bank's folder, with level-*.jsonl and init_database/*.json"
CHANGED = ("Account", "Agenda", "Alarm", "Appointments", "HealthData", "Hotel", "Meeting", "Reminder", "Scenes", "TimeSwitch")


def is_known(name: Any) -> bool:
    return name in METHODS or name in ELSEWHERE


class Said(BaseModel):
    role: Literal["User", "AI"]
    text: str


class Result(BaseModel):
    input: dict[str, Any] | None
    output: Any
    exception: str | None = None


class Called(BaseModel):
    role: Literal["API"]
    api_name: str
    result: Result

    @field_validator("api_name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not is_known(name):
            raise ValueError(f"there is no API {name!r}")
        return name

    @model_validator(mode="after")
    def _found(self) -> Called:
        output = self.result.output or []
        found = output if isinstance(output, list) else [output]
        if self.api_name == SEARCHER and not all(isinstance(one, dict) and is_known(one.get("name")) for one in found):
            raise ValueError("result.output: a search gives the description of a known API, or a list of them")
        return self


class Row(BaseModel):
    """``turns``: what is said, and the calls with what they gave."""

    id: str = Field(min_length=1)
    turns: list[Annotated[Said | Called, Field(discriminator="role")]] = Field(min_length=1)

    @property
    def calls(self) -> bool:
        return any(isinstance(turn, Called) for turn in self.turns)

    def task(self, split: str) -> Task:
        turns = [turn.model_dump() for turn in self.turns]
        first = next(number for number, turn in enumerate(turns) if turn["role"] == "API")
        return Task(self.id, told(turns[:first]), None, split, {"turns": turns})


def told(turns: list[dict[str, Any]]) -> str:
    """Turns of a dialogue as a text, one a line."""
    return "\n".join(
        f"{turn['role']}: {turn['text']}"
        if turn["role"] != "API"
        else f"API: {_call(turn)} gave {orjson.dumps(turn['result']['output']).decode()}"
        for turn in turns
    )


def splits(folder: Path | None) -> tuple[str, ...]:
    """The levels, by their files. Raises `AgentGymError` where there are none."""
    if folder is None:
        return tuple(EXAMPLES)
    found = tuple(sorted(path.stem for path in folder.glob("level-*.jsonl")))
    if not found:
        raise AgentGymError(f"{folder} holds no level-*.jsonl: {FOLDER}")
    return found


@cache
def tasks(folder: Path | None, split: str) -> tuple[Task, ...]:
    """The dialogues of a level in which an API is called. Raises `AgentGymError` that names a bad line, its field and the reason."""
    rows = EXAMPLES[split] if folder is None else folder / f"{split}.jsonl"
    return tuple(row.task(split) for _, row in read(rows, Row) if row.calls)


@cache
def tables(folder: Path | None) -> Mapping[str, Any]:
    """The first state of the APIs' tables. Raises `AgentGymError` that names one that is missing or bad."""
    if folder is None:
        return {name: TABLES.get(name, {}) for name in (*CHANGED, *READ_ONLY)}
    return {name: _table(folder / "init_database" / f"{name}.json") for name in (*CHANGED, *READ_ONLY)}


def _table(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise AgentGymError(f"{path} cannot be read ({error.strerror or error}): {FOLDER}") from error
    except ValueError as error:
        raise AgentGymError(f"{path} is not JSON ({error})") from error


def _call(turn: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in (turn["result"]["input"] or {}).items())
    return f"{turn['api_name']}({arguments})"
