"""SQLite under untrusted statements: nothing is reached, nothing runs for ever, nothing eats the memory, and databases are values."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import ToolError
from agentgym.snapshot import state_digest
from agentgym.tools.sqlite import KEPT_OPEN, MB, Database, Engine, Session, SqlLimits

COUNT = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 100000) "
BIG = "printf('%.*c', 90000, 'x')"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def thousand(engine: Engine) -> Database:
    with engine.writing() as session:
        session.run("CREATE TABLE t (a, b)")
        session.fill("INSERT INTO t VALUES (?, ?)", [(number, str(number)) for number in range(1000)])
        return session.database


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH ':memory:' AS other",
        "ATTACH '/tmp/agentgym-escape.db' AS other",
        "VACUUM INTO '/tmp/agentgym-escape.db'",
        "DETACH main",
        "SELECT load_extension('libc.so.6')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT readfile('/etc/passwd')",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA query_only = 0",
        "SELECT * FROM pragma_database_list",
        "CREATE VIRTUAL TABLE v USING fts4(x)",
        "CREATE TEMP TABLE x (a)",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE VIEW v AS SELECT 1",
        "SELECT random()",
        "SELECT hex(randomblob(10))",
        "SELECT zeroblob(1000)",
    ],
)
def test_no_statement_leaves_the_database_nor_draws_at_random(engine: Engine, thousand: Database, statement: str) -> None:
    with pytest.raises(ToolError):
        engine.read(thousand, statement)
    with engine.writing(thousand) as session, pytest.raises(ToolError):
        session.run(statement)
    assert not Path("/tmp/agentgym-escape.db").exists()


WRITES = ["INSERT INTO t VALUES (1, 2)", "DELETE FROM t", "DROP TABLE t", "UPDATE t SET a = 1", "BEGIN IMMEDIATE"]


@pytest.mark.parametrize("statement", WRITES)
def test_reading_cannot_write(engine: Engine, thousand: Database, statement: str) -> None:
    with pytest.raises(ToolError, match="not authorized"):
        engine.read(thousand, statement)
    assert engine.read(thousand, "SELECT COUNT(*) FROM t").rows == ((1000,),)


@pytest.mark.parametrize(
    ("statement", "limits", "said"),
    [
        (COUNT.replace(" LIMIT 100000", "") + "SELECT COUNT(*) FROM c", SqlLimits(steps=200_000), "takes too long"),
        (COUNT.replace(" LIMIT 100000", "") + "SELECT COUNT(*) FROM c", SqlLimits(seconds=0.1), "takes too long"),
        ("SELECT COUNT(*) FROM t, t AS u, t AS v", SqlLimits(steps=200_000), "takes too long"),
        (COUNT + f"SELECT x, {BIG} || x FROM c ORDER BY 2 DESC", SqlLimits(memory=64 * MB), "too much memory"),
        (COUNT + f"SELECT group_concat({BIG}) FROM c", SqlLimits(), "too big"),
        (f"SELECT replace({BIG}, 'x', 'yyyyyyyyyyyy')", SqlLimits(), "too big"),
        ("SELECT * FROM t, t AS u", SqlLimits(rows=5000), "larger than 5000 rows"),
        (COUNT + f"SELECT {BIG} FROM c", SqlLimits(answer=1_000_000), "or 1000000 characters"),
        ("SELECT " + "1 + (" * 900 + "1" + ")" * 900, SqlLimits(), "too large|overflow"),
        ("SELECT 1" + " UNION SELECT 1" * 100, SqlLimits(), "too many terms"),
    ],
)
def test_a_statement_that_outgrows_a_limit_is_stopped_and_the_next_one_runs(
    thousand: Database, statement: str, limits: SqlLimits, said: str
) -> None:
    engine = Engine(limits=limits)
    with pytest.raises(ToolError, match=said):
        engine.read(thousand, statement)
    assert engine.read(thousand, "SELECT COUNT(*) FROM t WHERE a < 10").rows == ((10,),)


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT COUNT(same({BIG} || a)) FROM t",
        "SELECT COUNT(long(a)) FROM t",
        f"SELECT a FROM t ORDER BY {BIG} || b COLLATE slow",
        "SELECT SUM(dear(a)) FROM t",
    ],
)
def test_what_functions_and_collations_handle_counts_as_steps(thousand: Database, statement: str) -> None:
    handled = []

    def dress(session: Session) -> None:
        session.add_function("same", 1, lambda value: handled.append(value) or value)
        session.add_function("long", 1, lambda value: handled.append(value) or "x" * 50_000)
        session.add_function("dear", 1, lambda value: handled.append(value) or value, lambda value: 50_000)
        session.add_collation("slow", lambda one, other: handled.append(one) or 1)

    with pytest.raises(ToolError, match="takes too long"):
        Engine(dress, SqlLimits(steps=1_000_000)).read(thousand, statement)
    assert 3 < len(handled) < 50


def test_what_other_threads_do_stops_no_statement(thousand: Database) -> None:
    held: list[bytearray] = []
    begun, done = threading.Event(), threading.Event()

    def eat() -> None:
        begun.wait()
        held.append(bytearray(b"x" * (100 * MB)))
        done.set()

    def wait(value: int) -> int:
        begun.set()
        done.wait()
        time.sleep(0.003 * (value < 100))
        return value

    eater = threading.Thread(target=eat)
    eater.start()
    engine = Engine(lambda session: session.add_function("wait", 1, wait), SqlLimits(memory=50 * MB, seconds=0.2))
    assert engine.read(thousand, "SELECT SUM(wait(a)) FROM t").rows == ((499_500,),)
    eater.join()


def test_a_machine_without_memory_is_not_the_statements_fault() -> None:
    program = f"""
