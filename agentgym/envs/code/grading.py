"""Whether a program does what is asked. The tests never share a process with it, so it can neither read them nor write their verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgym.envs.code import exchange
from agentgym.errors import JudgeError
from agentgym.tools.sandbox import Execution, Sandbox

SOLUTION = "solution.py"
ANSWER = ".answer"  # where a program leaves what it found
MOST_CALLS = 200  # of the solution, by one check
_EXCHANGE = Path(exchange.__file__).read_text()

# In one process with the solution: calls it, and says what each call gave.
_CALLS = """
import sys
sys.path.insert(0, "")
def _run():
    space = {{"__name__": "solution", "__file__": {solution!r}}}
    with open({solution!r}, encoding="utf-8") as file:
        text = file.read()
    exec(compile(text, {solution!r}, "exec"), space)
    found = []
    for args, kwargs in loads({calls!r}):
        try:
            found.append(["gave", space[{entry!r}](*args, **kwargs)])
        except Exception as error:
            found.append([type(error).__name__, str(error)])
    return found
def _main():
    try:
        found = _run()
    except BaseException as error:
        found = [type(error).__name__, str(error)]
    with open({answer!r}, "w") as file:
        file.write(dumps(found))
_main()
"""

# In another process: the test, for which the solution is a function whose first calls are known. It stops at the first that is not.
_CHECK = """
import builtins, random
random.seed(0)
class _Unknown(BaseException):
    pass
def _main():
    known = iter(loads({known!r}))
    left = []
    def candidate(*args, **kwargs):
        try:
            how, result = next(known)
        except StopIteration:
            leave(["asks", [args, kwargs]])
            raise _Unknown from None
        if how == "gave":
            return result
        kind = RuntimeError if how == "StopIteration" else getattr(builtins, how, Exception)  # which would end a loop of the test
        raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception)(result)
    def leave(found):
        if not left:  # the first counts: a test may catch what stops it
            left.append(found)
            with open({answer!r}, "w") as file:
                file.write(dumps(found))
    space = {{"__name__": "tests"}}
    try:
        exec({before!r}, space)
    except BaseException as error:
        leave(["breaks", f"{{type(error).__name__}}: {{error}}"])
        return
    space[{entry!r}] = space["candidate"] = candidate
    try:
        exec({test!r}, space)
    except _Unknown:
        return
    except BaseException as error:
        leave(["fails", f"{{type(error).__name__}}: {{error}}"])
        return
    leave(["passes", ""])
_main()
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A call of the entry point and what it must give, or a text for stdin and what must be printed."""

    given: Any  # the arguments, or the text
    expected: Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """``problem`` says in one sentence what went wrong first."""

    passed: int
    of: int
    problem: str = ""

    @property
    def passes(self) -> bool:
        return self.passed == self.of


def grade_calls(sandbox: Sandbox, solution: Mapping[str, bytes], entry: str, cases: Sequence[Case]) -> Verdict:
    """Call ``entry`` of the solution with each case's arguments; floats agree within 1e-9, as `math.isclose` has it."""
    found = _call(sandbox, solution, entry, [(case.given, {}) for case in cases])
    return Verdict(0, len(cases), found) if isinstance(found, str) else verdict_of(entry, cases, found)


def verdict_of(entry: str, cases: Sequence[Case], found: Sequence[Sequence[Any]]) -> Verdict:
    """``found``: for each case "gave" and the result, or the name of an error and its words."""
    problems = [_problem(entry, case, how, result) for case, (how, result) in zip(cases, found, strict=True)]
    return Verdict(problems.count(""), len(cases), next(filter(None, problems), ""))


def grade_prints(sandbox: Sandbox, solution: Mapping[str, bytes], cases: Sequence[Case], seconds: float | None = None) -> Verdict:
    """Run the solution as a program for each case; what it prints is compared word by word.

    ``seconds``: of the processor that it may use for a case, beside the limits of the sandbox. Cases after one that used more, or was
    stopped, are not tried and count as failed.
    """
    program, problems = solution.get(SOLUTION, b"").decode("utf-8", "replace"), []
    for case in cases:
        done = sandbox.run(program, files=solution, stdin=case.given)
        if done.stopped or (seconds is not None and done.cpu > seconds):
            slow = _death(done) if done.stopped else f"it took {done.cpu:.1f} s, and {seconds:g} s are the most"
            problems.append(f"on the input {_short(case.given)!r}: {slow}")
            break
        if done.status != 0:
            problems.append(f"on the input {_short(case.given)!r}: {_death(done)}")
        elif done.stdout.split() != str(case.expected).split():
            problems.append(f"on the input {_short(case.given)!r} it prints {_short(done.stdout)!r}, not {_short(case.expected)!r}")
        else:
            problems.append("")
    return Verdict(problems.count(""), len(cases), next(filter(None, problems), ""))


