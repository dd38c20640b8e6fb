"""Exercises handed in, judged by hidden suites of unittest, and handed in once more."""

from pathlib import Path
from random import Random

import pytest

import agentgym
from agentgym import AgentGymError, Outcome, call
from agentgym.envs.polyglot import Polyglot
from agentgym.envs.polyglot.decoys import with_decoys
from agentgym.envs.polyglot.grading import grade

FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "aider-polyglot-python" / "python.jsonl"
TESTS = {"inc_test.py": "import unittest\nfrom inc import inc\nclass T(unittest.TestCase):\n"}
for given in range(12):
    TESTS["inc_test.py"] += f"    def test_{given}(self):\n        self.assertEqual(inc({given}), {given + 1})\n"
RIGHT = "def inc(x):\n    return x + 1\n"

EQUALS_ALL = "class Any(int):\n    __hash__ = int.__hash__\n    __eq__ = lambda *given: True\ndef inc(x):\n    return Any(0)\n"
SILENCES = "import unittest\nunittest.TestCase.assertEqual = lambda *given: None\ndef inc(x):\n    return 0\n"
SILENCES_ALL = "import unittest\nunittest.TestResult.addFailure = lambda *given: None\ndef inc(x):\n    return 0\n"
READS = "import sys\ndef inc(x):\n    return next(k for k in sys._getframe(1).f_code.co_consts[::-1] if isinstance(k, int) and k != x)\n"
WRITES = "import json, os\nopen('.outcomes', 'w').write(json.dumps([True] * {}))\nos._exit(0)\n"
PLANTS = "import os\nopen('inc_test.py', 'w').write('')\ndef inc(x):\n    return 0\n"
FORGERIES = {"equals all": EQUALS_ALL, "silences": SILENCES, "silences all": SILENCES_ALL, "reads": READS, "plants": PLANTS}
FORGERIES |= {f"writes {count}": WRITES.format(count) for count in (12, 24)}


@pytest.fixture(scope="module")
def env():
    env = Polyglot()
    try:
        env._sandbox.run("pass")
    except AgentGymError as error:
        pytest.skip(str(error))
    return env


@pytest.fixture(scope="module")
def official(env):
    if not FILE.is_file():
        pytest.skip(f"there is no {FILE.name} of aider-polyglot-python beside the repository")
    return Polyglot(FILE)


def played(env, task, actions):
    env.reset(options={"task": task})
    return [env.step(action) for action in actions]


def graded(env, program):
    return grade(env._sandbox, {"inc.py": program.encode()}, TESTS, "inc")


def test_every_example_passes_at_first_and_every_stub_fails_twice(official):
    for task in official.tasks("test"):
        *_, last = played(official, task, official.gold(task))
        assert (last[1], last[2]) == (1.0, True), task.id
        assert last[4]["metrics"] == {"pass_rate_1": 1.0, "pass_rate_2": 1.0, "sound": 1.0}
        first, second = played(official, task, [call("submit")] * 2)
        assert (first[2], second[1], second[2]) == (False, 0.0, True), task.id
        assert second[4]["metrics"] == {"pass_rate_1": 0.0, "pass_rate_2": 0.0, "sound": 1.0}


def test_most_tests_of_every_exercise_have_a_twin(official):
    for task in official.tasks("test"):
        suites = [with_decoys(source, Random(3)) for source in task.answer["tests"].values()]
        twins = [twin for suite in suites for _, twin in suite.tests]
        assert sum(twin is not None for twin in twins) * 3 >= len(twins), task.id


def test_what_the_tests_said_helps_at_the_second_try(env):
    task = env.tasks("train")[0]
    (path, text), *_ = task.answer["example"].items()
    wrong, first, mended, second = played(
        env,
        task,
        [
            call("write", path=path, text=text.replace("low > high", "low < 0")),
            call("submit"),
            call("edit", path=path, old="low < 0", new="low > high"),
            call("submit"),
        ],
    )
    assert wrong[0] == f"Wrote {path}."
    assert "ValueError not raised" in first[0]
    assert " in 0." not in first[0]  # nothing that another run would say otherwise
    assert (second[1], second[2]) == (1.0, True)
    assert second[4]["metrics"] == {"pass_rate_1": 0.0, "pass_rate_2": 1.0, "sound": 1.0}
    assert mended[3] is False


