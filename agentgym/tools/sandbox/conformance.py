"""What every sandbox promises, as checks that run against one: for those shipped here, and for backends of your own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agentgym.errors import AgentGymError, SnapshotMismatch
from agentgym.tools.sandbox import Execution, Sandbox

_MIB = 2**20
_ANSWER = 0.2  # seconds beyond the wall limit within which a call must have ended
_TRIES = 3  # for a machine that is busy with other things may be late once


@dataclass(frozen=True, slots=True)
class Finding:
    promise: str
    problem: str  # "" where the promise is kept


class _BrokenError(Exception):
    pass


def conform(sandbox: Sandbox) -> list[Finding]:
    """All promises, each with what is wrong. Takes about ten times the limits of time: give it short ones, such as a second."""
    return [check(sandbox, name) for name in PROMISES]


def check(sandbox: Sandbox, promise: str) -> Finding:
    """One promise of `PROMISES`."""
    try:
        PROMISES[promise](sandbox)
    except _BrokenError as broken:
        return Finding(promise, str(broken))
    except AgentGymError as error:
        return Finding(promise, f"{type(error).__name__}: {error}")
    return Finding(promise, "")


def _expect(execution: Execution, **wanted: object) -> Execution:
    for name, value in wanted.items():
        if getattr(execution, name) != value:
            raise _BrokenError(f"{name} is {getattr(execution, name)!r:.300}, not {value!r:.300}; {execution!r:.600}")
    return execution


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise _BrokenError(problem)


def _case(program: str, given: Mapping[str, bytes] | None = None, stdin: str = "", **wanted: object) -> Callable[[Sandbox], None]:
    def run(sandbox: Sandbox) -> None:
        _expect(sandbox.run(program, files=given or {}, stdin=stdin), **wanted)

    return run


def _cut(sandbox: Sandbox) -> None:
    size = sandbox.limits.output
    found = _expect(sandbox.run(f"print('x' * {size} + 'tail', end='')"), status=0, stopped="")
    noticed = found.stdout.startswith("x" * size) and "4 more bytes" in found.stdout
    _require(noticed, f"no notice of 4 missing bytes: {found.stdout[-80:]!r}")
    _require(len(found.stdout) < size + 100, f"{len(found.stdout)} characters, with a limit of {size} bytes")


def _flood(sandbox: Sandbox) -> None:
    found = sandbox.run("while True: print('x' * 1000)")
    _require(found.stopped in ("output", "wall", "cpu") and found.status is None, f"a flood ended with {found.status}, {found.stopped!r}")
    _require(len(found.stdout) < sandbox.limits.output + 100, f"{len(found.stdout)} characters of a flood")


def _wall(sandbox: Sandbox) -> None:
    program = f"import time\nprint('begun', flush=True)\ntime.sleep({3 * sandbox.limits.wall})"
    took: list[float] = []
    while len(took) < _TRIES and (not took or took[-1] >= sandbox.limits.wall + _ANSWER):
        began = time.monotonic()
        _expect(sandbox.run(program), stopped="wall", status=None, stdout="begun\n")
        took.append(time.monotonic() - began)
    _require(min(took) < sandbox.limits.wall + _ANSWER, f"a wall limit of {sandbox.limits.wall} s ended a call after {min(took):.2f} s")


def _cpu(sandbox: Sandbox) -> None:
    found = sandbox.run("import os\nos.fork()\nos.fork()\nwhile True: pass")
    _require(found.stopped in ("cpu", "wall") and found.status is None, f"endless loops ended with {found.status}, {found.stopped!r}")


def _memory(sandbox: Sandbox) -> None:
    _expect(sandbox.run(f"x = bytearray({sandbox.limits.memory * 2 * _MIB})"), stopped="memory", status=None)
    part = sandbox.limits.memory * _MIB // 2
    program = f"import os, time\nfor _ in range(3): os.fork()\nx = b'x' * {part}\ntime.sleep({2 * sandbox.limits.wall})"
    _expect(sandbox.run(program), stopped="memory", status=None)


def _processes(sandbox: Sandbox) -> None:
    program = f"import os, time\nfor _ in range({sandbox.limits.processes + 4}):\n    if os.fork() == 0: time.sleep(9)\ntime.sleep(9)"
    _expect(sandbox.run(program), stopped="processes", status=None)


def _disk(sandbox: Sandbox) -> None:
    program = f"with open('big', 'wb') as f:\n    for _ in range({sandbox.limits.disk * 4}): f.write(b'x' * {_MIB // 2})"
    found = _expect(sandbox.run(program), stopped="disk", status=None)
    _require(sum(map(len, found.files.values())) <= sandbox.limits.disk * _MIB, "more files came back than the disk limit allows")


def _links(sandbox: Sandbox) -> None:
    program = "import os\nos.symlink('/etc/passwd', 'link')\nos.mkfifo('fifo')\nos.symlink('/', 'folder')\nopen('file', 'w').write('x')"
    _expect(sandbox.run(program), status=0, files={"file": b"x"})


def _fresh(sandbox: Sandbox) -> None:
    leave = "import builtins, json, os\nopen('left', 'w').close()\nopen(os.environ['TMPDIR'] + '/left', 'w').close()\n"
    sandbox.run(leave + "json.dumps = None\nbuiltins.print = None")
    program = "import json, os, tempfile\nprint(json.dumps(os.listdir('.') + os.listdir(tempfile.gettempdir())))"
    _expect(sandbox.run(program), stdout="[]\n", status=0)


def _bad_names(sandbox: Sandbox) -> None:
    for name in ("/etc/x", "../x", "a/../../x", "", "a//b", "./a", "a\0b", "x" * 300):
        try:
            sandbox.run("pass", files={name: b""})
        except ValueError:
            continue
        raise _BrokenError(f"a file named {name!r} was accepted")


def _too_large(sandbox: Sandbox) -> None:
    try:
        sandbox.run("pass", files={"big": bytes((sandbox.limits.disk + 1) * _MIB)})
    except ValueError:
        _expect(sandbox.run("print(1)"), stdout="1\n")
        return
    raise _BrokenError("a file larger than the disk limit was accepted")


def _together(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda n: sandbox.run(f"import os\nopen('n', 'w').write('{n}')\nprint({n}, os.listdir('.'))"), range(18)))
    for n, execution in enumerate(found):
        _expect(execution, stdout=f"{n} ['n']\n", files={"n": str(n).encode()})


def _notebook(sandbox: Sandbox, cells: Sequence[str]) -> list[Execution]:
    files: Mapping[str, bytes] = {}
    found: list[Execution] = []
    for index, cell in enumerate(cells):
        found.append(sandbox.run(cell, history=tuple(cells[:index]), files=files))
        files = found[-1].files
    return found


def _history(sandbox: Sandbox) -> None:
    cells = ["import math\nx = 1\nprint('once')", "def f(): return x + 1", "x = f()\nprint(x)", "print(x, f(), math.pi > 3)"]
    found = _notebook(sandbox, cells)
    for execution, stdout in zip(found, ("once\n", "", "2\n", "2 3 True\n"), strict=True):
        _expect(execution, stdout=stdout, stderr="", status=0)


def _history_anew(sandbox: Sandbox) -> None:
    """A history that no call has run."""
    _expect(sandbox.run("print(a, b)", history=("a = 1", "b = a + 1\nprint('silent')")), stdout="1 2\n", status=0)


def _forks(sandbox: Sandbox) -> None:
    trunk = ("x = [0]", "x.append(1)")
    _notebook(sandbox, trunk)
    for branch in ("x.append(2)", "x.append(3)", "x.clear()"):
        sandbox.run(branch, history=trunk)
    _expect(sandbox.run("print(x)", history=trunk), stdout="[0, 1]\n")
    _expect(sandbox.run("print(x)", history=(*trunk, "x.append(3)")), stdout="[0, 1, 3]\n")


def _failed_cells(sandbox: Sandbox) -> None:
    found = _notebook(sandbox, ["x = 1", "x = 2\n1 / 0", "print(x)", "import sys\nx = 3\nsys.exit(4)", "print(x)"])
    _expect(found[1], status=1)
    _expect(found[2], stdout="1\n")
    _expect(found[3], status=4)
    _expect(found[4], stdout="1\n", status=0)


def _stopped_cells(sandbox: Sandbox) -> None:
    found = _notebook(sandbox, ["x = 1", "x = 2\nwhile True: pass", "print(x)"])
    _require(found[1].stopped in ("wall", "cpu"), f"an endless cell ended with {found[1]!r:.300}")
    _expect(found[2], stdout="1\n", status=0)


def _files_of_cells(sandbox: Sandbox) -> None:
    cells = ["open('log', 'a').write('a')", "open('log', 'a').write('b')\ntext = open('log').read()", "print(text, open('log').read())"]
    _expect(_notebook(sandbox, cells)[-1], stdout="ab ab\n", files={"log": b"ab"})
    _expect(sandbox.run("import os\nprint(text, os.listdir('.'))", history=tuple(cells[:2]), files={"other": b""}), stdout="ab ['other']\n")


def _parted(sandbox: Sandbox) -> None:
    """Nothing that a program can see differs between two calls, but for time and chance: so the cell reads a clock."""
    cell = "import time\nx = 1\nassert time.time() < {until}"
    until = time.time() + 3.0  # for a machine that is busy
    soon = cell.format(until=until)
    _expect(sandbox.run(soon), status=0)
    time.sleep(max(0.0, until - time.time()))
    for index in range(12):  # so many that no interpreter stands for the first any more
        sandbox.run("pass", history=(f"z = {index}",))
    try:
        found = sandbox.run("print(x)", history=(soon,))
    except SnapshotMismatch as mismatch:
        _require("cell 1" in str(mismatch), f"the mismatch does not name the cell: {mismatch}")
        return
    _expect(found, stdout="1\n")  # a backend may well remember the interpreter itself


def _survives(sandbox: Sandbox) -> None:
    kill, fault, leave = "import os\nos.kill(os.getpid(), 9)", "import ctypes\nctypes.string_at(0)", "import os\nos._exit(3)"
    for program in (kill, fault, leave):
        sandbox.run(program)
    _expect(sandbox.run("print(1)"), stdout="1\n", status=0)


PROMISES: dict[str, Callable[[Sandbox], None]] = {
    "output and status": _case("print('é')", stdout="é\n", stderr="", status=0, stopped="", files={}),
    "standard error apart": _case("import sys\nprint(1)\nprint(2, file=sys.stderr)", stdout="1\n", stderr="2\n", status=0),
    "standard input": _case("print(input() + '!')", stdin="é\n", stdout="é!\n", status=0),
    "much standard input": _case("import sys\nprint(len(sys.stdin.read()))", stdin="x" * 300_000, stdout="300000\n", status=0),
    "unread standard input": _case("print(1)", stdin="x" * 300_000, stdout="1\n", status=0),
    "no standard input": _case("import sys\nprint(repr(sys.stdin.read()))", stdout="''\n", status=0),
    "the status of sys.exit": _case("import sys\nsys.exit(3)", status=3, stopped=""),
    "the text of sys.exit": _case("import sys\nsys.exit('why')", status=1, stderr="why\n"),
    "an exception, with its line": _case(
        "def f():\n    return 1 / 0\nf()",
        status=1,
        stderr='Traceback (most recent call last):\n  File "program.py", line 3, in <module>\n    f()\n  File "program.py", line 2, in f\n'
        "    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n",
    ),
    "a program that is none": _case("def", status=1, stdout=""),
    "a program with a null character": _case("x = '\0'", status=1, stdout=""),
    "an empty program": _case("", status=0, stdout="", stderr=""),
    "a signal": _case("import os\nos.kill(os.getpid(), 9)", status=-9, stopped=""),
    "being __main__": _case("if __name__ == '__main__': print(1)", stdout="1\n"),
    "files in": _case("print(open('a/b.txt').read(), open('c').read())", given={"a/b.txt": b"x", "c": b"y"}, stdout="x y\n"),
    "files out": _case(
        "import os\nos.makedirs('d/e')\nopen('d/e/f', 'wb').write(bytes(range(256)))", files={"d/e/f": bytes(range(256))}, status=0
    ),
    "files changed and removed": _case(
        "import os\nos.remove('a')\nopen('b', 'a').write('2')", given={"a": b"", "b": b"1"}, files={"b": b"12"}, status=0
    ),
    "importing a file": _case("import mine\nprint(mine.x)", given={"mine.py": b"x = 5"}, stdout="5\n"),
    "threads are waited for": _case(
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print(1))).start()", stdout="1\n"
    ),
    "exit functions run": _case("import atexit\natexit.register(print, 1)", stdout="1\n", status=0),
    "child processes": _case("import subprocess\nprint(subprocess.check_output(['/bin/sh', '-c', 'echo 1']))", stdout="b'1\\n'\n"),
    "Python as a child process": _case("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'])", stdout="1\n"),
    "binary output": _case("import sys\nsys.stdout.buffer.write(b'a\\xff\\x00b')", stdout="a\ufffd\0b", status=0),
    "oversized output is cut with a notice": _cut,
    "a flood of output ends": _flood,
    "the wall limit": _wall,
    "the limit of CPU time": _cpu,
    "the limit of memory": _memory,
    "the limit of processes": _processes,
    "the limit of disk": _disk,
    "links and specials stay behind": _links,
    "nothing is left for the next call": _fresh,
    "names that are no relative paths are refused": _bad_names,
    "files that do not fit are refused": _too_large,
    "calls at once": _together,
    "a history": _history,
    "a history that is new": _history_anew,
    "forks of a history": _forks,
    "cells that fail leave no trace": _failed_cells,
    "cells that are stopped leave no trace": _stopped_cells,
    "files within a history": _files_of_cells,
    "a history that goes another way is found": _parted,
    "the worker survives its programs": _survives,
}
