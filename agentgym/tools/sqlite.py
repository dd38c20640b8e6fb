"""SQLite for untrusted statements: a database is a value, and a statement can neither leave it nor outgrow its limits."""

from __future__ import annotations

import _sqlite3
import ctypes
import resource
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from threading import Lock, RLock
from types import SimpleNamespace
from typing import Any, cast

from agentgym.errors import AgentGymError, InfrastructureError, ToolError

Value = str | int | float | bytes | None
Row = tuple[Any, ...]
Cost = Callable[..., int]
Dress = Callable[["Session"], None]  # gives a new connection its functions and collations
MB = 2**20
CHECK_EVERY = 2000  # instructions of SQLite's machine between two looks at the limits
CALL_STEPS, COMPARE_STEPS = 200, 20  # of a function or collation of ours, besides one for each character that it takes or gives
KEPT_OPEN = 8  # databases
_NEVER = {"load_extension", "fts3_tokenizer", "random", "randomblob", "zeroblob", "readfile", "writefile", "edit"}
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_WRITES = _READS | {
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_DROP_INDEX,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_REINDEX,  # what CREATE INDEX does to the new one
}


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """``steps``: instructions of SQLite's machine and characters that functions handle, the same on every machine. ``seconds`` of this
    thread's own computing are for what they do not see, such as regular expressions.

    ``memory`` and ``size`` in bytes: what SQLite may take for a statement, and what a database may grow to. Memory is SQLite's own, not
    the process's, where its library tells it. ``rows`` and ``answer`` (characters) bound a result, ``value`` one value or row.
    """

    steps: int = 20_000_000
    seconds: float = 5.0
    memory: int = 256 * MB
    size: int = 64 * MB
    rows: int = 100_000
    answer: int = 32 * MB
    value: int = 100_000
    text: int = 20_000


