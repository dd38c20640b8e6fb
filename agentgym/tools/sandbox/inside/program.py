"""The process that runs programs: it was confined before it read the first, and is trusted by nobody.

Where interpreter states are kept, it runs nothing itself but forks for every program, and a program that succeeded forks
once more, before it ends, to stay behind as the state after it.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import io
import linecache
import os
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

from . import frames, system

OUT_OF_MEMORY = signal.SIGRTMAX  # ends a program whose MemoryError nobody caught
_LONGEST_NAME = 200


def attend(conn: socket.socket) -> NoReturn:
    """Take orders until one is not to be kept, or until nobody can give more."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    home = os.getcwd()
    _rehearse()
    gc.enable()
    while True:
        try:
            order, (source,), fds = frames.receive(conn, most_fds=4)
        except (EOFError, OSError):
            os._exit(0)
        if order["keep"]:
            system.readable_by_owner(False)  # what stands here is not for programs to read; it cannot be undone
        if order["keep"] and (child := os.fork()):
            for fd in fds:
                os.close(fd)
            frames.send(conn, {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})
            continue
        conn.close()
        _attach(fds[:3])
        os.chdir(home)
        status = _execute(source.decode("utf-8", "surrogatepass"), order["name"], module)
        if not (order["keep"] and status == 0 and _stays_behind()):
            _leave(status, module)
        conn = socket.socket(fileno=fds[3])
        frames.send(conn, {"pid": os.getpid()})


def _rehearse() -> None:
    """Write to the pages that a program's start writes to, while nobody waits: they are shared since the fork."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, {"keep": False, "name": ""}, [b"pass"], [ours.fileno()] * 3)
        _, (source,), fds = frames.receive(theirs, most_fds=4)
    _attach(fds)
    _execute(source.decode(), "", types.ModuleType("rehearsal"))
    linecache.cache.clear()


def _stays_behind() -> bool:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork():
            return False
    except OSError:  # too many processes: the state is computed again when it is needed
        return False
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    os.close(nowhere)
    return True


def _attach(fds: Sequence[int]) -> None:
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape")  # type: ignore[misc]
    if sys.stdout is sys.__stdout__:  # else an earlier cell has put something in its place
        sys.stdout = sys.__stdout__ = _writer(1, "surrogateescape")  # type: ignore[misc]
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")  # type: ignore[misc]
    importlib.invalidate_caches()


def _writer(fd: int, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), "utf-8", errors, line_buffering=fd == 2)


def _execute(source: str, name: str, module: types.ModuleType) -> int:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    sys.excepthook = _show
    try:
        exec(compile(source, name, "exec", dont_inherit=True), vars(module))
    except SystemExit as stop:
        return _exit_status(stop.code)
    except BaseException as error:
        tail = error.__traceback__ and error.__traceback__.tb_next  # without the line above
        try:
            sys.excepthook(type(error), error, tail)
        except BaseException:
            _show(type(error), error, tail)
        return OUT_OF_MEMORY if isinstance(error, MemoryError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _show(kind: type[BaseException], error: BaseException, tail: types.TracebackType | None) -> None:
    traceback.print_exception(kind, error, tail)


def _exit_status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _leave(status: int, module: types.ModuleType) -> NoReturn:
    """End as an interpreter does: threads, exit functions, the names of the program, what is still unwritten."""
    try:
        for step in (threading._shutdown, atexit._run_exitfuncs, lambda: _forget(module), sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
            try:
                step()
            except BaseException as error:
                _show(type(error), error, error.__traceback__)
                status = status or 1
        sys.stderr.flush()
        if status == OUT_OF_MEMORY:
            signal.signal(OUT_OF_MEMORY, signal.SIG_DFL)
            os.kill(os.getpid(), OUT_OF_MEMORY)
    finally:
        os._exit(status)


def _forget(module: types.ModuleType) -> None:
    for name in [name for name in vars(module) if name != "__builtins__"]:
        vars(module)[name] = None
