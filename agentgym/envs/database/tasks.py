"""AgentBench's DBBench tasks: one table each, and a question about it or a change to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, model_validator

from agentgym.envs.rows import read
from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.tools.mysql.tables import ColumnInfo, TableInfo
from agentgym.tools.sqlite import Database

if TYPE_CHECKING:
    from agentgym.tools.mysql import MySQL

CHANGES = ("INSERT", "UPDATE", "DELETE")
NAME = "database"  # of the database that holds the table
_MD5 = re.compile(r"\b[0-9a-f]{32}\b")


class NamedColumn(BaseModel):
    name: str


class Content(BaseModel):
    columns: list[NamedColumn] = Field(min_length=1)
    rows: list[list[Any]]

    @model_validator(mode="after")
    def _rectangular(self) -> Content:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has not {len(self.columns)} values")
        return self


class Table(BaseModel):
    table_name: str = Field(min_length=1)
    table_info: Content


class Entry(BaseModel):
    """A row of the benchmark's files. Of a change, ``label`` is its statement; of a question, the answers."""

    id: str = Field(min_length=1)
    description: str = Field(min_length=1)
    add_description: str = ""
    type: list[str] = Field(min_length=1)
    label: list[Any] = Field(min_length=1)
    answer_md5: str | None = None
    table: Table

    @model_validator(mode="after")
    def _has_what_is_graded(self) -> Entry:
        if self.type[0] in CHANGES and _MD5.search(self.answer_md5 or "") is None:
            raise ValueError("answer_md5: a change needs the MD5 of its table")
        return self

    def task(self, split: str) -> Task:
        info = self.table.table_info
        rows = tuple(tuple(None if value is None else str(value) for value in row) for row in info.rows)
        columns = tuple(column.name for column in info.columns)
        data = {"type": self.type[0], "table": self.table.table_name, "columns": columns, "rows": rows}
        answer: dict[str, Any] = {"labels": [str(label) for label in self.label]}
        if self.type[0] in CHANGES and (found := _MD5.search(self.answer_md5 or "")) is not None:
            answer = {"md5": found[0], "statement": str(self.label[0])}
        return Task(self.id, f"{self.description}\n{self.add_description}".strip(), answer, split, data)


def read_tasks(folder: Path) -> dict[str, list[Task]]:
    """Tasks by split, which is the name of their file. Raises `AgentGymError` where there is none, or a bad line."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise AgentGymError(f"{folder} holds no DBBench tasks: give a folder with standard.jsonl or dev.jsonl")
    return {path.stem: [row.task(path.stem) for _, row in read(path, Entry)] for path in files}


def database_of(engine: MySQL, data: Mapping[str, Any]) -> Database:
    """The table of a task: all of its columns hold text, as in the benchmark."""
    return _made(engine, data["table"], tuple(data["columns"]), tuple(map(tuple, data["rows"])))


@lru_cache(512)
def _made(engine: MySQL, table: str, columns: tuple[str, ...], rows: tuple[tuple[str | None, ...], ...]) -> Database:
    return engine.create(NAME, [(TableInfo(table, tuple(ColumnInfo(column, "text") for column in columns)), rows)])


def fingerprint(rows: Iterable[Sequence[str | None]]) -> str:
    """The MD5 by which a changed table is compared: of the first 5 digits of that of each row, sorted."""
    return _md5(",".join(sorted(_md5(",".join(value for value in row if value is not None))[:5] for row in rows)))


def same_answers(given: Sequence[str], labels: Sequence[str]) -> bool:
    """As sets; numbers by value; nothing, 0 and None alike."""
    return {_value(text) for text in given} == {_value(text) for text in labels}


def _value(text: str) -> float | str:
    text = text.strip()
    if text.lower() in ("", "none", "null"):
        return 0.0
    try:
        return float(text)
    except ValueError:
        return text


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