def grade_check(sandbox: Sandbox, solution: Mapping[str, bytes], entry: str, before: str, test: str) -> Verdict:
    """Run ``test``, a program of asserts, after the program ``before``. Both know the solution as ``entry`` and as ``candidate``.

    Arguments and results go from process to process as plain values: changing an argument in place goes unseen, and a result that
    is no plain value equals nothing. The test begins anew for each call, with ``random`` seeded, and must take the same course.
    Raises `JudgeError` where its first call cannot be passed on. What a test does later may be the program's doing, and is a failure.
    """
    known: list[Any] = []
    for _ in range(MOST_CALLS):
        program = _CHECK.format(known=exchange.dumps(known), answer=ANSWER, before=before, entry=entry, test=test)
        done = sandbox.run(_EXCHANGE + program)
        verdict, detail = _answer(done) or ["fails", f"the test did not end: {_death(done)}"]
        if verdict == "breaks":
            raise JudgeError(f"what a test of {entry} needs before it fails: {_short(detail)}")
        if verdict != "asks":
            return Verdict(int(verdict == "passes"), 1, "" if verdict == "passes" else f"a test fails: {_short(detail)}")
        args, kwargs = detail
        if exchange.is_opaque([args, kwargs]):
            asked = f"a test calls {_short(f'{entry}{tuple(args)}')}, which cannot be passed to another process"
            if known:
                return Verdict(0, 1, asked)
            raise JudgeError(f"{asked}: give plain values")
        found = _call(sandbox, solution, entry, [(args, kwargs)])
        if isinstance(found, str):
            return Verdict(0, 1, found)
        known += found
    return Verdict(0, 1, f"a test calls {entry} more than {MOST_CALLS} times")


def _call(sandbox: Sandbox, solution: Mapping[str, bytes], entry: str, calls: Sequence[Any]) -> list[Any] | str:
    """``["gave", value]`` or ``[error, words]`` for each call, or what kept the solution from being called."""
    if SOLUTION not in solution:
        return f"there is no {SOLUTION}"
    program = _CALLS.format(solution=SOLUTION, calls=exchange.dumps(list(calls)), entry=entry, answer=ANSWER)
    done = sandbox.run(_EXCHANGE + program, files=solution)
    found = _answer(done)
    if found is None:
        return _death(done)
    if len(found) == 2 and isinstance(found[0], str):
        return f"{SOLUTION} fails: {found[0]}: {_short(found[1])}"
    whole = len(found) == len(calls) and all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in found)
    return found if whole else "it wrote over what it was called for"


def _answer(done: Execution) -> Any:
    """What a program left behind; None where it left nothing that can be read."""
    try:
        found = exchange.loads(done.files[ANSWER].decode())
    except (KeyError, ValueError):
        return None
    return found if isinstance(found, list) else None


def _problem(entry: str, case: Case, how: str, result: Any) -> str:
    asked = f"{entry}({', '.join(map(repr, case.given))})"
    if how != "gave":
        return f"{_short(asked)} fails: {how}: {_short(result)}"
    return "" if _equal(result, case.expected) else f"{_short(asked)} gives {_short(repr(result))}, not {_short(repr(case.expected))}"


def _equal(value: Any, expected: Any) -> bool:
    if {type(value), type(expected)} in ({float}, {int, float}):
        with suppress(OverflowError):  # an integer that no float comes near
            return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
        return False
    if type(value) is type(expected) and isinstance(value, list | tuple):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    return type(value) is type(expected) and bool(value == expected)


def _death(done: Execution) -> str:
    if done.stopped:
        return f"it was stopped at the limit of {done.stopped}"
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.status}"]
    return f"it ended with {_short(last[0])}"


def _short(value: Any, length: int = 100) -> str:
    text = str(value).encode(errors="backslashreplace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"
