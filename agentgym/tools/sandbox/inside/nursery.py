"""Where boxes are made: a process tree with a first process that we trust, and below it the runner, which will run a program.

Isolated, the tree has namespaces of its own for processes, mounts, network, IPC and host name: it sees itself alone, and dies
with its first process. Its working folder and ``/tmp`` lie on one file system in memory of limited size. Else the first process
adopts whatever a program leaves behind, so that it can be found and ended.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import tempfile
from contextlib import suppress
from itertools import pairwise
from typing import NoReturn

from . import frames, program, seccomp, system
from .plan import Plan

MIB = 2**20
SPARE_TASKS = 16  # beyond the limit of processes, so that exceeding it is seen before the kernel refuses
_MOST_FILES = 4096
_OWN = ("/boot", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/sys", "/usr", "/var")  # folders that a program may fill


def nurse(session: socket.socket, plan: Plan, uid: int, own_pids: int | None) -> NoReturn:
    """Make a box each time that the session asks for one."""
    try:
        system.die_with_parent()
        _close_all_but(session.fileno(), *([] if own_pids is None else [own_pids]))
        while session.recv(1):
            _make(session, plan, uid, own_pids)
            _reap()
    finally:
        os._exit(0)


def _make(session: socket.socket, plan: Plan, uid: int, own_pids: int | None) -> None:
    reports, report = socket.socketpair()
    orders, conn = socket.socketpair()
    with reports, report, orders, conn:
        if own_pids is not None:
            system.unshare(system.NEW_PIDS)
        first = os.fork()
        if first == 0:
            _be_first(plan, uid, report, conn)
        if own_pids is not None:
            system.enter(own_pids, system.NEW_PIDS)
        frames.send(session, {"pid": first}, fds=[reports.fileno(), orders.fileno()])


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _be_first(plan: Plan, uid: int, report: socket.socket, conn: socket.socket) -> NoReturn:
    """Prepare the box, start the runner, reap what dies, and tell how the runner ended."""
    try:
        system.die_with_parent()
        _close_all_but(report.fileno(), conn.fileno())
        os.setsid()
        work, temporary, scratch = _isolate(plan, uid) if plan.isolated else _make_scratch(plan, uid)
        fds = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in (work, temporary, "/proc")]
        runner = os.fork()
        if runner == 0:
            _close_all_but(conn.fileno())
            _settle(work, temporary)
            _confine(plan, uid)
            program.attend(conn)
        conn.close()
        _rehearse()
        frames.send(report, {"pid": runner, "scratch": scratch}, fds=fds)
        while True:
            pid, status = os.wait()
            if pid == runner:
                frames.send(report, {"status": os.waitstatus_to_exitcode(status), "alone": _is_alone(), "cpu": _cpu()})
    except ChildProcessError:
        with suppress(OSError):
            report.recv(1)  # until the session lets go
    except BaseException as error:
        with suppress(OSError):
            frames.send(report, {"error": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _is_alone() -> bool:
    """Whether nothing of the program is left: here, whoever loses its parent becomes a child of this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _cpu() -> float:
    """Seconds that this process and all who ended below it have used."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def _rehearse() -> None:
    """Tell of an end while nobody waits, so that the pages that it takes are this process's own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, {"status": os.waitstatus_to_exitcode(0), "alone": True, "cpu": _cpu()})


def _isolate(plan: Plan, uid: int) -> tuple[str, str, str]:
    """Namespaces, an empty working folder and ``/tmp``, and a ``/proc`` that shows this tree's processes alone."""
    system.unshare(system.NEW_MOUNTS | system.NEW_IPC | system.NEW_UTS | (0 if plan.network else system.NEW_NET))
    if not plan.network:
        system.bring_up_loopback()
    room = f"size={plan.disk * MIB},nr_inodes={_MOST_FILES},mode=755"
    system.mount("tmpfs", "/box", "tmpfs", system.NO_SUID | system.NO_DEVICES, room)
    for place, mode in (("/work", 0o755), ("/tmp", 0o1777)):
        os.mkdir("/box" + place)
        os.chmod("/box" + place, mode)
        os.chown("/box" + place, uid, uid)
        system.bind("/box" + place, place)
    if plan.commands:
        _enter_root(uid)
    else:
        system.unmount("/box")
        _mount_proc()
    return "/work", "/tmp", ""


