"""The worker as the host sees it: started by a backend, reached through a socket, and ended should it not answer in time."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from agentgym.errors import AgentGymError
from agentgym.tools.sandbox import SandboxLimits
from agentgym.tools.sandbox.inside import frames
from agentgym.tools.sandbox.scratch import Scratch

SOCKET, COMPLAINT = "socket", "complaint"  # files in the worker's folder
START = 30.0  # seconds that a worker may take until it answers
GRACE = 5.0  # seconds beyond the wall limit, after which a worker that does not answer is ended
LONGEST_PATH = 107  # bytes of the path of a Unix socket
REMEMBERED = 8  # states that stand ready behind a connection
_MIB = 2**20


class Shell(Protocol):
    """A started worker, seen from outside."""

    def is_alive(self) -> bool: ...

    def stop(self) -> None: ...

    def complaint(self) -> str:
        """What its backend said, once it has stopped."""
        ...


class Launcher(Protocol):
    """What a backend is. Raises `AgentGymError` where it cannot be had, and says what is missing."""

    name: str

    def launch(self, folder: Path, limits: Mapping[str, Any]) -> Shell:
        """Start the worker, so that it listens at ``folder / SOCKET``; ``limits`` as in `SandboxLimits`."""
        ...


class Worker:
    """A started worker and the connections to it, each of which serves one call at a time."""

    def __init__(self, launcher: Launcher, limits: SandboxLimits) -> None:
        self._pid, self._limits = os.getpid(), limits
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._outer = Scratch()
        folder = self._outer.path / "run"
        folder.mkdir()
        folder.chmod(0o777)  # the worker may be another user; only its owner passes the folder around it
        self._path = str(folder / SOCKET)
        try:
            if len(os.fsencode(self._path)) > LONGEST_PATH:
                raise AgentGymError(f"{self._outer.path} is too long a path for a socket; set TMPDIR to a shorter one")
            self._shell = launcher.launch(folder, asdict(limits))
            self._lifeline = self._await(launcher.name)
            self._ended = select.poll()
            self._ended.register(self._lifeline, select.POLLIN)
        except BaseException:
            self._outer.remove()
            raise

    def is_alive(self) -> bool:
        """In this process, for a fork of it must not share connections."""
        # A worker says nothing on its lifeline: if that can be read, it has ended.
        return self._pid == os.getpid() and not self._ended.poll(0)

    def take(self, state: str) -> Connection:
        """A connection for this caller alone, if possible one behind which ``state`` stands ready. Raises OSError if none is to be had."""
        with self._lock:
            for connection in self._idle:
                if state in connection.states:
                    self._idle.remove(connection)
                    return connection
            if self._idle:
                return self._idle.pop()
        return Connection(self._path, self._limits)

    def give_back(self, connection: Connection, state: str) -> None:
        """Once all that was asked is answered; ``state`` stands ready behind it."""
        connection.states.append(state)
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        """The worker ends when its lifeline does."""
        if self._pid == os.getpid():
            for connection in self._idle:
                connection.close()
            self._lifeline.close()
            self._shell.stop()
            self._outer.remove()

    def _await(self, name: str) -> socket.socket:
        until = time.monotonic() + START
        while time.monotonic() < until and self._shell.is_alive():
            lifeline = socket.socket(socket.AF_UNIX)
            lifeline.settimeout(START)
            with suppress(OSError):
                lifeline.connect(self._path)
                if lifeline.recv(1):
                    return lifeline
            lifeline.close()
            time.sleep(0.002)
        self._shell.stop()
        said = Path(self._path).with_name(COMPLAINT)
        complaint = said.read_text(errors="replace") if said.exists() else self._shell.complaint()
        raise AgentGymError(f"the {name} sandbox did not start: {complaint.strip()[-500:] or 'no answer'}")


class Connection:
    def __init__(self, path: str, limits: SandboxLimits) -> None:
        self.states: deque[str] = deque(maxlen=REMEMBERED)
        self._patience = limits.wall + GRACE
        self._longest = 2 * limits.disk * _MIB + limits.output + _MIB
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START)
        self._socket.connect(path)

    def ask(self, header: frames.Header, blobs: Sequence[bytes], programs: int) -> tuple[frames.Header, list[bytes]]:
        """One call that runs so many programs. Raises TimeoutError, EOFError, OSError or ValueError where no proper answer comes."""
        self._socket.settimeout(programs * self._patience)
        frames.send(self._socket, header, blobs)
        answer, found, _ = frames.receive(self._socket, self._longest)
        return answer, found

    def close(self) -> None:
        self._socket.close()