@dataclass(frozen=True, slots=True)
class Result:
    """``columns`` is empty where a statement has no rows to give."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Database:
    """A database as SQLite would write it to a file. Immutable: a statement that writes gives another one.

    Why an image and no log of writes: equal contents reached by equal writes are equal values whatever was read or refused between,
    a fork shares the bytes, and reading needs no replay. The bytes are read into SQLite once, where they are asked for, and the
    `KEPT_OPEN` last ones stay open, read-only, large ones fewer; only a write copies.
    """

    image: bytes = field(repr=False)
    name: str = ""

    @cached_property
    def digest(self) -> str:
        return blake2b(self.image, digest_size=16).hexdigest()

    def __state_digest__(self) -> str:
        return self.digest


class Engine:
    """Runs statements in SQLite's own dialect. ``dress`` adds functions and collations, which must be bounded and draw nothing.

    Raises `ToolError` for whatever the statement is to blame for, limits included, and `InfrastructureError` where the machine has no
    memory left. Several threads may use one engine.
    """

    def __init__(self, dress: Dress = lambda session: None, limits: SqlLimits | None = None) -> None:
        self.limits = limits or SqlLimits()
        self._dress = dress
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def read(self, database: Database, statement: str, parameters: Sequence[Value] = ()) -> Result:
        """The answer of a statement that changes nothing."""
        return self._session(database).run(statement, parameters, _READS)

    @contextmanager
    def writing(self, database: Database | None = None) -> Iterator[Session]:
        """A copy to write to, closed at the end: take its ``database`` before. None begins an empty one."""
        session = Session(database, self._dress, self.limits)
        try:
            yield session
        finally:
            session.close()

    def _session(self, database: Database) -> Session:
        with self._lock:
            session = self._kept.pop(database.digest, None) or Session(database, self._dress, self.limits)
            self._kept[database.digest] = session
            while len(self._kept) > KEPT_OPEN or sum(kept.size for kept in self._kept.values()) > 2 * self.limits.size:
                self._kept.popitem(last=False)  # closed when nobody reads it any more
            return session


class Session:
    """One connection to one copy of a database."""

    def __init__(self, database: Database | None, dress: Dress, limits: SqlLimits) -> None:
        self.limits, self.size = limits, len(database.image) if database is not None else 0
        self._lock = RLock()
        self._allowed: set[int] = set()
        self._stopped = ""
        self._fault: Exception | None = None
        self._steps, self._deadline, self._memory = 0, 0.0, 0
        self.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=0)
        if database is not None:
            self.connection.deserialize(database.image)
        self._confine()
        dress(self)

    def run(self, statement: str, parameters: Sequence[Value] = (), allowed: set[int] = _WRITES) -> Result:
        with self._lock:
            self._allowed, self._stopped, self._fault, self._steps = allowed, "", None, 0
            self._deadline, self._memory = time.thread_time() + self.limits.seconds, _memory()
            try:
                cursor = self.connection.execute(statement, parameters)
                columns = tuple(column[0] for column in cursor.description or ())
                result = Result(columns, tuple(self._bounded(cursor)))
                self._spend(0)
                return result
            except ToolError:
                raise
            except MemoryError:
                raise InfrastructureError("there was no memory left on this machine for a statement of SQL") from None
            except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
                raise (self._fault or ToolError(self._stopped or str(error))) from None

    def add_function(self, name: str, count: int, function: Callable[..., Any], cost: Cost = lambda *values: 0) -> None:
        """A function of SQL; ``count`` of arguments, -1 for any. What it raises comes out of ``run``, bad values as `ToolError`.

        ``cost``: steps that it takes beyond those for the length of its values.
        """
        self.connection.create_function(name, count, self._watched(function, cost), deterministic=True)

    def add_collation(self, name: str, compare: Callable[[str, str], int]) -> None:
        def watched(one: str, other: str) -> int:
            with suppress(ToolError):  # which SQLite would not hear of; the next look stops the statement, or its end does
                self._spend(COMPARE_STEPS + len(one) + len(other))
                return compare(one, other)
            return 0

        self.connection.create_collation(name, watched)

    def add_aggregate(self, name: str, count: int, made: Callable[[], Any]) -> None:
        """``made`` gives objects with ``step`` and ``finalize``."""

        def watched() -> Any:
            aggregate = made()
            return SimpleNamespace(step=self._watched(aggregate.step), finalize=self._watched(aggregate.finalize))

        self.connection.create_aggregate(name, count, watched)

    def fill(self, statement: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a trusted statement once for each row, without limits."""
        with self._lock:
            self._allowed, self._deadline, self._memory, self._steps = _WRITES, float("inf"), 2**62, -(2**62)
            self.connection.execute("BEGIN")
            self.connection.executemany(statement, rows)
            self.connection.execute("COMMIT")

    def settle(self) -> None:
        """Count the rows, so that SQLite begins a join with the table that has few."""
        with self._lock:
            self._allowed = _WRITES | {sqlite3.SQLITE_ANALYZE, sqlite3.SQLITE_PRAGMA}
            self.connection.execute("ANALYZE")

    @property
    def database(self) -> Database:
        """What it has become."""
        with self._lock:
            self._allowed = {sqlite3.SQLITE_PRAGMA}  # which SQLite asks itself for the number of pages
            return Database(self.connection.serialize())

    def close(self) -> None:
        self.connection.close()

    def _watched(self, function: Callable[..., Any], cost: Cost = lambda *values: 0) -> Callable[..., Any]:
        """SQLite forgets what a function raised, so it is kept here."""

        def watched(*values: Any) -> Any:
            try:
                self._spend(CALL_STEPS + sum(map(_length, values)) + cost(*values))
                made = function(*values)
                self._spend(_length(made))
                return made
            except AgentGymError as error:
                self._fault = error
                raise
            except (ValueError, ArithmeticError, TypeError, LookupError) as error:
                self._fault = ToolError(f"a function was given what it cannot take: {error}")
                raise

        return watched

    def _bounded(self, cursor: sqlite3.Cursor) -> Iterator[Row]:
        size = 0
        for number, row in enumerate(cursor, start=1):
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if number > self.limits.rows or size > self.limits.answer:
                raise ToolError(f"the result is larger than {self.limits.rows} rows or {self.limits.answer} characters")
            yield row

    def _confine(self) -> None:
        for pragma in (f"max_page_count = {self.limits.size // 4096}", "temp_store = MEMORY", "trusted_schema = OFF"):
            self.connection.execute(f"PRAGMA {pragma}")
        for category, limit in (
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_LENGTH, self.limits.value),
            (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4 * self.limits.text),
            (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
            (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 50),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
            (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
            (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        ):
            self.connection.setlimit(category, limit)
        self.connection.set_authorizer(self._authorize)
        self.connection.set_progress_handler(self._look, CHECK_EVERY)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        refused = action not in self._allowed or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _NEVER)
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    def _look(self) -> int:
        with suppress(ToolError):
            self._spend(CHECK_EVERY)
            if _memory() - self._memory > self.limits.memory:
                self._stopped = "the statement needs too much memory"
        return int(bool(self._stopped))

    def _spend(self, steps: int) -> None:
        looked, self._steps = self._steps // CHECK_EVERY, self._steps + steps
        is_time = self._steps // CHECK_EVERY > looked  # asking the clock takes as long as a short function
        if self._steps > self.limits.steps or (is_time and time.thread_time() > self._deadline):
            self._stopped = "the statement takes too long"
            raise ToolError(self._stopped)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _meter() -> Callable[[], int]:
    """Tells the bytes that SQLite holds. Where its library hides that, the peak of the process stands for it."""
    with suppress(OSError, AttributeError):
        used = ctypes.CDLL(_sqlite3.__file__).sqlite3_memory_used
        used.restype = ctypes.c_int64
        return cast("Callable[[], int]", used)
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_memory = _meter()
