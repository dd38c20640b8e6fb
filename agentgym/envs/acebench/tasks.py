"""ACEBench's rows as tasks: one row, or the rows of one conversation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, field_validator, model_validator

from agentgym.envs.acebench.examples import EXAMPLES
from agentgym.envs.acebench.grading import PHRASES, function_name
from agentgym.envs.acebench.town import AGENT_EXAMPLES
from agentgym.envs.rows import Rows, read
from agentgym.errors import AgentGymError
from agentgym.task import Task

PLAYED = ("normal_", *PHRASES, "agent_multi_step", "agent_multi_turn")
App = Literal["BaseApi", "MessageApi", "ReminderApi", "FoodPlatform", "Travel"]


class Parameters(BaseModel):
    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []


class Function(BaseModel):
    name: str = Field(min_length=1)
    description: str
    parameters: Parameters = Field(validation_alias=AliasChoices("parameters", "arguments"))


class Row(BaseModel):
    """``question``: the conversation so far, a line for each word of user or system. ``profile``: of the user."""

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    function: list[Function]
    time: str = ""
    profile: dict[str, Any] | str = ""

    def part(self) -> dict[str, Any]:
        functions = [one.model_dump() for one in self.function]
        return {"question": self.question, "functions": functions, "time": self.time, "profile": self.profile}

    def wanted(self) -> Any:
        raise NotImplementedError

    def conversation(self) -> tuple[str, int]:
        """Its id, and the place of the row in it."""
        return self.id, 0


class CallRow(Row):
    """``ground_truth``: ``{name: {parameter: value}}``, or a list of such of which one must be met."""

    ground_truth: list[dict[str, dict[str, Any]]] = Field(min_length=1)

    @field_validator("ground_truth", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits(self) -> CallRow:
        functions = [one.model_dump() for one in self.function]
        names = {one.name for one in self.function}
        if odd := [name for wanted in self.ground_truth for name in wanted if function_name(name, functions) not in names]:
            raise ValueError(f"ground_truth: {odd[0]} is no function of {', '.join(sorted(names)) or 'this row'}")
        return self

    def wanted(self) -> list[dict[str, dict[str, Any]]]:
        return self.ground_truth


class TurnRow(CallRow):
    """``id``: of the conversation, and the number of the row in it."""

    id: str = Field(pattern=r"._[0-9]+$")

    def conversation(self) -> tuple[str, int]:
        id, _, number = self.id.rpartition("_")
        return id, int(number)


class NamingRow(Row):
    """``ground_truth``: a function and the parameters that it lacks, or a parameter and its wrong values."""

    ground_truth: dict[str, list[Any]] = Field(min_length=1)

    def wanted(self) -> dict[str, list[Any]]:
        return self.ground_truth


class IrrelevantRow(Row):
    def wanted(self) -> None:
        return None


class Device(BaseModel):
    wifi: bool = False
    logged_in: bool = True
    logged_in_users: list[str] = []  # of the food platform


class Beginning(BaseModel):
    """As in the benchmark's program, all apps are set up by what stands under ``BaseApi``."""

    BaseApi: Device = Device()


class AgentRow(Row):
    """``ground_truth``: the fields of each app at the end. ``mile_stone``: the calls on the way, or a list of several ways."""

    initial_config: Beginning = Beginning()
    involved_classes: list[App] = Field(min_length=1)
    ground_truth: list[dict[str, dict[str, Any]]] = Field(min_length=1)
    mile_stone: list[str] | list[list[str]]

    @field_validator("ground_truth", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    def task(self, category: str) -> Task:
        data = {
            "category": category,
            "talks": category == "agent_multi_turn",
            "functions": self.part()["functions"],
            "apps": list(self.involved_classes),
            "device": self.initial_config.BaseApi.model_dump(),
            "wish": self.question,
        }
        ways = [self.mile_stone] if all(isinstance(one, str) for one in self.mile_stone) else self.mile_stone
        return Task(self.id, self.question, {"ends": self.ground_truth, "milestones": ways}, category, data)


def splits(folder: Path | None) -> tuple[str, ...]:
    """The categories, by their files. Raises `AgentGymError` where there are none."""
    if folder is None:
        return (*EXAMPLES, *AGENT_EXAMPLES)
    found = tuple(sorted((path.stem for path in folder.glob("*.jsonl") if path.stem.startswith(PLAYED)), key=_agents_last))
    if not found:
        kinds = "normal_*.jsonl, special_*.jsonl or agent_*.jsonl"
        raise AgentGymError(f"{folder} holds no {kinds}: give the folder of ACEBench's data in English")
    return found


@cache
def tasks(folder: Path | None, category: str) -> tuple[Task, ...]:
    """The tasks of a category. Raises `AgentGymError` that names a bad line, its field and the reason."""
    rows: Rows = {**EXAMPLES, **AGENT_EXAMPLES}[category] if folder is None else folder / f"{category}.jsonl"
    if is_of_agents(category):
        return tuple(row.task(category) for _, row in read(rows, AgentRow))
    together: dict[str, list[Row]] = {}
    for _, row in read(rows, _model(category)):
        together.setdefault(row.conversation()[0], []).append(row)
    return tuple(_task(id, category, parts) for id, parts in together.items())


def is_of_agents(category: str) -> bool:
    return category.startswith("agent_")


def _agents_last(category: str) -> tuple[bool, str]:
    return is_of_agents(category), category


def _model(category: str) -> type[Row]:
    if category.startswith("normal_multi_turn"):
        return TurnRow
    if category.startswith("normal_"):
        return CallRow
    return IrrelevantRow if category == "special_irrelevant" else NamingRow


def _task(id: str, category: str, rows: Sequence[Row]) -> Task:
    ordered = sorted(rows, key=lambda row: row.conversation()[1])
    data = {"category": category, "parts": [row.part() for row in ordered]}
    return Task(id, ordered[0].question, [row.wanted() for row in ordered], category, data)
