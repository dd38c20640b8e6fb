"""``agentgym/Sql-v0``: questions about a database, answered by queries: InterCode's SQL tasks, and small ones of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentgym.action import call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.sql.grading import Rows, alike
from agentgym.envs.sql.markets import SIZES, market, market_tasks
from agentgym.envs.sql.spider import Corpus, read_corpus
from agentgym.errors import AgentGymError, ToolError
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sqlite import Database

if TYPE_CHECKING:
    from agentgym.tools.mysql import MySQL

LONGEST_ANSWER = 1000  # characters of a result that the agent reads; all of it is graded
FAILED = "Error executing query: "


@dataclass(frozen=True, slots=True)
class SqlState:
    """``best``: the highest grade of an answer so far."""

    database: Database
    best: float = 0.0


class Sql(AgentEnv):
    """Answer a question by a query of MySQL; look about with SHOW TABLES, DESCRIBE and queries. Every result is an answer, and is graded.

    Reward: the grade of the best answer (`alike`), paid as it comes: a turn earns what it adds to the best so far, so that an episode's
    return is InterCode's "best reward counts", also where it is cut off. A grade of 1 ends the episode; success is a return of 1. The
    agent reads each grade, as in InterCode's "try again" (arXiv 2306.14898) [S]. What it writes to the database stays for the episode; the
    task's own query is run on the database as it was, so that nothing can be gained by emptying tables. A query of the task that MySQL
    refuses gives no rows, as upstream [S].

    Without arguments: small databases drawn by seed. ``data``: a folder with ``spider_dev.jsonl`` and the dump of its databases.
    ``ordered``: the order of rows counts too. Raises `AgentGymError` where a file has a bad line, `MissingExtra` without sqlglot.
    """

    system = "Answer the question by a MySQL query, run with the tool execute. Look at the tables first."
    snapshots: Kind = "value"
    max_turns = max_calls = 10
    state: SqlState

    def __init__(self, data: str | Path | None = None, *, ordered: bool = False) -> None:
        super().__init__()
        self.ordered = ordered
        self._corpus = None if data is None else _folder(Path(data))
        self._engine = _engine() if self._corpus is None else self._corpus.engine
        self.splits = tuple(SIZES if self._corpus is None else self._corpus.tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return market_tasks(split) if self._corpus is None else self._corpus.tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = SqlState(self._database_of(task))

    @tool
    def execute(self, sql: str) -> Reply:
        """Run one SQL statement of MySQL and read its result. The result is graded as your answer.

        Args:
            sql: the statement.
        """
        try:
            rows, database = self._engine.run(self.state.database, sql)
        except ToolError as error:
            return Reply(f"{FAILED}{error}\nReward: 0.0", outcome=Outcome.TOOL_ERROR)
        grade = 0.0 if rows is None else alike(rows, self._expected(self.task), self.ordered)
        gained = max(0.0, grade - self.state.best)
        self.state = SqlState(database, max(grade, self.state.best))
        return Reply(f"{_shown(rows)}\nReward: {round(grade, 4)}", reward=gained, ends=grade == 1.0)

    def metrics(self) -> dict[str, float]:
        hardness = self.task.data.get("hardness")
        solved = float(self.state.best == 1.0)
        return {"solved": solved} | ({f"solved/{hardness}": solved} if hardness else {})

    def gold(self, task: Task) -> list[str] | None:
        """The task's own query; None where MySQL refuses it."""
        try:
            self._engine.run(self._database_of(task), str(task.answer))
        except ToolError:
            return None
        return [call("execute", sql=str(task.answer))]

    def key(self) -> str:
        """Equal where the same task's database and best grade are the same."""
        return state_digest(self.task.id, self.state)

    def _database_of(self, task: Task) -> Database:
        name = str(task.data.get("db", ""))
        if self._corpus is None:
            return _market(name)
        if name not in self._corpus.databases:
            raise AgentGymError(f"task {task.id}: there is no database {name!r} in the folder that this environment was given as data")
        return self._corpus.databases[name]

    def _expected(self, task: Task) -> Rows:
        return _answer(self._engine, self._database_of(task), str(task.answer))


def _shown(rows: Rows | None) -> str:
    text = str(None if rows is None else list(rows))
    return text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]}… ({len(rows or ())} rows)"


@cache
def _engine() -> MySQL:
    from agentgym.tools.mysql import MySQL

    return MySQL()


@cache
def _folder(folder: Path) -> Corpus:
    return read_corpus(folder)


@cache
def _market(name: str) -> Database:
    return market(_engine(), name)


@lru_cache(4096)
def _answer(engine: MySQL, database: Database, query: str) -> Rows:
    try:
        return engine.run(database, query)[0] or ()
    except ToolError:
        return ()


