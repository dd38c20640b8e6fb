"""A running program, watched from outside: its streams, its end, and its limits."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from . import frames, usage
from .box import Box
from .nursery import MIB
from .plan import Plan
from .program import OUT_OF_MEMORY

GLANCE = 0.02  # seconds between two looks at what is used
FLOOD = 64  # times the limit of output: who writes more is ended


@dataclass(slots=True)
class Ran:
    """How a program ended. ``status`` is None where it was ended from outside."""

    status: int | None = None
    stopped: str = ""
    seconds: float = 0.0
    cpu: float = 0.0
    alone: bool = False  # whether nothing of it is left
    told: bool = False  # whether anybody has said how it ended
    kept: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])  # of stdout and stderr
    missing: list[int] = field(default_factory=lambda: [0, 0])


class Supervision:
    """Watches one program in ``box`` until it ends or must be ended.

    ``ends``: where the end is reported. ``spared``: processes of the box that are no part of the call.
    """

    def __init__(
        self, plan: Plan, box: Box, ends: socket.socket, streams: tuple[int, int, int], stdin: bytes, spared: frozenset[int]
    ) -> None:
        self._plan, self._box, self._ends, self._spared = plan, box, ends, spared
        self._stdin, self._to_write = streams[0], memoryview(stdin)
        self._outputs = streams[1:]
        self._ran = Ran()
        self._cpu_before = box.cpu() if spared else 0.0
        self._selector = selectors.PollSelector()
        for fd in streams:
            os.set_blocking(fd, False)
        self._selector.register(ends, selectors.EVENT_READ, self._note_end)
        for index, fd in enumerate(self._outputs):
            self._selector.register(fd, selectors.EVENT_READ, self._reader(index))
        if stdin:
            self._selector.register(self._stdin, selectors.EVENT_WRITE, self._write)
        self._ended = False

    def watch(self) -> Ran:
        """Until the end, of whatever kind. The streams are read to what had been written by then."""
        ran, began = self._ran, time.monotonic()
        if not self._to_write:
            self._close_stdin()
        look = began + GLANCE / 2
        while not self._ended and not ran.stopped:
            now = time.monotonic()
            ran.seconds = now - began
            if ran.seconds >= self._plan.wall:
                ran.stopped = "wall"
            elif now >= look:
                ran.stopped, look = self._exceeded(), now + GLANCE
            for key, _ in [] if ran.stopped else self._selector.select(min(began + self._plan.wall, look) - now):
                key.data()
        ran.seconds, ran.cpu = time.monotonic() - began, self._box.cpu() - self._cpu_before
        return ran

    def finish(self) -> Ran:
        """Once nothing of the program runs any more: what is left in the pipes."""
        for index in (0, 1):
            reader = self._reader(index)
            while self._outputs[index] in self._selector.get_map() and reader():
                pass
        self._close_stdin()
        for fd in self._outputs:
            os.close(fd)
        self._selector.close()
        ran = self._ran
        if not ran.stopped and ran.status == -OUT_OF_MEMORY:
            ran.stopped = "memory"
        if not ran.stopped and ran.status != 0 and self._box.is_full():
            ran.stopped = "disk"
        if ran.stopped:
            ran.status = None
        return ran

    def _note_end(self) -> None:
        self._ended = True
        with suppress(EOFError, OSError, ValueError, KeyError):
            told = frames.receive(self._ends, longest=4096)[0]
            self._ran.status, self._ran.alone, self._ran.told = int(told["status"]), told.get("alone", False), True
            return
        self._ran.status = -9  # who should have told was killed by the program

    def _reader(self, index: int) -> Callable[[], bool]:
        fd, kept, missing = self._outputs[index], self._ran.kept, self._ran.missing

        def read() -> bool:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return False
            if not data:
                self._selector.unregister(fd)
                return False
            room = max(0, self._plan.output - len(kept[0]) - len(kept[1]))
            kept[index] += data[:room]
            missing[index] += len(data) - min(room, len(data))
            if sum(missing) > FLOOD * self._plan.output and not self._ended:
                self._ran.stopped = self._ran.stopped or "output"
            return sum(missing) <= FLOOD * self._plan.output

        return read

    def _write(self) -> None:
        try:
            self._to_write = self._to_write[os.write(self._stdin, self._to_write[:65536]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._to_write = memoryview(b"")
        if not self._to_write:
            self._selector.unregister(self._stdin)
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            if self._stdin in self._selector.get_map():
                self._selector.unregister(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _exceeded(self) -> str:
        """The limit that is exceeded now, or nothing."""
        plan, box = self._plan, self._box
        everybody = box.processes()
        found = [process for process in everybody if process.pid not in self._spared]
        common = min((process.resident for process in everybody if process.pid in self._spared), default=0)
        if sum(process.tasks for process in found if process.state not in "ZX") > plan.processes:
            return "processes"
        if box.cpu() - self._cpu_before > plan.cpu:
            return "cpu"
        if usage.memory(box.proc, found, plan.memory * MIB, common) > plan.memory * MIB:
            return "memory"
        return "disk" if not plan.isolated and box.holds_too_much() else ""
