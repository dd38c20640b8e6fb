"""One call's own world, as the session sees it: a process tree, its working folder, and who runs the program in it."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress

from . import folder, frames, usage
from .nursery import MIB, nurse
from .plan import Plan

_FEW = 4  # processes that are killed without more ado


class Nursery:
    """Boxes made ahead of time, by a process that never sees what a call brings: a fork shows what its maker has in memory."""

    def __init__(self, plan: Plan, uid: int, own_pids: int | None) -> None:
        self._plan, self._uid = plan, uid
        self._conn, theirs = socket.socketpair()
        if os.fork() == 0:
            nurse(theirs, plan, uid, own_pids)
        theirs.close()
        self.order()

    def order(self) -> None:
        """Ask for the next box, and do not wait for it."""
        self._conn.send(b"?")

    def take(self) -> Box:
        header, _, (report, conn) = frames.receive(self._conn, most_fds=2)
        return Box(self._plan, self._uid, header["pid"], socket.socket(fileno=report), socket.socket(fileno=conn))

    def close(self) -> None:
        self._conn.close()


class Box:
    """``report``: where its first process tells of the runner's end. ``conn``: where the runner takes orders. ``work``, ``temporary``:
    its folders. Raises OSError if it could not be made."""

    def __init__(self, plan: Plan, uid: int, first: int, report: socket.socket, conn: socket.socket) -> None:
        self.uid, self.report, self.conn, self.room = uid, report, conn, plan.disk * MIB
        self._isolated, self._first = plan.isolated, first
        self._pidfd, self._ended = os.pidfd_open(first), False
        header, _, fds = frames.receive(report, most_fds=3)
        if "error" in header:
            raise OSError(f"a call's box cannot be made: {header['error']}")
        self.work, self.temporary, self.proc = fds
        self._scratch, self.runner = header["scratch"], header["pid"]

    def processes(self) -> list[usage.Process]:
        """All but the first, zombies included, as they are numbered in the box."""
        found = usage.processes(self.proc)
        return [process for process in found if process.pid != 1] if self._isolated else usage.descendants(found, self._first)

    def is_full(self) -> bool:
        return folder.is_full(self.work) if self._isolated else self.holds_too_much()

    def holds_too_much(self) -> bool:
        return folder.size(self.work, self.room) + folder.size(self.temporary, self.room) >= self.room

    def cpu(self) -> float:
        """Seconds that the tree has used so far."""
        found = usage.processes(self.proc)
        if not self._isolated:
            found = [process for process in found if process.pid == self._first] + usage.descendants(found, self._first)
        return sum(process.cpu for process in found)

    def end_all_but(self, kept: frozenset[int] = frozenset()) -> bool:
        """Kill what runs beside the first process and those ``kept``. False: there is always more of it."""
        for _ in range(200):
            found = [process for process in self.processes() if process.pid not in kept and process.state not in "ZX"]
            if not found:
                return True
            # Many may be a bomb, which forks faster than it is killed: stopped, it does not.
            running = [process for process in found if process.state != "T"] if len(found) > _FEW else []
            for process in running or found:
                self.signal(process.pid, signal.SIGSTOP if running else signal.SIGKILL)
            time.sleep(0 if running else 0.001)
        return False

    def kill(self) -> None:
        """End the tree, and return when nothing of it runs."""
        self._kill_first()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()

    def close(self) -> None:
        """End the tree, which may take a moment longer."""
        self._kill_first()
        os.close(self._pidfd)
        self.report.close()
        self.conn.close()
        if self._scratch:
            folder.empty(self.work)
            folder.empty(self.temporary)
        for fd in (self.work, self.temporary, self.proc):
            os.close(fd)
        if self._scratch:
            with suppress(OSError):
                for name in ("work", "tmp"):
                    os.rmdir(f"{self._scratch}/{name}")
                os.rmdir(self._scratch)

    def _kill_first(self) -> None:
        """What is below it dies with it, or else is ended before."""
        if self._ended:
            return  # its number may be another's by now
        self._ended = True
        if not self._isolated:
            self.end_all_but()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def signal(self, pid: int, number: int) -> None:
        """To a process by its number in the box."""
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            process = os.open(str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc)
            try:
                signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)
