"""Programs that read standard input and print: CodeContests' rows, our own right programs for some of them, and wrong ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from agentgym import AgentGymError, call
from agentgym.envs.code import Code
from agentgym.envs.code.grading import Case, grade_prints

FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "code-contests" / "test.jsonl"
MOST = 12  # tests of a problem that are run here, for one has 138

# By words of the problem: a right program, and a wrong one that is close to it.
LETTERS = "for s in open(0).read().split()[1:]:\n    print('YES' if 2 * s.count('B') == len(s) else 'NO')\n"
NEARLY_FULL = """
lines = open(0).read().split("\\n")[2::2]
for line in lines:
    a = line.split()
    if a:
        print(a.count("1") * 2 ** a.count("0"))
"""
FLOWER = """
lines = open(0).read().split("\\n")[2::2]
for line in lines:
    days = line.split()
    if not days:
        continue
    height, before = 1, None
    for day in days:
        if day == before == "0":
            height = -1
            break
        height += 0 if day == "0" else 5 if before == "1" else 1
        before = day
    print(height)
"""
MEAN = """
from collections import Counter
read = iter(open(0).read().split())
for _ in range(int(next(read))):
    n = int(next(read))
    a = [int(next(read)) for _ in range(n)]
    found = 0
    if 2 * sum(a) % n == 0:
        wanted, seen = 2 * sum(a) // n, Counter()
        for x in a:
            found += seen[wanted - x]
            seen[x] += 1
    print(found)
"""
KEYBOARD = """
words = open(0).read().split()[1:]
for keys, word in zip(words[::2], words[1::2]):
    at = [keys.index(letter) for letter in word]
    print(sum(abs(a - b) for a, b in zip(at, at[1:])))
"""
GRASSHOPPER = """
lines = open(0).read().split("\\n")[1:]
for line in filter(None, lines):
    x, n = map(int, line.split())
    moved = [0, n, -1, -n - 1][n % 4]
    print(x - moved if x % 2 == 0 else x + moved)
"""
MINIMA = """
read = iter(open(0).read().split())
for _ in range(int(next(read))):
    a = sorted(int(next(read)) for _ in range(int(next(read))))
    print(max([a[0], *(y - x for x, y in zip(a, a[1:]))]))
"""
POWERS = """
liked = sorted({i * i for i in range(1, 31623)} | {i ** 3 for i in range(1, 1001)})
from bisect import bisect_right
for n in open(0).read().split()[1:]:
    print(bisect_right(liked, int(n)))
"""
ADDING = """
def other(a, s):
    b = []
    while s:
        digit, (a, last) = 0, divmod(a, 10)
        s, sum_ = divmod(s, 10)
        if sum_ < last:
            s, sum_ = s // 10, sum_ + 10 * (s % 10)
            if not 10 <= sum_ <= 19:
                return -1
        if not 0 <= sum_ - last <= 9:
            return -1
        b.append(str(sum_ - last))
    return -1 if a else int("".join(reversed(b)))
for line in filter(None, open(0).read().split("\\n")[1:]):
    print(other(*map(int, line.split())))
"""
WEEKDAYS = """
import sys
from itertools import combinations
read = iter(sys.stdin.buffer.read().split())
for _ in range(int(next(read))):
    n = int(next(read))
    days = [0] * 5
    for student in range(n):
        for day in range(5):
            if next(read) == b"1":
                days[day] |= 1 << student
    fits = any((a | b) == (1 << n) - 1 and min(a.bit_count(), b.bit_count()) * 2 >= n for a, b in combinations(days, 2))
    print("YES" if fits else "NO")
