"""A running program, watched from outside: its streams, its end, and its limits."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from . import frames, usage
from .box import Box
from .nursery import MIB
from .plan import Plan
from .program import OUT_OF_MEMORY
from .streams import Streams

GLANCE = 0.02  # seconds between two looks at what is used


@dataclass(slots=True)
class Ran:
    """How a program ended. ``status`` is None where it was ended from outside."""

    status: int | None = None
    stopped: str = ""
    seconds: float = 0.0
    cpu: float = 0.0
    alone: bool = False  # whether nothing of it is left
    told: bool = False  # whether anybody has said how it ended
    kept: list[bytearray] = field(default_factory=list)  # of stdout and stderr
    missing: list[int] = field(default_factory=list)


class Supervision:
    """Watches one program in ``box`` until it ends or must be ended.

    ``ends``: where the end is reported. ``spared``: processes of the box that are no part of the call; where there are none, the
    box's first process reports.
    """

    def __init__(self, plan: Plan, box: Box, ends: socket.socket, streams: Streams, spared: frozenset[int]) -> None:
        self._plan, self._box, self._ends, self._streams, self._spared = plan, box, ends, streams, spared
        self._cpu_before = box.cpu() if spared else 0.0
        self._ran, self._began, self._ended = Ran(), 0.0, False
        streams.also(ends, self._note_end)

    def order(self, by: socket.socket, order: frames.Header, program: bytes, more: Sequence[int]) -> None:
        """Start the program, with its ends of the streams and ``more`` descriptors. Raises OSError where nobody takes orders."""
        message = frames.packed(order, [program])
        self._began = time.monotonic()  # before it is sent: the program may run before this process goes on
        try:
            frames.send_packed(by, message, [*self._streams.theirs, *more])
        except OSError:
            self._streams.handed_over()
            self._streams.drain()
            raise
        self._streams.handed_over()

    def watch(self, stdin: bytes) -> Ran:
        """Until the end, of whatever kind. The streams are read to what had been written by then."""
        ran, began = self._ran, self._began
        self._streams.feed(stdin)
        look = began + GLANCE / 2
        while not self._ended and not ran.stopped:
            now = time.monotonic()
            ran.seconds = now - began
            if ran.seconds >= self._plan.wall:
                ran.stopped = "wall"
            elif now >= look:
                ran.stopped, look = self._exceeded(), now + GLANCE
            if not ran.stopped:
                self._streams.wait(min(began + self._plan.wall, look) - now)
            if self._streams.flooded and not self._ended:
                ran.stopped = ran.stopped or "output"
        ran.seconds = time.monotonic() - began
        if self._spared or not ran.alone:  # else it was reported
            ran.cpu = self._box.cpu() - self._cpu_before
        return ran

    def finish(self) -> Ran:
        """Once nothing of the program runs any more: what is left in the pipes."""
        self._streams.drain()
        ran = self._ran
        ran.kept, ran.missing = self._streams.kept, self._streams.missing
        if not ran.stopped and ran.status == -OUT_OF_MEMORY:
            ran.stopped = "memory"
        if not ran.stopped and ran.status != 0 and self._box.is_full():
            ran.stopped = "disk"
        if ran.stopped:
            ran.status = None
        return ran

    def _note_end(self) -> None:
        ran, self._ended = self._ran, True
        with suppress(EOFError, OSError, ValueError, TypeError, OverflowError, KeyError):
            told = frames.receive(self._ends, longest=4096)[0]
            ran.status, ran.alone, ran.told = int(told["status"]), told.get("alone", False), True
            ran.cpu = told.get("cpu", 0.0)
            return
        ran.status = -9  # who should have told was killed by the program

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
