"""Programs written, run, tested and handed in, in the sandbox that this machine has."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentgym
from agentgym import AgentGymError, JudgeError, Outcome, call
from agentgym.envs import code
from agentgym.envs.code import Code
from agentgym.envs.code.exchange import Opaque, dumps, loads
from agentgym.envs.code.expert import Expert
from agentgym.envs.code.grading import Case, grade_calls, grade_check, grade_prints
from agentgym.envs.code.tasks import SIZES, code_tasks, lines_of, program_of
from agentgym.expand import Groups
from agentgym.rollout import Rollout, Start
from agentgym.seeds import Lineage
from agentgym.turn import total_reward

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RIGHT = "def f(x):\n    return x + 1\n"
FORGES = """
import gc, os, sys
for number in range(3, 64):
    try:
        os.write(number, b'["passes", ""]')
    except OSError:
        pass
print('["passes", ""]')
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def f(x):
    return Any(0)
"""
READS = """
import gc, sys
def f(x):
    seen = [str(one) for one in gc.get_objects() if isinstance(one, (str, list, dict))]
    frame = sys._getframe()
    while frame is not None:
        seen += map(str, frame.f_code.co_consts)
        frame = frame.f_back
    raise ValueError(str(any(str(91827363 + 1) in one for one in seen)))
