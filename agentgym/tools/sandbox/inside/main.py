"""The worker: started once, it waits for connections and forks a session for each. Its first connection is its lifeline."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from . import frames, system, usage
from .plan import Plan
from .session import Session

COMPLAINT = "complaint"  # a file beside the socket
NOBODY = 65534
USERS, FIRST_USER = 64, 64000  # of this machine, known to nobody: what the sandbox's users are outside of it
HIDDEN = ("/run", "/sys", "/dev/shm", "/dev/mqueue", "/dev/pts", "/worker")
PRELOADED = """
    array bisect collections contextlib copy csv dataclasses datetime decimal enum fractions functools heapq io itertools json math
    operator os pathlib random re statistics string subprocess sys tempfile textwrap time traceback types typing unittest
"""


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    try:
        _run(plan)
    except Exception as error:
        _complain(plan, f"{type(error).__name__}: {error}")
        raise


def _run(plan: Plan) -> None:
    for name in PRELOADED.split():
        __import__(name)
    listener = _listen(plan.socket)
    users = 1
    if plan.isolated:
        users = USERS if os.geteuid() == 0 else 1
        _go_inside(listener, users, plan)
    else:
        system.adopt_orphans()
    system.readable_by_owner(False)
    gc.collect()
    gc.freeze()
    gc.disable()  # in the worker, which collects when nobody waits; programs have it enabled
    _serve(listener, plan, users)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    os.umask(0)  # the host may be another user; the folder is its own
    listener.bind(path)
    os.umask(0o022)
    listener.listen(128)
    return listener


def _go_inside(listener: socket.socket, users: int, plan: Plan) -> None:
    """Go on as root of a user namespace, which is nobody outside; who was started stays behind and waits."""
    with suppress(OSError):  # where parts of /proc are covered, it can be mounted inside only once it is whole here
        system.mount("proc", "/proc", "proc")
    ours, theirs = socket.socketpair()
    inner = os.fork()
    if inner:
        theirs.close()
        _stand_by(inner, ours, listener, users, plan)
    ours.close()
    system.unshare(system.NEW_USER | system.NEW_MOUNTS | system.NEW_PIDS | system.NEW_IPC | system.NEW_UTS)
    theirs.send(b"?")
    if not theirs.recv(1):
        os._exit(1)  # who stands by has said why
    theirs.close()
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    with suppress(PermissionError):
        os.setgroups([])
    if worker := os.fork():
        listener.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) & 0xFF)
    if not plan.network:
        system.unshare(system.NEW_NET)
    system.mount("", "/", flags=system.RECURSIVE | system.PRIVATE)
    system.mount("proc", "/proc", "proc", system.NO_SUID | system.NO_DEVICES | system.NO_EXEC)
    for place in HIDDEN:
        if os.path.isdir(place):
            system.bind("/empty", place)


def _stand_by(inner: int, conn: socket.socket, listener: socket.socket, users: int, plan: Plan) -> NoReturn:
    """Map the users of the namespace that ``inner`` made, give up all power, and wait for its end."""
    listener.close()
    conn.recv(1)
    try:
        if users > 1:
            user = group = f"0 {FIRST_USER} {users}"
        else:
            user, group = f"0 {os.geteuid()} 1", f"0 {os.getegid()} 1"
            _write(f"/proc/{inner}/setgroups", "deny")
        _write(f"/proc/{inner}/uid_map", user)
        _write(f"/proc/{inner}/gid_map", group)
        system.drop_capabilities()
        conn.send(b"!")
    except OSError as error:
        _complain(plan, f"no user namespace can be made here ({error})")
    conn.close()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)


def _complain(plan: Plan, text: str) -> None:
    """Where the host looks if the worker does not start."""
    with suppress(OSError), open(os.path.join(os.path.dirname(plan.socket), COMPLAINT), "a") as file:
        file.write(text)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _serve(listener: socket.socket, plan: Plan, users: int) -> None:
    lifeline, _ = listener.accept()
    lifeline.send(b"!")
    _be_silent()
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if plan.isolated else None
    count = 0
    while True:
        ready, _, _ = select.select([listener, lifeline], [], [], 1.0)
        if lifeline in ready:
            break
        if listener in ready:
            conn, _ = listener.accept()
            count += 1
            if os.fork() == 0:
                listener.close()
                lifeline.close()
                _attend(conn, plan, _user(plan, users, count), own_pids)
            conn.close()
        _reap()
    if not plan.isolated:
        _end_descendants()
    os._exit(0)


def _user(plan: Plan, users: int, count: int) -> int:
    if plan.isolated:
        return 1 + count % (users - 1) if users > 1 else 0
    return os.getuid() or NOBODY


def _attend(conn: socket.socket, plan: Plan, uid: int, own_pids: int | None) -> NoReturn:
    try:
        system.die_with_parent()
        Session(conn, plan, uid, own_pids).serve()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        with suppress(OSError):
            frames.send(conn, {"failed": f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"})
    finally:
        os._exit(0)


def _be_silent() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_descendants() -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    while found := [process for process in usage.descendants(usage.processes(proc), os.getpid()) if process.state not in "ZX"]:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        _reap()