import resource
from agentgym.errors import InfrastructureError
from agentgym.tools.sqlite import Engine, SqlLimits
with Engine(limits=SqlLimits(memory=2**40)).writing() as session:
    resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 100 * 2**20,) * 2)
    try:
        session.run({COUNT + f"SELECT x, {BIG} || x FROM c ORDER BY 2"!r})
    except InfrastructureError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "no memory left on this machine" in done.stdout


def test_a_database_cannot_grow_beyond_its_size(thousand: Database) -> None:
    engine = Engine(limits=SqlLimits(size=1 * MB))
    with engine.writing(thousand) as session, pytest.raises(ToolError, match="full"):
        session.run(COUNT + f"INSERT INTO t SELECT x, {BIG} FROM c")


def test_what_a_function_raises_comes_out_and_bad_values_are_the_statements_fault(thousand: Database) -> None:
    def refuse(value: object) -> object:
        raise ToolError("no")

    def dress(session: Session) -> None:
        session.add_function("refuse", 1, refuse)
        session.add_function("whole", 1, int)

    engine = Engine(dress)
    with pytest.raises(ToolError, match=r"^no$"):
        engine.read(thousand, "SELECT refuse(1)")
    with pytest.raises(ToolError, match="cannot take: invalid literal"):
        engine.read(thousand, "SELECT whole('x')")
    assert engine.read(thousand, "SELECT whole('7')").rows == ((7,),)


def test_a_write_gives_another_database_and_leaves_the_first(engine: Engine, thousand: Database) -> None:
    with engine.writing(thousand) as session:
        session.run("DELETE FROM t WHERE a >= 10")
        fewer = session.database
    counts = [engine.read(one, "SELECT COUNT(*) FROM t").rows[0][0] for one in (thousand, fewer, thousand)]
    assert counts == [1000, 10, 1000]
    assert thousand != fewer
    assert state_digest(thousand) != state_digest(fewer)


def test_reading_copies_no_database(engine: Engine, thousand: Database) -> None:
    engine.read(thousand, "SELECT 1")
    session = engine._session(thousand)
    engine.read(thousand, "SELECT COUNT(*) FROM t")
    assert engine._session(Database(bytes(bytearray(thousand.image)))) is session


def test_few_databases_stay_open(thousand: Database) -> None:
    for engine, kept in ((Engine(), KEPT_OPEN), (Engine(limits=SqlLimits(size=len(thousand.image))), 2)):
        for number in range(KEPT_OPEN + 3):
            with engine.writing(thousand) as session:
                session.run("DELETE FROM t WHERE a = ?", [number])
                engine.read(session.database, "SELECT 1")
        assert len(engine._kept) == kept


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["INSERT INTO t VALUES (?, 0)", "DELETE FROM t WHERE a = ?"]), st.integers(0, 5)), max_size=6))
def test_equal_writes_give_equal_values(engine: Engine, thousand: Database, writes: list[tuple[str, int]]) -> None:
    def written() -> Database:
        database = thousand
        for statement, value in writes:
            with engine.writing(database) as session:
                session.run(statement, [value])
                database = session.database
        return database

    assert written() == written()


def test_threads_may_share_an_engine(thousand: Database) -> None:
    engine, found = Engine(), []

    def read(number: int) -> None:
        for _ in range(20):
            found.append(engine.read(thousand, f"SELECT COUNT(*) FROM t WHERE a < {number}").rows == ((number,),))

    threads = [threading.Thread(target=read, args=(number,)) for number in (1, 10, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 60