def _enter_root(uid: int) -> None:
    """Go on in a root folder that a program may fill, with the machine's commands and all that this one needs mounted into it."""
    root = "/box/root"
    mounted = {"/dev": "/dev", "/etc": "/machine/etc", "/python": "/python", "/work": "/work", "/tmp": "/tmp"}
    mounted |= {f"/usr/{entry.name}": entry.path for entry in os.scandir("/machine/usr") if entry.is_dir(follow_symlinks=False)}
    for place in ("", *_OWN):
        os.makedirs(root + place, exist_ok=True)
        os.chown(root + place, uid, uid)
    for place, source in mounted.items():
        os.mkdir(root + place)
        system.mount(source, root + place, flags=system.BIND | system.RECURSIVE)
    os.mkdir(root + "/proc")
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        if os.path.isdir(f"{root}/usr/{name}"):
            os.symlink(f"usr/{name}", f"{root}/{name}")
    _mount_proc(root + "/proc")
    os.chroot(root)
    os.chdir("/")


def _mount_proc(place: str = "/proc") -> None:
    """Programs see their own; the session, which is of group 0 here, sees all."""
    flags = system.NO_SUID | system.NO_DEVICES | system.NO_EXEC
    try:
        system.mount("proc", place, "proc", flags, "subset=pid,hidepid=invisible,gid=0")
    except OSError:  # a kernel before 5.8
        system.mount("proc", place, "proc", flags, "hidepid=2,gid=0")


def _make_scratch(plan: Plan, uid: int) -> tuple[str, str, str]:
    system.adopt_orphans()
    scratch = tempfile.mkdtemp(prefix="call-", dir=plan.scratch)
    os.chmod(scratch, 0o711)
    work, temporary = os.path.join(scratch, "work"), os.path.join(scratch, "tmp")
    for place in (work, temporary):
        os.mkdir(place, 0o700)
        os.chown(place, uid, uid)
    return work, temporary, scratch


def _settle(work: str, temporary: str) -> None:
    """Where a program finds itself: working folder, environment, import path; nothing of the worker's."""
    os.setsid()
    os.chdir(work)
    os.umask(0o022)
    os.environ.update(HOME=work, PWD=work, TMPDIR=temporary)
    sys.argv = ["program.py"]
    sys.path[:] = [work, *(path for path in sys.path if path.startswith(sys.base_prefix))]
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def _confine(plan: Plan, uid: int) -> None:
    """From here on nothing can be gained: limits, another user, no capabilities, and a filter on system calls."""
    _limit(plan, uid)
    with suppress(PermissionError):
        os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    system.drop_capabilities()
    system.readable_by_owner(True)  # of its own /proc/self
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this goes first
    system.die_with_parent()
    system.no_new_privileges()
    seccomp.install(seccomp.instructions(sockets=plan.isolated or plan.network, kill_all=plan.isolated))


def _limit(plan: Plan, uid: int) -> None:
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {
        resource.RLIMIT_AS: present + plan.memory * MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(plan.cpu) + 2,
        resource.RLIMIT_FSIZE: plan.disk * MIB,
        resource.RLIMIT_MEMLOCK: 65536,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_RTPRIO: 0,
    }
    if plan.isolated or os.getuid() != uid:  # else the kernel would count all that the user runs
        shared = 0 if plan.isolated and uid else 4 * plan.processes + 64  # by other calls, and by the worker
        limits[resource.RLIMIT_NPROC] = plan.processes + SPARE_TASKS + shared
    for which, limit in limits.items():
        with suppress(ValueError):  # the hard limit is lower
            resource.setrlimit(which, (limit, limit))


def _close_all_but(*kept: int) -> None:
    edges = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for low, high in pairwise(edges):
        os.closerange(low + 1, high)
