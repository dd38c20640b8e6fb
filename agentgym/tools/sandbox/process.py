"""A worker that is a process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from agentgym.tools.sandbox.inside import usage

PATIENCE = 1.0  # seconds for a worker to end itself once its lifeline is cut


class ProcessShell:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        if self.is_alive():
            self._end_all()
        self._process.wait()

    def complaint(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace")

    def _end_all(self) -> None:
        """The process and all below it, which would go on without it."""
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        while below := [found for found in usage.descendants(usage.processes(proc), self._process.pid) if found.state not in "ZX"]:
            for process in below:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        os.close(proc)
        self._process.kill()