"""


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Code().sandbox
    except AgentGymError as error:
        pytest.skip(str(error))


@pytest.fixture
def env(sandbox):
    env = Code(sandbox=sandbox)
    env.reset(options={"task": code_tasks("validation")[0]})
    return env


def solution(text):
    return {"solution.py": text.encode()}


def test_the_splits_share_no_task_and_every_task_can_be_read(env):
    ids = [task.id for split in SIZES for task in code_tasks(split)]
    assert len(ids) == len(set(ids)) == sum(SIZES.values())
    for task in code_tasks("validation")[:200]:
        space = {}
        exec(program_of(lines_of(task.prompt)), space)
        assert all(space["f"](*given) == expected for given, expected in task.answer["calls"])


def test_gold_earns_the_reward_and_an_untested_mistake_does_not(env):
    for task in code_tasks("validation")[:6]:
        env.reset(options={"task": task})
        *_, last = [env.step(action) for action in env.gold(task)]
        assert (last[1], last[2], last[4]["metrics"]) == (1.0, True, {"handed_in": 1.0, "tests_passed": 1.0})
        env.reset(options={"task": task})
        env.step(call("write", code="def f(x):\n    return 'no'\n"))
        assert env.step(call("submit"))[1] == 0.0


def test_an_episode_without_a_program_handed_in_earns_nothing(env):
    assert env.step(call("submit"))[1:3] == (0.0, True)
    env.reset(options={"task": env.task})
    env.step(env.gold(env.task)[0])
    assert env.stop("budget")[0] == 0.0
    env.reset(options={"task": code_tasks("validation")[0]})
    assert [env.step(call("test"))[2:4] for _ in range(8)][-1] == (False, True)


def test_the_policy_reads_what_its_program_did(env):
    assert env.step(call("run", code="print(6 * 7)"))[0] == "42"
    assert "NameError: name 'x'" in env.step(call("run", code="x"))[0]
    assert env.step(call("run", code="pass"))[0] == "It printed nothing."
    assert env.step(call("run", code="print(input()[::-1])", stdin="abc"))[0] == "cba"
    observation = env.step(call("run", code="print('x' * 10**6)"))[0]
    assert len(observation) < 5000
    assert "left out" in observation or "cut" in observation
    assert env.step(call("write", code="x", path="../x"))[4]["outcome"] is Outcome.TOOL_ERROR
    assert "no solution.py" in env.step(call("test"))[0]


def test_files_stay_and_can_be_imported(env):
    env.step(call("write", code="def twice(x):\n    return 2 * x\n", path="lib/twice.py"))
    env.step(call("run", code="open('kept.txt', 'w').write('here')"))
    assert env.step(call("run", code="from lib.twice import twice; print(twice(4), open('kept.txt').read())"))[0] == "8 here"


def test_every_turn_of_an_episode_can_be_re_entered(env):
    task = code_tasks("validation")[1]
    env.reset(options={"task": task})
    snapshots = [env.snapshot()]
    for action in env.gold(task)[:-1]:
        env.step(action)
        snapshots.append(env.snapshot())
    for number, snapshot in enumerate(snapshots):
        env.restore(snapshot)
        *_, last = [env.step(action) for action in env.gold(task)[number:]]
        assert last[1] == 1.0


def test_calls_are_compared_outside_of_the_program(sandbox):
    cases = [Case([1], 2), Case([2], 3)]
    assert grade_calls(sandbox, solution(RIGHT), "f", cases).passes
    wrong = grade_calls(sandbox, solution("def f(x):\n    return 2\n"), "f", cases)
    assert (wrong.passed, wrong.problem) == (1, "f(2) gives 2, not 3")
    assert grade_calls(sandbox, solution(FORGES), "f", cases).passed == 0
    assert grade_calls(sandbox, solution("import os; os._exit(0)"), "f", cases).problem == "it ended with exit status 0"
    assert "SyntaxError" in grade_calls(sandbox, solution("def f(x:"), "f", cases).problem
    assert grade_calls(sandbox, solution("def f(x): return 0.1 + 0.2"), "f", [Case([1], 0.3)]).passes
    assert not grade_calls(sandbox, solution("def f(x): return True"), "f", [Case([1], 1)]).passes


def test_a_program_cannot_read_the_tests_that_judge_it(sandbox):
    found = grade_calls(sandbox, solution(READS), "f", [Case([1], 91827364)])
    assert found.problem == "f(1) fails: ValueError: False"
    checked = grade_check(sandbox, solution(READS), "f", "", "assert candidate(1) == 91827364")
    assert checked.problem == "a test fails: ValueError: False"


def test_a_check_passes_only_for_the_right_program(sandbox):
    test = "import random\nfor n in range(3):\n    k = random.randint(0, 99)\n    assert f(k) == k + 1\n"
    assert grade_check(sandbox, solution(RIGHT), "f", "", test).passes
    assert not grade_check(sandbox, solution("def f(x):\n    return x + 2\n"), "f", "", test).passes
    assert not grade_check(sandbox, solution(FORGES), "f", "", "assert candidate(1) == 2").passes
    fails = solution("def f(x):\n    return {}[x]")
    assert grade_check(sandbox, fails, "f", "", "try:\n    f(1)\nexcept KeyError:\n    pass").passes


RAISES_STOP = "def f(x):\n    raise StopIteration\n"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (RAISES_STOP, "assert all(map(lambda x: f(x) == x + 1, [1, 2, 3]))"),
        (RAISES_STOP, "for given, found in zip([1, 2], map(f, [1, 2])):\n    assert found == given + 1"),
        (RIGHT, "ok = True\ntry:\n    f(-1)\n    ok = False\nexcept:\n    pass\nassert ok"),
    ],
)
def test_a_check_is_not_passed_by_what_interrupts_it(sandbox, program, test):
    assert not grade_check(sandbox, solution(program), "f", "", test).passes


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return 10 ** 400\n",
        "import os\nopen('.answer', 'w').write('{\"list\": [{\"float\": \"0x1p99999\"}]}')\nos._exit(0)\n",
        "def f(x):\n    raise ValueError(chr(0xd800))\n",
    ],
)
def test_no_result_of_a_program_can_void_its_episode(sandbox, program):
    verdict = grade_calls(sandbox, solution(program), "f", [Case([1], 0.5)])
    assert verdict.passed == 0
    assert verdict.problem.encode()


@pytest.mark.parametrize(
    ("program", "test", "problem"),
    [
        ("class A: pass\ndef f(x): return A()", "assert f(f(3)) == 3", "cannot be passed to another process"),
        ("def f(x): return 0", "n = 0\nwhile f(n) < 5: n += 1", "more than 4 times"),
    ],
)
def test_no_course_of_a_test_can_void_an_episode_once_the_program_has_spoken(sandbox, monkeypatch, program, test, problem):
    monkeypatch.setattr("agentgym.envs.code.grading.MOST_CALLS", 4)
    verdict = grade_check(sandbox, solution(program), "f", "", test)
    assert not verdict.passes
    assert problem in verdict.problem


def test_a_test_whose_first_call_cannot_be_passed_on_is_no_verdict(sandbox):
    with pytest.raises(JudgeError, match="give plain values"):
        grade_check(sandbox, solution(RIGHT), "f", "class A: pass", "f(A())")


@pytest.mark.parametrize(
    "write",
    [
        {"code": "x", "path": "solution.py/x"},
        {"code": "x", "path": "x" * 300},
        {"code": "x", "path": "/".join("a" * 100)},
        {"code": "x" * 2**20, "path": "large"},
    ],
)
def test_no_file_of_an_agent_can_void_its_episode(env, write):
    env.step(call("write", code="wrong"))
    assert env.step(call("write", **write))[4]["outcome"] is Outcome.TOOL_ERROR
    assert env.step(call("submit"))[1:3] == (0.0, True)


def test_a_program_that_fills_the_disk_leaves_a_folder_that_can_be_judged(env):
    env.step(call("write", code="wrong"))
    assert env.step(call("run", code="open('full', 'wb').write(bytes(15 * 2**20))"))[4]["outcome"] is Outcome.TOOL_ERROR
    assert env.step(call("submit"))[1:3] == (0.0, True)


def test_printing_programs_are_compared_word_by_word(sandbox):
    twice = solution("print(2 * int(input()))")
    assert grade_prints(sandbox, twice, [Case("3\n", "6\n"), Case("4\n", " 8 ")]).passes
    assert grade_prints(sandbox, twice, [Case("3\n", "7")]).problem == "on the input '3\\n' it prints '6\\n', not '7'"
    assert not grade_prints(sandbox, solution("print(6); raise SystemExit(1)"), [Case("3\n", "6")]).passes


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
NESTED = st.recursive(SCALARS, lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts) | st.tuples(parts, parts))
JSON = st.recursive(st.integers() | st.text(), lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts)).map(json.dumps)


@given(NESTED | st.complex_numbers(allow_nan=False) | st.sets(st.integers() | st.tuples(st.text(), st.integers())))
def test_plain_values_survive_the_exchange(value):
    back = loads(dumps(value))
    assert back == value
    assert type(back) is type(value)


@given(st.text() | JSON)
def test_whatever_is_read_raises_nothing_but_value_errors(text):
    with suppress(ValueError):
        loads(text)


def test_what_cannot_be_exchanged_equals_nothing():
    assert isinstance(loads(dumps(object())), Opaque)
    assert loads(dumps(object())) != loads(dumps(object()))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "a", "prompt": "p"}, "one of calls, prints and check, not none"),
        ({"id": "a", "prompt": "p", "calls": [[[1], 2]]}, "calls need the name of the function"),
        ({"id": "a", "prompt": "p", "calls": [[[1], 2]], "prints": [["", ""]]}, "not calls and prints"),
        ({"prompt": "p", "prints": [["", ""]]}, "id: Field required"),
    ],
)
def test_a_bad_row_is_named(row, reason):
    with pytest.raises(AgentGymError, match=f"row 2: .*{reason}"):
        Code([{"id": "x", "prompt": "p", "prints": [["", ""]]}, row])


def test_a_row_of_another_form_is_named_with_its_place():
    with pytest.raises(AgentGymError, match="row 1: "):
        Code([{"task_id": 1, "text": "t", "code": "", "test_list": 5}])


def test_rows_of_ones_own_are_played(sandbox):
    row = {"id": "inc", "prompt": "Write f.", "entry": "f", "calls": [[[1], 2]], "examples": [[[5], 6]], "split": "train"}
    env = Code([row], sandbox=sandbox)
    assert env.gold(env.tasks("train")[0]) is None
    env.reset(options={"task": "inc"})
    env.step(call("write", code=RIGHT))
    assert env.step(call("test"))[0] == "1 of 1 examples pass."
    assert env.step(call("submit"))[1] == 1.0


@pytest.mark.parametrize(("name", "count"), [("humaneval/test.jsonl", 12), ("mbpp/test.jsonl", 24)])
def test_gold_programs_of_the_benchmarks_pass_and_broken_ones_do_not(sandbox, name, count):
    if not (DATA / name).is_file():
        pytest.skip(f"there is no {name} beside the repository")
    env = Code(DATA / name, sandbox=sandbox)
    for task in env.tasks("test")[:count]:
        right = task.answer["solution"]
        for program, expected in ((right, 1.0), (f"{right}\ndef {task.data['entry']}(*args): pass\n", 0.0)):
            env.reset(options={"task": task})
            env.step(call("write", code=program))
            assert env.step(call("submit"))[1] == expected, task.id


def test_the_expert_mends_what_the_examples_show(sandbox):
    def success(mistakes):
        expert = Expert(seed=1, mistakes=mistakes)
        rollout = Rollout(lambda: Code(sandbox=sandbox), Groups(1, "expert"), {"expert": expert}, None, Lineage.of(0))
        forest = asyncio.run(rollout.run([Start(task) for task in code_tasks("validation")[:40]]))
        return sum(total_reward(leaf) == 1 for tree in forest for leaf in tree.leaves()) / len(forest)

    assert success(0.0) == 1.0
    assert 0.2 < success(0.4) < 0.8


def test_however_many_threads_ask_there_is_one_sandbox(sandbox, monkeypatch):
    monkeypatch.setattr(code, "_sandboxes", {})
    opened = []
    monkeypatch.setattr(code, "open_sandbox", lambda backend: opened.append(time.sleep(0.05)) or sandbox)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: code.shared_sandbox(), range(8))) == {sandbox}
    assert len(opened) == 1


def test_demonstrations_say_what_the_sandbox_would_have_said(sandbox):
    for tree in Code(sandbox=sandbox).demonstrations(None, 3, 0.4).play(12):
        env = Code(sandbox=sandbox)
        env.reset(options={"task": tree.task})
        for turn in tree.turns[1:]:
            observation, reward, *_ = env.step(turn.action)
            assert (observation, reward) == (turn.observation, turn.reward)


def test_it_is_a_gymnasium_environment_by_name():
    assert isinstance(agentgym.make("agentgym/Code-v0"), Code)
