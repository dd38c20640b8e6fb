"""``agentgym/Database-v0``: questions about one table, and changes to it: AgentBench's DBBench, and small tables of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentgym.action import call
from agentgym.env import AgentEnv
from agentgym.envs.database.stocks import SIZES, stock_tasks
from agentgym.envs.database.tasks import database_of, fingerprint, read_tasks, same_answers
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sqlite import Database as Tables

if TYPE_CHECKING:
    from agentgym.tools.mysql import MySQL

LONGEST_RESULT = 2000  # characters


@dataclass(frozen=True, slots=True)
class DatabaseState:
    tables: Tables
    answers: tuple[str, ...] | None = None


class Database(AgentEnv):
    """Answer a question about a table, or change it, by statements of MySQL. Reward: 1 if the answer or the table is right.

    A question is right if ``submit`` was called with its answers, as a set, numbers by value. A change is right if the table's MD5 is the
    task's, however the episode ends [R]. 20 turns, as in AgentBench (arXiv 2308.03688) [S2].

    Without arguments: small tables drawn by seed. ``data``: the folder of DBBench, whose splits are the names of its files. Raises
    `AgentGymError` where a file has a bad line, `MissingExtra` without sqlglot.
    """

    system = "Use MySQL statements, run with the tool execute, to do what is asked. Finish with the tool submit."
    snapshots: Kind = "value"
    max_turns = max_calls = 20
    state: DatabaseState

    def __init__(self, data: str | Path | None = None) -> None:
        super().__init__()
        self._engine = _engine()
        self._tasks = None if data is None else _folder(Path(data))
        self.splits = tuple(SIZES if self._tasks is None else self._tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return stock_tasks(split) if self._tasks is None else self._tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = DatabaseState(database_of(self._engine, task.data))

    @tool
    def execute(self, sql: str) -> str:
        """Run one SQL statement of MySQL and read its result.

        Args:
            sql: the statement.
        """
        rows, tables = self._engine.run(self.state.tables, sql)
        self.state = replace(self.state, tables=tables)
        text = str(list(rows or ()))
        return text if len(text) <= LONGEST_RESULT else f"{text[:LONGEST_RESULT]}… ({len(rows or ())} rows)"

    @tool(ends=True)
    def submit(self, answers: list[str]) -> str:
        """Give the final answer and end.

        Args:
            answers: all values that answer the question, in any order; nothing where a change was asked for.
        """
        self.state = replace(self.state, answers=tuple(answers))
        return "Submitted."

    def score(self) -> float:
        answer = self.task.answer
        if "md5" in answer:
            return float(self._fingerprint() == answer["md5"])
        return float(self.state.answers is not None and same_answers(self.state.answers, answer["labels"]))

    def metrics(self) -> dict[str, float]:
        kind = self.task.data["type"]
        return {f"success/{kind.partition('-')[0]}": self.score()}

    def gold(self, task: Task) -> list[str]:
        """The task's own statement, or its answers."""
        if "md5" in task.answer:
            return [call("execute", sql=task.answer["statement"]), call("submit", answers=[])]
        return [call("submit", answers=task.answer["labels"])]

    def key(self) -> str:
        """Equal where the same task's table and answers are the same."""
        return state_digest(self.task.id, self.state)

    def _fingerprint(self) -> str:
        """Of the table as it stands; of nothing where it is no more."""
        try:
            rows = self._engine.content(self.state.tables, self.task.data["table"])
        except ToolError:
            return ""
        return fingerprint(rows)


@cache
def _engine() -> MySQL:
    from agentgym.tools.mysql import MySQL

    return MySQL()


@cache
def _folder(folder: Path) -> dict[str, list[Task]]:
    return read_tasks(folder)
