"""tau2-bench's tasks from JSON lines: a scenario for the user, a state to set up, and criteria to score by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task

Side = Literal["assistant", "user"]
Functions = Mapping[Side, Mapping[str, Callable[..., Any]]]  # each takes the state of its side first
Basis = Literal["DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE", "NL_ASSERTION"]
BASE = ("train", "test")  # official splits that make up the base split, on which scores are published


class GoldAction(BaseModel):
    """``compare_args``: those that count for ACTION; None: all."""

    name: str
    arguments: dict[str, Any] = {}
    requestor: Side = "assistant"
    compare_args: list[str] | None = None


class SetUp(BaseModel):
    """What is done to the agent's or the user's side before the episode."""

    env_type: Side
    func_name: str
    arguments: dict[str, Any] = {}


class Assertion(SetUp):
    assert_value: bool = True


class Criteria(BaseModel):
    actions: list[GoldAction] | None = None
    env_assertions: list[Assertion] | None = None
    communicate_info: list[str] | None = None
    nl_assertions: list[str] | None = None
    reward_basis: list[Basis] = Field(default=["DB", "COMMUNICATE"], min_length=1)


class Scenario(BaseModel):
    persona: str | None = None
    instructions: dict[str, str | None]


class InitialState(BaseModel):
    """The fields that are always None here would need a start that the tables do not give."""

    initialization_data: None = None
    initialization_actions: list[SetUp] | None = None
    message_history: None = None


class Row(BaseModel):
    """A row sets up and asserts only by ``set_up`` and ``assertions``: of each side the functions by their names; here there are none."""

    set_up: ClassVar[Functions] = {"user": {}, "assistant": {}}
    assertions: ClassVar[Functions] = {"user": {}, "assistant": {}}
    id: str = Field(min_length=1)
    user_scenario: Scenario
    ticket: str | None = None
    initial_state: InitialState | None = None
    evaluation_criteria: Criteria
    official_split: str = "base"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _must_fit((self.initial_state and self.initial_state.initialization_actions) or (), self.set_up)
        _must_fit(self.evaluation_criteria.env_assertions or (), self.assertions)
        return self

    def task(self) -> Task:
        """What the user is told is in ``data``, with what is set up; the criteria are the answer."""
        told = {name: text for name, text in self.user_scenario.instructions.items() if text}
        state = self.initial_state or InitialState()
        set_up = [action.model_dump() for action in state.initialization_actions or ()]
        data = {"scenario": told, "persona": self.user_scenario.persona or "", "set_up": set_up}
        return Task(self.id, self.ticket or instruction(told), self.evaluation_criteria.model_dump(), self.official_split, data)


AnyRow = TypeVar("AnyRow", bound=Row)


def read_tasks(file: Path, model: type[AnyRow]) -> dict[str, tuple[Task, ...]]:
    """Tasks by official split, and those of the base split under ``base``, which comes last."""
    tasks = [row.task() for _, row in read(file, model)]
    found: dict[str, list[Task]] = {}
    for task in tasks:
        if task.split != "base":
            found.setdefault(task.split, []).append(task)
    found["base"] = [task for task in tasks if task.split in (*BASE, "base")]
    return {split: tuple(found[split]) for split in sorted(found, key=_order)}


def domain_folder(data: str | Path, name: str) -> Path:
    """The folder of a domain, from that of the benchmark or itself. Raises `AgentGymError` where it has no tasks."""
    folder = Path(data)
    folder = folder / name if (folder / name).is_dir() else folder
    if not (folder / "tasks.jsonl").is_file():
        raise AgentGymError(f"{folder / 'tasks.jsonl'} is missing: give tau2-bench's folder, with {name}/tasks.jsonl")
    return folder


def text_of(file: Path) -> str:
    if not file.is_file():
        raise AgentGymError(f"{file} is missing: give tau2-bench's folder with all that its domain has")
    return file.read_text(encoding="utf-8")


def instruction(told: Mapping[str, str]) -> str:
    """The scenario as the user is told it; the name of the domain says nothing."""
    return "\n\n".join(text.strip() for name, text in told.items() if name != "domain")


def _must_fit(called: Sequence[SetUp], functions: Functions) -> None:
    """Raises `ValueError` where something is called that there is not, or with other arguments than it takes beside the side's state."""
    for one in called:
        if (function := functions[one.env_type].get(one.func_name)) is None:
            raise ValueError(f"there is no {one.func_name!r} for {one.env_type!r}")
        try:
            inspect.signature(function).bind(None, **one.arguments)
        except TypeError as error:
            raise ValueError(f"{one.func_name}: {error}") from None


def _order(split: str) -> tuple[int, str]:
    order = (*BASE, "small", "base")
    return (order.index(split) if split in order else len(BASE), split)
