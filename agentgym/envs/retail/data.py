"""tau-bench's retail domain from a folder: its tables, frozen, its policy, and its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict, freeze

TABLES = ("users", "orders", "products")


class GoldCall(BaseModel):
    name: str
    arguments: dict[str, Any]


class Row(BaseModel):
    """One line of ``tasks_*.jsonl``. ``outputs`` are to be said to the user."""

    id: str
    instruction: str
    actions: list[GoldCall]
    outputs: list[str] = []


@dataclass(frozen=True, slots=True)
class Shop:
    """All that episodes share. ``tasks`` by split."""

    tables: FrozenDict
    policy: str
    tasks: Mapping[str, Sequence[Task]]


@cache
def load_shop(folder: Path) -> Shop:
    """Read once in a process and shared by all environments. Raises `AgentGymError` that names a missing file or a bad line."""
    retail = folder / "retail" if (folder / "retail").is_dir() else folder
    tables: FrozenDict = freeze({name: orjson.loads(_read(retail / "db" / f"{name}.json")) for name in TABLES})
    tables.digest  # noqa: B018  (asked for once, so that each episode pays for what it changes alone)
    files = {path.stem.removeprefix("tasks_"): path for path in sorted(retail.glob("tasks_*.jsonl"))}
    if not files:
        raise AgentGymError(f"{retail} holds no tasks_*.jsonl: give tau-bench's folder")
    tasks = {split: tuple(_tasks(path, split)) for split, path in files.items()}
    return Shop(tables, _read(retail / "policy.md").decode(), tasks)


def _tasks(path: Path, split: str) -> list[Task]:
    tasks = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            row = Row.model_validate(orjson.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise AgentGymError(f"{path}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
        except ValueError as error:
            raise AgentGymError(f"{path}, line {number} is not JSON ({error})") from error
        tasks.append(Task(row.id, row.instruction, row.model_dump(include={"actions", "outputs"}), split))
    return tasks


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise AgentGymError(f"{path} is missing: give tau-bench's folder, with retail/db, retail/policy.md and retail/tasks_*.jsonl")
    return path.read_bytes()
