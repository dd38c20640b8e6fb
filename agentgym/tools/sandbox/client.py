"""A sandbox on this side: what is asked of the worker, what became of it, and what is remembered for the next call."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue

from agentgym.errors import AgentGymError, InfrastructureError, SnapshotMismatch
from agentgym.tools.sandbox import Execution, SandboxLimits
from agentgym.tools.sandbox.inside import frames
from agentgym.tools.sandbox.inside.folder import DEEPEST
from agentgym.tools.sandbox.memory import Cell, Memory, digest_of
from agentgym.tools.sandbox.worker import Launcher, Worker


class ForkingSandbox:
    """A `Sandbox` over a worker that forks for every call."""

    def __init__(self, launcher: Launcher, limits: SandboxLimits) -> None:
        self.name, self.limits = launcher.name, limits
        self._launcher = launcher
        self._lock = threading.Lock()
        self._slots: SimpleQueue[None] = SimpleQueue()  # for calls at once: quicker than a semaphore, which is written in Python
        for _ in range(max(2, os.cpu_count() or 1)):
            self._slots.put(None)
        self._memory = Memory()
        self._worker: Worker | None = Worker(launcher, limits)

    def run(self, program: str, *, files: Mapping[str, bytes] = {}, stdin: str = "", history: Sequence[str] = ()) -> Execution:
        if files:
            check_names(files)
            if sum(map(len, files.values())) > self.limits.disk * 2**20:
                raise ValueError(f"the files do not fit into the sandbox; its disk limit is {self.limits.disk} MiB")
        slot = self._slots.get()
        try:
            return self._run(program, dict(files), stdin, tuple(history))
        finally:
            self._slots.put(slot)

    def close(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker:
            worker.close()

    def _run(self, program: str, files: Mapping[str, bytes], stdin: str, history: Sequence[str]) -> Execution:
        worker = self._living_worker()
        try:
            answer, blobs = self._ask(worker, program, files, stdin, history)
        except TimeoutError:
            self._discard(worker)
            return Execution("", "", None, "wall", {}, self.limits.wall)
        except (EOFError, OSError, ValueError, KeyError) as error:
            self._discard(worker)
            died = f"the {self.name} sandbox died during a call ({error!r}); the next call gets a new one"
            raise InfrastructureError(died) from error
        if "failed" in answer or "unknown" in answer:
            self._discard(worker)
            why = answer.get("failed", "an interpreter is gone that was just made")
            raise InfrastructureError(f"the {self.name} sandbox failed: {why}; the next call gets a new one")
        if "refused" in answer:
            raise ValueError(f"the files do not fit into the sandbox ({answer['refused']}); its disk limit is {self.limits.disk} MiB")
        if "parted" in answer:
            raise SnapshotMismatch(
                f"{self.name} sandbox: cell {answer['parted'] + 1} of a history of {len(history)} had succeeded and fails when it is "
                f"repeated: {history[answer['parted']][:200]!r}. A cell that others go on from must not depend on time or chance"
            )
        execution = _execution(answer, blobs)
        self._memory.note(history, program, files, execution.files, execution.status == 0)
        return execution

    def _ask(
        self, worker: Worker, program: str, files: Mapping[str, bytes], stdin: str, history: Sequence[str]
    ) -> tuple[frames.Header, list[bytes]]:
        name = f"cell {len(history) + 1}" if history else "program.py"
        header: frames.Header = {"keep": bool(history), "files": list(files), "name": name}
        blobs = [_encode(program), _encode(stdin), *files.values()]
        state = frames.state_key(digest_of(history), files) if history else ""
        if history:
            header |= {"key": state, "becomes": digest_of((*history, program)), "replay": None}
        connection = worker.take(state)
        answer, found = connection.ask(header, blobs, 1)
        if history and "unknown" in answer:
            cells = self._memory.cells(history, files)
            header["replay"] = [{"known": cell.succeeded, "files": list(cell.files)} for cell in cells]
            answer, found = connection.ask(header, blobs + _contents(cells), 1 + len(cells))
        worker.give_back(connection, state)
        return answer, found

    def _living_worker(self) -> Worker:
        with self._lock:
            if self._worker is not None and not self._worker.is_alive():
                self._worker.close()
                self._worker = None
            if self._worker is None:
                try:
                    self._worker = Worker(self._launcher, self.limits)
                except AgentGymError as error:
                    raise InfrastructureError(f"the {self.name} sandbox had worked and cannot be started again: {error}") from error
            return self._worker

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            if self._worker is worker:
                self._worker = None
        worker.close()


def check_names(files: Mapping[str, bytes]) -> None:
    """Raises ValueError for a name that is no relative path within the working folder."""
    for path in files:
        parts = path.split("/")
        if any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts) or "\0" in path:
            raise ValueError(f"{path!r} cannot be the name of a file in a sandbox: it must be a relative path without . and ..")
        if len(parts) > DEEPEST or any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise ValueError(f"{path!r} cannot be a file in a sandbox: it lies too deep, or in what is a file itself")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _contents(cells: Sequence[Cell]) -> list[bytes]:
    return [blob for cell in cells for blob in (_encode(cell.source), *cell.files.values())]


def _execution(answer: frames.Header, blobs: Sequence[bytes]) -> Execution:
    stdout, stderr = (_text(blob, missing) for blob, missing in zip(blobs[:2], answer["missing"], strict=True))
    files = dict(zip(answer["files"], blobs[2:], strict=True))
    return Execution(stdout, stderr, answer["status"], answer["stopped"], files, answer["seconds"], answer["cpu"])


def _text(data: bytes, missing: int) -> str:
    text = data.decode(errors="replace")
    return f"{text}\n[cut: {missing} more bytes]" if missing else text