def test_a_right_program_passes_and_a_wrong_one_fails(env):
    verdict = graded(env, RIGHT)
    assert verdict.passes
    assert verdict.of == 12
    assert graded(env, "def inc(x):\n    return x + 1 if x < 11 else 0\n").passed == 11
    assert graded(env, "def inc(x:").passed == 0


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_program_earns_a_verdict_by_other_means(env, program):
    assert not graded(env, program).passes


def test_the_tests_are_nowhere_before_they_judge(env):
    for task in env.tasks("train"):
        env.reset(options={"task": task})
        assert not set(dict(env.state.files)) & set(task.answer["tests"])
        assert not any(source in task.prompt for source in task.answer["tests"].values())
        missing = env.step(call("read", path=next(iter(task.answer["tests"]))))
        assert missing[4]["outcome"] is Outcome.TOOL_ERROR


def test_a_program_can_leave_nothing_for_its_second_try(env):
    task = env.tasks("train")[0]
    played(env, task, [call("write", path="clamp.py", text="open('left', 'w').write('x')\n"), call("submit")])
    assert "left" not in dict(env.state.files)


@pytest.mark.parametrize(
    "action",
    [
        call("edit", path="clamp.py", old="pass\n\n", new=""),
        call("edit", path="clamp.py", old="", new="x"),
        call("edit", path="none.py", old="a", new="b"),
        call("write", path="../clamp.py", text=""),
        call("write", path="/clamp.py", text=""),
        call("write", path="clamp.py/x", text=""),
        call("write", path="large", text="x" * 2**20),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(env, action):
    env.reset(options={"task": env.tasks("train")[0]})
    before = env.state
    assert env.step(action)[4]["outcome"] is Outcome.TOOL_ERROR
    assert env.state is before


def test_every_turn_can_be_re_entered(env):
    task = env.tasks("train")[1]
    env.reset(options={"task": task})
    start = env.snapshot()
    env.step(call("submit"))
    after = env.snapshot()
    for snapshot, rates in ((after, (0.0, 1.0)), (start, (1.0, 1.0))):
        env.restore(snapshot)
        *_, last = [env.step(action) for action in env.gold(task)]
        assert (last[4]["metrics"]["pass_rate_1"], last[4]["metrics"]["pass_rate_2"]) == rates


SUITE = """import unittest
from unittest import mock
class Case(unittest.TestCase):
    def test_literal(self):
        self.assertEqual(f(1), [1, "a"])
    def test_name(self):
        expected = {"a": 1}
        self.assertEqual(f(1), expected)
    def test_input_is_not_changed(self):
        given = [1]
        self.assertEqual(f(given), given)
    def test_truth(self):
        self.assertTrue(f(1))
    def test_error(self):
        with self.assertRaises(ValueError):
            self.assertEqual(f(1), 5)
    @mock.patch("f.open")
    def test_patched(self, opened):
        self.assertIs(f(1), True)
    @unittest.skip("no")
    def test_skipped(self):
        self.assertEqual(f(1), 2)
"""


def test_twins_differ_in_what_is_expected_alone():
    for seed in range(30):
        suite = with_decoys(SUITE, Random(seed))
        space = {}
        exec(suite.source.replace("mock.patch('f.open')", "(lambda test: lambda self: test(self, None))"), space)
        twins = [twin is not None for _, twin in suite.tests]
        assert twins == [True, True, False, True, False, True, False]
        assert len(set(suite.cases)) == len(suite.cases) == 11
        for answer, place in (([1, "a"], 0), ({"a": 1}, 1), (True, 3), (True, 5)):
            space["f"] = lambda x, answer=answer: answer
            test, twin = suite.tests[place]
            outcomes = [space[owner](name).run().wasSuccessful() for owner, name in (suite.cases[test], suite.cases[twin])]
            assert outcomes == [True, False]


@pytest.mark.parametrize("source", ["class T:", "x = 1", "class T:\n    def check(self): pass"])
def test_a_text_that_is_no_suite_is_refused(source):
    with pytest.raises(AgentGymError, match="a suite of tests"):
        with_decoys(source, Random(0))


@pytest.mark.parametrize(("change", "reason"), [({"test_files": {}}, "test_files"), ({"id": ""}, "id"), ({"example": 5}, "example")])
def test_a_bad_row_is_named(change, reason):
    row = {"id": "a", "instructions": "i", "solution_files": {"a.py": ""}, "test_files": {"t.py": ""}}
    with pytest.raises(AgentGymError, match=f"row 1: {reason}"):
        Polyglot([row | change])


def test_it_is_made_by_its_class_path():
    assert isinstance(agentgym.make("agentgym.envs.polyglot:Polyglot"), Polyglot)
