"""A program's standard streams, seen from their other ends."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from functools import partial

FLOOD = 64  # times the limit of output: who writes more is ended


class Streams:
    """Three pipes: ``theirs`` are the program's ends. Of what it writes, ``limit`` bytes are kept, and the others counted."""

    def __init__(self, limit: int) -> None:
        (stdin, self._stdin), (stdout, out), (stderr, err) = os.pipe(), os.pipe(), os.pipe()
        self.theirs: tuple[int, ...] = (stdin, out, err)
        self.kept, self.missing = [bytearray(), bytearray()], [0, 0]  # of stdout and stderr
        self._poll, self._calls = select.poll(), dict[int, Callable[[], object]]()
        self._limit, self._outputs, self._to_write = limit, (stdout, stderr), memoryview(b"")
        for fd in (self._stdin, *self._outputs):
            os.set_blocking(fd, False)
        for index, fd in enumerate(self._outputs):
            self._wait_for(fd, select.POLLIN, partial(self._forward, index))

    def also(self, sock: socket.socket, call: Callable[[], object]) -> None:
        """Wait for this one too."""
        self._wait_for(sock.fileno(), select.POLLIN, call)

    def wait(self, seconds: float) -> None:
        """Until something happens, and see to it."""
        for fd, _ in self._poll.poll(max(0.0, seconds) * 1e3):
            self._calls[fd]()

    @property
    def flooded(self) -> bool:
        return sum(self.missing) > FLOOD * self._limit

    def handed_over(self) -> None:
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()

    def feed(self, stdin: bytes) -> None:
        """Give it to read, while it is waited for, and then the end."""
        self._to_write = memoryview(stdin)
        if stdin:
            self._wait_for(self._stdin, select.POLLOUT, self._write)
        else:
            self._end_stdin()

    def drain(self) -> None:
        """Once nothing of the program runs any more: what is left in the pipes, and the end of them."""
        for index, fd in enumerate(self._outputs):
            while self._read(index) and not self.flooded:
                pass
            os.close(fd)
        if self._stdin >= 0:
            os.close(self._stdin)

    def _wait_for(self, fd: int, event: int, call: Callable[[], object]) -> None:
        self._calls[fd] = call
        self._poll.register(fd, event)

    def _forward(self, index: int) -> None:
        if self._read(index) == b"":
            self._poll.unregister(self._outputs[index])

    def _read(self, index: int) -> bytes | None:
        """What could be read, which is empty at the end; or None, if there is nothing yet."""
        try:
            data = os.read(self._outputs[index], 65536)
        except BlockingIOError:
            return None
        room = max(0, self._limit - len(self.kept[0]) - len(self.kept[1]))
        self.kept[index] += data[:room]
        self.missing[index] += len(data) - min(room, len(data))
        return data

    def _write(self) -> None:
        try:
            self._to_write = self._to_write[os.write(self._stdin, self._to_write[:65536]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._to_write = memoryview(b"")
        if not self._to_write:
            self._poll.unregister(self._stdin)
            self._end_stdin()

    def _end_stdin(self) -> None:
        os.close(self._stdin)
        self._stdin = -1
