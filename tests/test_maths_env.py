"""Questions answered with an interpreter: tool calls and interleaved blocks, verdicts, rewards and data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import agentgym
from agentgym import AgentGymError, Outcome, Task, call
from agentgym.envs.maths import Maths
from agentgym.envs.maths.grading import Comparison, boxed, equivalent, retool
from agentgym.envs.maths.tasks import SIZES, code_of, maths_tasks

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "math"
TASK = Task("t", "What is 6 times 7?", "42")


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Maths().sandbox
    except AgentGymError as error:
        pytest.skip(str(error))


@pytest.fixture
def env(sandbox):
    env = Maths(sandbox=sandbox)
    env.reset(options={"task": TASK})
    return env


def test_variables_stay_and_a_failed_cell_leaves_none(env):
    assert env.step(call("python", code="x = 6"))[0] == "It printed nothing."
    assert "ZeroDivisionError" in env.step(call("python", code="x = 0\n1 / 0"))[0]
    assert env.step(call("python", code="print(x * 7)"))[0] == "42"
    assert env.step(call("answer", text="42"))[1:3] == (1.0, True)


def test_blocks_and_boxes_do_the_same_as_tool_calls(env):
    assert env.step("I compute.\n```python\nx = 6\nprint(x)\n```")[0] == "```output\n6\n```"
    assert env.step("<think>next</think>```python\nprint(x * 7)\n```\nSo?")[0] == "```output\n42\n```"
    observation, reward, terminated, _, info = env.step("It is $\\boxed{\\frac{84}{2}}$.")
    assert (observation, reward, terminated) == ("Answered.", 1.0, True)
    assert info["metrics"] == {"right": 1.0, "cells": 2.0}


def test_of_a_block_and_a_box_the_last_counts(env):
    assert env.step("\\boxed{1}\n```python\nprint(5)\n```")[0] == "```output\n5\n```"
    assert env.step("```python\nprint(5)\n```\n\\boxed{1}")[1:3] == (0.0, True)


def test_neither_is_a_mistake_of_the_policy(env):
    observation, _, terminated, _, info = env.step("I do not know. ```python\nprint(1)")
    assert (info["outcome"], terminated) == (Outcome.MODEL_ERROR, False)
    assert "boxed" in observation


def test_every_turn_can_be_re_entered_with_its_variables(env):
    env.step(call("python", code="import random; x = random.random()"))
    first = env.step(call("python", code="x = 1; print(x)"))[0]
    fork = env.snapshot()
    env.step(call("python", code="x = 2"))
    env.restore(fork)
    assert env.step(call("python", code="print(x)"))[0] == first == "1"


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("0.5", "\\frac{1}{2}", True),
        ("42.0", "42", True),
        ("43,500", "43500", True),
        ("(1, 2)", "(1,2)", True),
        ("\\{2, 1\\}", "\\{1, 2\\}", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        ("41", "42", False),
        ("", "42", False),
        ("42" + " " * 600, "42", False),
        ("9^{9^{9^{9^{9}}}}", "42", False),
    ],
)
def test_answers_are_compared_as_mathematics(answer, expected, same):
    pytest.importorskip("math_verify")
    assert equivalent(answer, expected) is same


def test_a_fork_of_the_host_asks_a_process_of_its_own():
    pytest.importorskip("math_verify")
    comparison, right = Comparison(), False
    assert comparison.ask("1/2", "0.5")
    asked = comparison._process
    if (child := os.fork()) == 0:
        try:
            right = comparison.ask("1/2", "0.5") and comparison._process is not asked
            comparison.close()
        finally:
            os._exit(not right)
    assert os.waitpid(child, 0)[1] == 0
    assert comparison._process is asked
    assert not comparison.ask("1/2", "0.6")
    comparison.close()


def test_the_comparing_process_is_started_anew_when_it_dies():
    pytest.importorskip("math_verify")
    comparison = Comparison()
    assert comparison.ask("0.5", "1/2")
    comparison._process.kill()
    comparison._process.wait()
    assert comparison.ask("0.25", "1/4")
    comparison.close()


def test_what_is_imported_for_the_first_comparison_is_no_cost_of_an_answer(tmp_path):
    """A stand-in for the library, which takes more processor time to import than an answer may cost."""
    library = """
