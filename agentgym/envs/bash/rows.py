"""The tasks of InterCode's bash set, from a folder of ``fsN.jsonl`` and ``fsN_manifest.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, Field

from agentgym.envs.bash.tree import Tree, read_manifest
from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task

DAY, MINUTE = 86400, 60
# Seconds between the writing of a file system and its recorded runs, as what they found by age shows.
AGES = {1: 30 * DAY}
AGE = 10 * MINUTE
BARE = 4  # the file system with no files of its own


class Row(BaseModel):
    id: str = Field(min_length=1)
    fs: int
    query: str
    gold: str = Field(min_length=1)


@dataclass(frozen=True)
class Official:
    """``trees``: by the number of the file system."""

    tasks: tuple[Task, ...]
    trees: Mapping[int, Tree]


@cache
def read_folder(folder: Path) -> Official:
    """Raises `AgentGymError` with the place of what is missing or does not fit."""
    files = sorted(folder.glob("fs*.jsonl"))
    if not files:
        raise AgentGymError(f"{folder} holds no fs1.jsonl and the like: give the folder bash of InterCode's data")
    tasks: dict[str, Task] = {}
    trees: dict[int, Tree] = {BARE: ()}
    for file in files:
        for place, row in read(file, Row):
            if row.id in tasks:
                raise AgentGymError(f"{place}: there is a task {row.id!r} already: give each its own id")
            if row.fs not in trees:
                trees[row.fs] = read_manifest(folder / f"fs{row.fs}_manifest.json", AGES.get(row.fs, AGE))
            tasks[row.id] = Task(row.id, row.query, {"gold": row.gold}, "test", {"fs": row.fs})
    return Official(tuple(tasks.values()), trees)
