"""A domain of tau-bench from a folder: its tables, frozen, its policy, and its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from agentgym.envs.rows import read
from agentgym.errors import AgentGymError, ToolError
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict, freeze


class GoldCall(BaseModel):
    name: str
    arguments: dict[str, Any]


class Row(BaseModel):
    """One line of ``tasks_*.jsonl``. ``outputs`` are to be said to the user."""

    id: str
    instruction: str
    actions: list[GoldCall]
    outputs: list[str] = []

    def task(self, split: str) -> Task:
        return Task(self.id, self.instruction, self.model_dump(include={"actions", "outputs"}), split)


@dataclass(frozen=True, slots=True)
class Domain:
    """All that episodes share. ``tasks`` by split."""

    tables: FrozenDict
    policy: str
    tasks: Mapping[str, Sequence[Task]]


@cache
def load_domain(folder: Path, name: str, tables: tuple[str, ...]) -> Domain:
    """Read once in a process and shared by all environments. Raises `AgentGymError` that names a missing file or a bad line."""
    folder = folder / name if (folder / name).is_dir() else folder
    frozen: FrozenDict = freeze({table: orjson.loads(_read(folder / "db" / f"{table}.json", name)) for table in tables})
    frozen.digest  # noqa: B018  (asked for once, so that each episode pays for what it changes alone)
    files = {path.stem.removeprefix("tasks_"): path for path in sorted(folder.glob("tasks_*.jsonl"))}
    if not files:
        raise AgentGymError(f"{folder} holds no tasks_*.jsonl: give tau-bench's folder")
    tasks = {split: tuple(row.task(split) for _, row in read(path, Row)) for split, path in files.items()}
    return Domain(frozen, _read(folder / "policy.md", name).decode(), tasks)


def record(tables: FrozenDict, table: str, id: str) -> Any:
    """A record by its id, or the refusal that the benchmark has for one that is not there."""
    if id not in tables[table]:
        raise ToolError(f"{table.removesuffix('s')} not found")
    return tables[table][id]


def _read(path: Path, name: str) -> bytes:
    if not path.is_file():
        raise AgentGymError(f"{path} is missing: give tau-bench's folder, with {name}/db, {name}/policy.md and {name}/tasks_*.jsonl")
    return path.read_bytes()
