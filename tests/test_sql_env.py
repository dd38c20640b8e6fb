"""Questions about databases: the grade, best counts, forks, bad data, and InterCode's recorded runs played again."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import AgentGymError, Outcome, Task, call
from agentgym.envs.sql import FAILED, LONGEST_ANSWER, Sql
from agentgym.envs.sql.grading import alike
from agentgym.envs.sql.markets import SIZES, market_tasks

INTERCODE = Path(__file__).parents[2] / "shared" / "data" / "intercode" / "sql"
official = pytest.mark.skipif(not INTERCODE.is_dir(), reason=f"InterCode's SQL tasks are not at {INTERCODE}")
RECORDED = 400  # characters of a recorded observation
Run = dict[str, Any]


def begun(task: Task, **options: Any) -> Sql:
    env = Sql(**options)
    env.reset(seed=0, options={"task": task})
    return env


def execute(env: Sql, sql: str) -> tuple[str, float, bool]:
    text, reward, done, _, _ = env.step(call("execute", sql=sql))
    return text, float(reward), done


def question(gold: str) -> Task:
    return Task("mine", "Say it.", gold, data={"db": "market_train_0", "hardness": ""})


def test_the_grade_is_the_share_of_rows_in_common() -> None:
    assert alike([], []) == 1.0
    assert alike([(1,)], []) == alike([], [(1,)]) == 0.0
    assert alike([(1,), (1,), (2,)], [(1,), (2,), (3,)]) == 2 / 4
    assert alike([(1,)], [("1",)]) == 0.0
    assert alike([(2,), (1,)], [(1,), (2,)]) == 1.0


def test_order_counts_where_it_is_asked_for() -> None:
    rows = [(1,), (2,), (3,)]
    assert alike(rows, rows, ordered=True) == alike([(1,)], [(1,)], ordered=True) == 1.0
    assert alike(rows[::-1], rows, ordered=True) == 0.0
    assert alike([(1,), (3,), (2,)], rows, ordered=True) == pytest.approx(1 / 3)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_the_grade_is_1_for_equal_results_and_no_others(a: list[int], b: list[int]) -> None:
    one, other = [(value,) for value in a], [(value,) for value in b]
    assert (alike(one, other) == 1.0) == (sorted(a) == sorted(b))
    assert alike(one, other) == alike(other, one)


def test_a_turn_earns_what_it_adds_to_the_best_answer_and_a_perfect_one_ends() -> None:
    env = begun(question("SELECT 1 UNION ALL SELECT 2"))
    assert execute(env, "SHOW TABLES") == ("[('shop',), ('town',)]\nReward: 0.0", 0.0, False)
    assert execute(env, "SELECT 1") == ("[(1,)]\nReward: 0.5", 0.5, False)
    assert execute(env, "SELECT 3") == ("[(3,)]\nReward: 0.0", 0.0, False)
    assert execute(env, "SELECT 1") == ("[(1,)]\nReward: 0.5", 0.0, False)
    assert execute(env, "SELECT 2 UNION SELECT 1")[1:] == (0.5, True)
    assert env.metrics() == {"solved": 1.0}


def test_a_refusal_is_read_and_earns_nothing() -> None:
    env = begun(question("SELECT 1"))
    text, reward, _, _, info = env.step(call("execute", sql="SELECT nothing FROM shop"))
    assert (text, float(reward), info["outcome"]) == (
        f"{FAILED}Unknown column 'nothing' in 'field list'\nReward: 0.0", 0.0, Outcome.TOOL_ERROR
    )  # fmt: skip


def test_emptying_a_table_does_not_empty_what_is_expected() -> None:
    env = begun(question("SELECT owner FROM shop"))
    assert execute(env, "DELETE FROM shop")[0] == "None\nReward: 0.0"
    assert execute(env, "SELECT owner FROM shop")[:2] == ("[]\nReward: 0.0", 0.0)


def test_a_long_result_is_cut_for_the_reader_and_graded_in_full() -> None:
    many = "SELECT a.id, b.id, c.id FROM shop a, shop b, shop c"
    text, reward, done = execute(begun(question(many)), many)
    assert (reward, done) == (1.0, True)
    assert LONGEST_ANSWER < len(text) < LONGEST_ANSWER + 50


def test_a_fork_has_the_writes_before_it_and_not_those_after() -> None:
    env = begun(question("SELECT COUNT(*) FROM shop"))
    execute(env, "DELETE FROM shop")
    saved = env.snapshot()
    execute(env, "INSERT INTO shop (id, owner) VALUES (1, 'Zed')")
    assert execute(env, "SELECT owner FROM shop")[0].startswith("[('Zed',)]")
    other = Sql()
    other.restore(saved)
    assert execute(other, "SELECT owner FROM shop")[0].startswith("[]")


def test_every_question_of_our_own_is_answered_by_its_query_and_splits_share_no_database() -> None:
    env = Sql()
    databases = defaultdict(set)
    for split in SIZES:
        for task in market_tasks(split)[:60]:
            databases[split].add(task.data["db"])
            env.reset(seed=0, options={"task": task})
            assert [float(env.step(action)[1]) for action in env.gold(task) or ()] == [1.0], task
    assert not databases["train"] & databases["test"]
    assert not databases["train"] & databases["validation"]


def test_bad_data_are_named_with_file_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match=r"holds no InterCode SQL tasks: give a folder with spider_dev\.jsonl"):
        Sql(tmp_path)
    (tmp_path / "spider_dbs_mysql.sql").write_text("USE `d`;\nCREATE TABLE `t` (`x` int);\n")
    rows = tmp_path / "spider_dev.jsonl"
    rows.write_text('{"id": "a", "db": "d", "query": "?", "gold": "SELECT 1"}\n{"id": "b", "db": "e", "query": "?", "gold": "SELECT 1"}\n')
    with pytest.raises(AgentGymError, match=r"spider_dev\.jsonl, line 2: db: .* has no database 'e'"):
        Sql(tmp_path)
    rows.write_text('{"id": "a", "db": "d", "query": "?"}\n')
    with pytest.raises(AgentGymError, match=r"spider_dev\.jsonl, line 1: gold: Field required"):
        Sql(tmp_path)


# InterCode's own.


def recorded_runs() -> list[tuple[Task, Run]]:
    runs = {run["id"]: run for run in map(json.loads, (INTERCODE / "replay_gpt4_10turns.jsonl").read_text().splitlines())}
    return [(task, runs[task.id]) for task in Sql(INTERCODE).tasks("dev") if task.id in runs]


@pytest.mark.long
@official
def test_every_query_of_a_task_earns_full_reward_where_mysql_does_not_refuse_it() -> None:
    env = Sql(INTERCODE)
    tasks = env.tasks("dev")
    refused = [task for task in tasks if env.gold(task) is None]
    assert len(refused) <= 0.03 * len(tasks)
    for task in tasks:
        env.reset(seed=0, options={"task": task})
        assert [float(env.step(action)[1]) for action in env.gold(task) or ()] == [1.0] * (task not in refused), task


@pytest.mark.long
@official
def test_recorded_runs_of_gpt_4_are_answered_and_rewarded_alike() -> None:
    env, turns, answers, grades = Sql(INTERCODE), 0, 0, 0
    replayed, recorded = [], []
    for task, run in recorded_runs():
        env.reset(seed=0, options={"task": task})
        for action, observation, reward in zip(run["actions"], run["observations"], run["rewards"], strict=True):
            if observation.startswith("Format your SQL"):  # said by the player of the record, not by the server
                continue
            text = env.step(call("execute", sql=action))[0]
            answer, _, grade = text.rpartition("\nReward: ")
            turns += 1
            answers += answer[:RECORDED] == observation
            grades += abs(float(grade) - reward) < 1e-3
            if env.ended:
                break
        replayed.append(env.state.best == 1.0)
        recorded.append(max(run["rewards"]) == 1.0)
    assert answers >= 0.97 * turns, answers / turns
    assert grades >= 0.99 * turns, grades / turns
    assert abs(sum(replayed) - sum(recorded)) <= 0.01 * len(recorded), (sum(replayed), sum(recorded), len(recorded))
