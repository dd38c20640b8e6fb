"""InterCode's SQL tasks: questions of Spider over databases from a dump of MySQL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.tools.mysql import MySQL
from agentgym.tools.sqlite import Database

DUMP = "spider_dbs_mysql.sql"


class Question(BaseModel):
    id: str = Field(min_length=1)
    db: str = Field(min_length=1)
    query: str = Field(min_length=1)
    gold: str = Field(min_length=1)
    hardness: str = ""


@dataclass(frozen=True)
class Corpus:
    """Databases by name, and tasks by split, which is the last word of their file's name."""

    engine: MySQL
    databases: dict[str, Database]
    tasks: dict[str, list[Task]]


def read_corpus(folder: Path) -> Corpus:
    """A folder of ``spider_*.jsonl`` and the dump. Raises `AgentGymError` where either is missing or has a bad line."""
    files = sorted(folder.glob("spider_*.jsonl"))
    if not files or not (folder / DUMP).is_file():
        raise AgentGymError(f"{folder} holds no InterCode SQL tasks: give a folder with spider_dev.jsonl and {DUMP}")
    engine = MySQL()
    databases = engine.load(folder / DUMP)
    tasks: dict[str, list[Task]] = {}
    for path in files:
        split = path.stem.removeprefix("spider_")
        tasks[split] = []
        for place, row in read(path, Question):
            if row.db not in databases:
                raise AgentGymError(f"{place}: db: {folder / DUMP} has no database {row.db!r}")
            tasks[split].append(Task(row.id, row.query, row.gold, split, {"db": row.db, "hardness": row.hardness}))
    return Corpus(engine, databases, tasks)