import time
while time.process_time() < 2.1: pass
parse = lambda text, **_: text
verify = lambda expected, answer, **_: expected == answer
"""
    (tmp_path / "math_verify.py").write_text(library)
    program = "from agentgym.envs.maths import checker; checker.CPU_SECONDS = 1; checker.main()"
    found = {**os.environ, "PYTHONPATH": str(tmp_path)}
    asked = subprocess.run([sys.executable, "-c", program], input='["1", "1"]\n', capture_output=True, text=True, env=found)
    assert asked.stdout == "true\n"


def test_a_formula_of_the_question_is_no_answer(sandbox):
    pytest.importorskip("math_verify")
    rows = [{"problem": "Compute $5^5 \\div 5^4 - 125$.", "answer": "-120"}, {"problem": "Is 7 or 12 larger?", "answer": "12"}]
    env = Maths(rows, sandbox=sandbox)
    sums, larger = env.tasks("test")
    for task, answer, reward in ((sums, "5^5\\div5^4-125", 0.0), (sums, "-120.0", 1.0), (larger, "12.0", 1.0), (larger, "12", 1.0)):
        env.reset(options={"task": task})
        assert env.step(call("answer", text=answer))[1] == reward, answer


def test_the_last_closed_box_is_the_answer():
    assert boxed("\\boxed{1} and \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert boxed("\\boxed{1") is None
    assert boxed("none") is None


def test_retools_reward_is_that_of_the_reference():
    assert [round(retool(False, turns), 6) for turns in (2, 4, 8, 10, 14)] == [-1.0, -0.9, -0.7, -0.6, -0.6]
    assert {retool(True, turns) for turns in (1, 9)} == {1.0}


def test_a_wrong_answer_after_four_turns_earns_its_shaped_reward(sandbox):
    env = Maths(sandbox=sandbox, reward=retool)
    env.reset(options={"task": TASK})
    for _ in range(3):
        env.step(call("python", code="pass"))
    assert env.step(call("answer", text="1"))[1] == pytest.approx(-0.9)


def test_gold_is_right_and_no_question_is_in_two_splits(env):
    prompts = [task.prompt for split in SIZES for task in maths_tasks(split)]
    assert len(prompts) == len(set(prompts)) == sum(SIZES.values())
    for task in maths_tasks("validation")[:12]:
        env.reset(options={"task": task})
        printed, *_, last = [env.step(action) for action in env.gold(task)]
        assert (printed[0], last[1]) == (task.answer, 1.0)
        assert code_of(task.prompt) is not None


def test_recorded_programs_print_what_they_printed_then_and_are_graded_alike(sandbox):
    path = DATA / "replay_tora_code34b_gsm8k.jsonl"
    if not path.is_file():
        pytest.skip(f"there is no {path.name} beside the repository")
    pytest.importorskip("math_verify")
    rows = [json.loads(line) for line in path.read_text().splitlines()[:40]]
    env = Maths([{"id": row["id"], "problem": row["id"], "answer": row["gt"]} for row in rows], sandbox=sandbox)
    right = 0.0
    for row in rows:
        code, _, rest = row["code"].partition("```output\n")
        printed, _, words = rest.partition("```")
        if "sympy" in code or not printed or "\\boxed" not in words:
            continue
        env.reset(options={"task": row["id"]})
        if "Error" not in printed:
            assert env.step(code)[0] == f"```output\n{printed.strip()}\n```", row["id"]
        right += env.step(words)[1] == float(float(row["pred"].replace(",", "")) == float(row["gt"].replace(",", "")))
    assert right >= 30


def test_a_bad_row_is_named():
    with pytest.raises(AgentGymError, match="row 1: answer: Field required"):
        Maths([{"problem": "?"}])
    with pytest.raises(AgentGymError, match="holds no problems"):
        Maths([])
    with pytest.raises(AgentGymError, match="row 2: there is a task 'a' already"):
        Maths([{"id": "a", "problem": "?", "answer": "1"}, {"id": "a", "problem": "!", "answer": "2"}])


def test_it_is_a_gymnasium_environment_by_name():
    assert isinstance(agentgym.make("agentgym/Maths-v0"), Maths)
