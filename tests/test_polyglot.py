"""Exercises handed in, judged by hidden suites of unittest, and handed in once more."""

from pathlib import Path
from random import Random

import pytest

import agentgym
from agentgym import AgentGymError, Outcome, call
from agentgym.envs.polyglot import Polyglot, grading
from agentgym.envs.polyglot.decoys import with_decoys
from agentgym.envs.polyglot.grading import Verdict, grade, shown

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
SKIPS = "import unittest\ndef inc(x):\n    raise unittest.SkipTest('no')\n"
FORGERIES |= {"skips": SKIPS, "writes nothing": WRITES.format(24).replace("True", "None")}
FORGERIES |= {f"writes {count}": WRITES.format(count) for count in (12, 24)}

# Knows task, suite and files, and computes from these alone what the judge might have drawn from them.
COMPUTES = """
import ast, hashlib, json, os, random, sys
def constants(kind):
    frame = sys._getframe()
    while frame:
        yield from (const for const in frame.f_code.co_consts if isinstance(const, kind))
        frame = frame.f_back
def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8)
*_, cases = (const for const in constants(tuple) if const and isinstance(const[0], tuple))
*_, source = (const for const in constants(str) if "def test_" in const)
shapes = {}
for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
        numbers = [const for const in ast.walk(node) if isinstance(const, ast.Constant)]
        shapes[node.name] = numbers[-1].value
files = [["inc.py", open("inc.py", "rb").read().hex()]]
path = (0, "polyglot", "inc", "inc_test.py", digest(json.dumps([files], separators=(",", ":"))).hexdigest())
key = "/".join(f"{type(name).__name__}:{len(str(name))}:{name}" for name in path)
rng = random.Random(int.from_bytes(digest(key).digest(), "big") >> 1)
true, seen = set(), set()
for number in rng.sample(range(10**6), len(cases)):
    name = f"test_{number}"
    if name in shapes and shapes[name] not in seen:
        seen.add(shapes[name])
        true.add(name)
with open(".outcomes", "w") as file:
    json.dump([name in true for _, name in cases], file)
os._exit(0)
"""
FORGERIES["computes"] = COMPUTES


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
        twins = [pair.twin for suite in suites for pair in suite.pairs]
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
        assert [pair.may_skip for pair in suite.pairs] == [False] * 6 + [True]
        space = {}
        exec(suite.source.replace("mock.patch('f.open')", "(lambda test: lambda self: test(self, None))"), space)
        twins = [pair.twin is not None for pair in suite.pairs]
        assert twins == [True, True, False, True, False, True, False]
        assert len(set(suite.cases)) == len(suite.cases) == 11
        for answer, place in (([1, "a"], 0), ({"a": 1}, 1), (True, 3), (True, 5)):
            space["f"] = lambda x, answer=answer: answer
            pair = suite.pairs[place]
            outcomes = [space[owner](name).run().wasSuccessful() for owner, name in (suite.cases[pair.test], suite.cases[pair.twin])]
            assert outcomes == [True, False]


def test_neither_names_nor_order_tell_which_test_is_true():
    first = [0, 0, 0]
    for seed in range(200):
        suite = with_decoys(TESTS["inc_test.py"], Random(seed))
        for pair in suite.pairs[:3]:
            test, twin = suite.cases[pair.test][1], suite.cases[pair.twin][1]
            orders = (pair.test < pair.twin, test < twin, suite.source.index(test) < suite.source.index(twin))
            first = [count + before for count, before in zip(first, orders, strict=True)]
    assert all(230 < count < 370 for count in first)  # of 600


def test_twins_are_drawn_from_a_secret_of_the_process(env, monkeypatch):
    drawn = []
    monkeypatch.setattr(grading, "_judged", lambda sandbox, files, suite: drawn.append(suite) or Verdict(1, 1))
    for _ in range(2):
        graded(env, RIGHT)
    monkeypatch.setattr(grading, "_SECRET", grading._SECRET + 1)
    graded(env, RIGHT)
    assert drawn[0] == drawn[1] != drawn[2]