"""
SOLVED = [
    ("Casimir has a string s which consists of capital Latin letters", LETTERS, ("len(s) else", "len(s) + 1 else")),
    ("Luntik calls a subsequence", NEARLY_FULL, ('a.count("1") *', '(a.count("1") + 1) *')),
    ("Petya has got an interesting flower", FLOWER, ("else 5 if", "else 6 if")),
    ("Monocarp wants to delete exactly two elements", MEAN, ("seen[x] += 1", "seen[x] = 1")),
    ("You have to type the word s on this keyboard", KEYBOARD, ("abs(a - b)", "(a - b)")),
    ("The grasshopper is located on the numeric axis", GRASSHOPPER, ("-n - 1", "-n")),
    ("apply an operation called minimum extraction", MINIMA, ("[a[0], *", "[0, *")),
    ("Polycarp likes squares and cubes of positive integers", POWERS, ("range(1, 1001)", "range(1, 1000)")),
    ("Tanya is learning how to add numbers", ADDING, ("-1 if a else int", "int")),
    ("students attended the first meeting of the Berland SU", WEEKDAYS, ("* 2 >= n", "* 2 > n")),
]


@pytest.fixture(scope="module")
def env():
    if not FILE.is_file():
        pytest.skip(f"there is no {FILE.name} of code-contests beside the repository")
    env = Code(FILE)
    try:
        env.sandbox.run("pass")
    except AgentGymError as error:
        pytest.skip(str(error))
    return env


def task_of(env, words):
    for task in env.tasks("test"):
        if words in task.prompt:
            return replace(task, answer={**task.answer, "prints": task.answer["prints"][:MOST]})
    pytest.skip("the data at hand lack this problem")


def handed_in(env, task, program):
    env.reset(options={"task": task})
    env.step(call("write", code=program))
    return env.step(call("submit"))


@pytest.mark.parametrize(("words", "program", "change"), SOLVED, ids=[words for words, *_ in SOLVED])
def test_a_right_program_passes_and_one_that_is_nearly_right_does_not(env, words, program, change):
    assert change[0] in program
    task = task_of(env, words)
    assert handed_in(env, task, program)[1] == 1.0
    assert handed_in(env, task, program.replace(*change))[1] == 0.0


def test_a_program_that_knows_one_test_alone_does_not_pass(env):
    task = next(task for task in env.tasks("test") if len({expected for _, expected in task.answer["prints"]}) > 1)
    only = f"print({task.answer['prints'][0][1]!r})"
    *_, info = handed_in(env, task, only)
    assert env.score() == 0.0
    assert 0 < info["metrics"]["tests_passed"] < 1


def test_a_program_that_takes_longer_than_the_problem_says_does_not_pass(env):
    task = task_of(env, "Polycarp likes squares and cubes of positive integers")
    slow = f"import time\nwhile time.process_time() < {task.answer['seconds'] + 0.2}: pass\n{POWERS}"
    assert handed_in(env, task, slow)[1] == 0.0
    assert f"and {task.answer['seconds']:g} s are the most" in env.state.verdict.problem


def test_every_problem_says_its_own_limits(env):
    for task in env.tasks("test"):
        assert task.answer["seconds"] >= 1
        assert f"'seconds': {int(task.answer['seconds'])}" in task.prompt
        assert task.answer["memory"] >= 200
        assert "solution" not in task.answer
    assert env.sandbox.limits.cpu > max(task.answer["seconds"] for task in env.tasks("test"))


def test_after_a_case_that_is_too_slow_no_other_is_tried(env):
    cases = [Case("a\n", "a"), Case("b\n", "b"), Case("c\n", "c")]
    program = "import time\nx = input()\nwhile x == 'b' and time.process_time() < 0.6: pass\nprint(x)"
    verdict = grade_prints(env.sandbox, {"solution.py": program.encode()}, cases, 0.4)
    assert (verdict.passed, verdict.of) == (1, 3)
    assert "0.4 s are the most" in verdict.problem


@pytest.mark.parametrize("tests", [{"inputs": ["1"], "outputs": []}, {"inputs": [], "outputs": []}, 5])
def test_a_problem_without_proper_tests_is_named(tests):
    with pytest.raises(AgentGymError, match="row 1: "):
        Code([{"id": "a", "problem": "p", "tests": tests}])
