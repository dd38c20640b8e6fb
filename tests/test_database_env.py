"""One table each: DBBench's tasks by their own statements and answers, its comparison of answers and tables, and bad data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentgym import AgentGymError, Outcome, Task, call
from agentgym.envs.database import LONGEST_RESULT, Database
from agentgym.envs.database.stocks import KINDS, SIZES, stock_tasks
from agentgym.envs.database.tasks import fingerprint, same_answers

DBBENCH = Path(__file__).parents[2] / "shared" / "data" / "agentbench-dbbench"
official = pytest.mark.skipif(not DBBENCH.is_dir(), reason=f"DBBench is not at {DBBENCH}")
WITHOUT_ITS_OWN_TABLE = {"standard-225"}  # no subset of its rows that is changed so has the recorded MD5


def task(answer: dict[str, Any], kind: str = "UPDATE", rows: tuple[tuple[str, ...], ...] = (("a", "1"), ("b", "2"))) -> Task:
    return Task("mine", "Do it.", answer, data={"type": kind, "table": "My Table", "columns": ("Name", "No."), "rows": rows})


def begun(task: Task) -> Database:
    env = Database()
    env.reset(seed=0, options={"task": task})
    return env


def test_the_md5_of_a_table_is_that_of_its_rows_in_any_order() -> None:
    assert fingerprint([("a", "1"), ("b", None)]) == fingerprint([("b",), ("a", "1")]) == "ad86a49787fa7d873f4c976f7d8ed2a6"
    assert fingerprint([("a", "1"), ("b", "2")]) != fingerprint([("a", "1"), ("b", "3")])


@pytest.mark.parametrize(
    ("given", "labels", "same"),
    [
        (["12"], ["12.0"], True),
        ([" Ann "], ["Ann"], True),
        (["ann"], ["Ann"], False),
        (["b", "a", "a"], ["a", "b"], True),
        (["a"], ["a", "b"], False),
        (["None"], ["0"], True),
        ([""], ["0.0"], True),
        ([], ["0"], False),
        (["12,5"], ["12.5"], False),
    ],
)
def test_answers_are_compared_as_sets_and_numbers_by_value(given: list[str], labels: list[str], same: bool) -> None:
    assert same_answers(given, labels) is same


def test_a_change_is_graded_by_the_table_and_a_question_by_what_was_submitted() -> None:
    wanted = {"md5": fingerprint([("a", "1"), ("b", "3")]), "statement": ""}
    env = begun(task(wanted))
    assert env.step(call("execute", sql="UPDATE `My Table` SET `No.` = 3 WHERE Name = 'B'"))[0] == "[]"
    assert env.step(call("execute", sql="SELECT * FROM `My Table`"))[0] == "[('a', '1'), ('b', '3')]"
    assert float(env.step(call("submit", answers=[]))[1]) == 1.0
    assert begun(task(wanted)).step(call("submit", answers=["done"]))[1] == 0.0
    assert begun(task({"labels": ["2"]}, "other")).step(call("submit", answers=["2.0"]))[1] == 1.0


def test_a_change_counts_where_the_turns_run_out_and_a_question_does_not() -> None:
    env = begun(task({"md5": fingerprint([("a", "1")]), "statement": ""}))
    env.step(call("execute", sql="DELETE FROM `My Table` WHERE Name = 'b'"))
    assert env.stop("budget")[0] == 1.0
    assert begun(task({"labels": [""]}, "other")).stop("budget")[0] == 0.0


def test_a_table_that_is_gone_is_worth_nothing_and_voids_nothing() -> None:
    env = begun(task({"md5": fingerprint([]), "statement": ""}))
    env.step(call("execute", sql="DROP TABLE `My Table`"))
    assert float(env.step(call("submit", answers=[]))[1]) == 0.0


@pytest.mark.parametrize(
    ("types", "values", "texts"),
    [
        ("a INT, b DECIMAL(5,2), c DOUBLE, d DATE, e TEXT", "3, 1.5, 2.50, '2020-01-31', 'x'", ("3", "1.50", "2.5", "2020-01-31", "x")),
        ("a INT, b DECIMAL(9,8), c DOUBLE", "NULL, 0, 1e20", (None, "0.00000000", "1e20")),
        ("a DECIMAL(60,99), b TEXT", "9e99, 7", None),
        ("a INT, b DOUBLE, c FLOAT, d DECIMAL", "9e999, 9e999, 9e999, 9e999", None),
        ("a DATE, b TIME, c DATETIME", "9e999, '-99:99', 5", None),
    ],
)
def test_a_table_of_other_columns_is_compared_as_mysql_writes_it(types: str, values: str, texts: tuple[str | None, ...] | None) -> None:
    env = begun(task({"md5": fingerprint([texts or ()]), "statement": ""}))
    for statement in ("DROP TABLE `My Table`", f"CREATE TABLE `My Table` ({types})", f"INSERT INTO `My Table` VALUES ({values})"):
        assert env.step(call("execute", sql=statement))[0] == "[]"
    assert float(env.step(call("submit", answers=[]))[1]) == float(texts is not None)


def test_a_column_that_is_added_with_a_number_as_its_default_voids_nothing() -> None:
    env = begun(task({"md5": fingerprint([("a", "1", "5"), ("b", "2", "5")]), "statement": ""}))
    env.step(call("execute", sql="ALTER TABLE `My Table` ADD COLUMN n INT DEFAULT 5"))
    assert float(env.step(call("submit", answers=[]))[1]) == 1.0


def test_refusals_and_long_results_are_read() -> None:
    env = begun(task({"labels": ["x"]}, "other", rows=(("x" * 3000, "1"),)))
    text, _, _, _, info = env.step(call("execute", sql="SELECT * FROM nowhere"))
    assert (text, info["outcome"]) == ("Error: Table 'database.nowhere' doesn't exist", Outcome.TOOL_ERROR)
    text = env.step(call("execute", sql="SELECT * FROM `My Table`"))[0]
    assert text.endswith("… (1 rows)")
    assert len(text) < LONGEST_RESULT + 20


def test_a_fork_has_its_own_table() -> None:
    env = begun(task({"md5": fingerprint([("a", "1")]), "statement": ""}))
    saved = env.snapshot()
    env.step(call("execute", sql="DELETE FROM `My Table` WHERE Name = 'b'"))
    other = Database()
    other.restore(saved)
    assert (env.score(), other.score()) == (1.0, 0.0)


def test_tasks_of_our_own_are_solved_by_their_gold_actions_and_by_nothing_less() -> None:
    env = Database()
    for split in SIZES:
        for one in stock_tasks(split)[: 6 * len(KINDS)]:
            env.reset(seed=0, options={"task": one})
            assert env.score() == 0.0, one
            assert float([env.step(action) for action in env.gold(one)][-1][1]) == 1.0, one


@official
def test_official_tasks_are_solved_by_their_own_statements_and_answers() -> None:
    env = Database(DBBENCH)
    assert set(env.splits) == {"standard", "dev"}
    for split in env.splits:
        failed = set()
        for one in env.tasks(split):
            env.reset(seed=0, options={"task": one})
            if float([env.step(action) for action in env.gold(one)][-1][1]) != 1.0:
                failed.add(one.id)
        assert failed <= WITHOUT_ITS_OWN_TABLE


def test_bad_rows_are_named_with_file_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match="holds no DBBench tasks"):
        Database(tmp_path)
    table = {"table_name": "t", "table_info": {"columns": [{"name": "x"}], "rows": [["1"]]}}
    ragged = {**table, "table_info": {"columns": [{"name": "x"}], "rows": [["1", "2"]]}}
    good = {"id": "a", "description": "?", "type": ["other"], "label": ["1"], "table": table}
    path = tmp_path / "dev.jsonl"
    for change, words in (
        ({"type": ["INSERT"]}, "a change needs the MD5 of its table"),
        ({"table": ragged}, r"table\.table_info: .*a row has not 1 values"),
        ({"label": []}, "label: List should have at least 1 item"),
    ):
        path.write_text(f"{json.dumps(good)}\n{json.dumps({**good, **change})}\n")
        with pytest.raises(AgentGymError, match=rf"dev\.jsonl, line 2: .*{words}"):
            Database(tmp_path)