CLASS = "import unittest\nfrom contextlib import suppress\nfrom f import f\n"
CLASS += "class T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(3), 150)\n"
TEST, EQUAL = "    def test_a(self):\n", "        self.assertEqual(f(2), 100)\n"
ORDINARY = {
    "delta": f"{TEST}        self.assertAlmostEqual(f(2), 100.0, delta=5)\n",
    "places": f"{TEST}        self.assertAlmostEqual(f(2), 1000.0, -4)\n",
    "large": f"{TEST}        self.assertEqual(f(2) * 1e30, 1e32)\n",
    "large and whole": f"{TEST}        self.assertAlmostEqual(f(2) * 1e30, 1{32 * '0'})\n",
    "returns": f"{TEST}        if f(2) == 100:\n            return\n{EQUAL}",
    "suppresses": f"{TEST}        with suppress(AssertionError):\n    {EQUAL}",
    "its own": f"class S(unittest.TestCase):\n    def assertEqual(self, one, other): pass\n{TEST}        self.assertEqual(f(2), 9)\n",
    "keys": f"{TEST}        self.assertCountEqual([f(2)], {{100: 1}})\n",
    "skips": f"{TEST}        self.skipTest('no')\n{EQUAL}",
    "skipped": f"@unittest.skip('no')\nclass S(unittest.TestCase):\n{TEST}{EQUAL}",
    "skips all": f"class S(unittest.TestCase):\n    def setUp(self):\n        self.skipTest('no')\n{TEST}{EQUAL}",
    "fails": f"@unittest.expectedFailure\nclass S(unittest.TestCase):\n{TEST}        self.assertEqual(f(2), 0)\n",
    "mixed in": f"class M:\n{TEST}{EQUAL}class S(M, unittest.TestCase):\n    pass\n",
    "inherits": f"class S(T):\n    def test_f(self):\n{EQUAL}",
    "waits": f"class S(unittest.IsolatedAsyncioTestCase):\n    async{TEST[3:]}{EQUAL}",
}


@pytest.mark.parametrize("tests", ORDINARY.values(), ids=ORDINARY)
def test_a_right_program_passes_an_ordinary_suite_and_a_wrong_one_does_not(env, tests):
    row = {"id": "a", "instructions": "i", "solution_files": {"f.py": ""}, "test_files": {"t.py": CLASS + tests}}
    (task,) = Polyglot([row]).tasks("test")
    for seed in range(2):
        suite = with_decoys(task.answer["tests"]["t.py"], Random(seed))
        assert grading._judged(env._sandbox, {"f.py": b"def f(x): return 50 * x"}, suite).passes
        assert not grading._judged(env._sandbox, {"f.py": b"def f(x): return x"}, suite).passes
        assert not grading._judged(env._sandbox, {"f.py": SKIPS.replace("inc", "f").encode()}, suite).passes


def test_an_asynchronous_suite_is_judged(env):
    tests = f"import unittest\nfrom f import f\nclass S(unittest.IsolatedAsyncioTestCase):\n    async{TEST[3:]}{EQUAL}"
    assert grade(env._sandbox, {"f.py": b"def f(x): return 50 * x"}, {"t.py": tests}, "a").passes
    assert not grade(env._sandbox, {"f.py": b"def f(x): return x"}, {"t.py": tests}, "a").passes


def test_the_policy_reads_the_report_and_not_what_its_program_prints(env):
    prints = "import sys\nfor stream in (sys.stdout, sys.stderr, sys.__stdout__):\n    print('leaked', file=stream)\n"
    programs = {RIGHT.replace("1", "2"): "AssertionError: 2 != 1", "def inc(x:": "SyntaxError", "raise SystemExit": "SystemExit"}
    for program, said in programs.items():
        report = shown(env._sandbox, {"inc.py": (prints + program).encode()}, TESTS)
        assert said in report
        assert "leaked\n" not in report


BODY = "\n    def test_a(self):\n        self.assertTrue(f(2))\n"
REFUSED = {
    "class T:": "no Python",
    "x = 1": "no test",
    "import unittest\nclass T(unittest.TestCase):\n    def check(self): pass": "no test",
    f"class T:{BODY}": "T, which is in no class of unittest",
    f"class T(Other):{BODY}": "T, which is in no class of unittest",
    f"{CLASS}def test_b(): pass\n": "test_b, which is in no class of unittest",
    f"import unittest\n@unittest.skip('no')\nclass T(unittest.TestCase):{BODY}": "may skip every one",
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.items(), ids=REFUSED.values())
def test_a_text_that_is_no_suite_is_refused_with_its_place(source, reason):
    row = {"id": "a", "instructions": "i", "solution_files": {"a.py": ""}, "test_files": {"t.py": source}}
    with pytest.raises(AgentGymError, match=f"row 1: test_files: .*t.py: a suite of tests .*{reason}"):
        Polyglot([row])


@pytest.mark.parametrize(("change", "reason"), [({"test_files": {}}, "test_files"), ({"id": ""}, "id"), ({"example": 5}, "example")])
def test_a_bad_row_is_named(change, reason):
    row = {"id": "a", "instructions": "i", "solution_files": {"a.py": ""}, "test_files": {"t.py": CLASS}}
    with pytest.raises(AgentGymError, match=f"row 1: {reason}"):
        Polyglot([row | change])


def test_it_is_made_by_its_class_path():
    assert isinstance(agentgym.make("agentgym.envs.polyglot:Polyglot"), Polyglot)
