"""What earlier calls found and how they went, so that a history can be repeated as it was where no process stands for it any more."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentgym.tools.sandbox.inside.frames import history_digest

MOST = 16 * 2**20  # bytes of files
Files = Mapping[str, bytes]
Key = tuple[str, frozenset[tuple[str, bytes]] | None]  # a history's digest, and the files after it, whatever they are if None


@dataclass(frozen=True, slots=True)
class Cell:
    """``succeeded`` is None where nobody knows."""

    source: str
    succeeded: bool | None
    files: Files  # that it found


class Memory:
    """Remembers by history and files, and by history alone for callers that change files between calls. Safe for threads."""

    def __init__(self) -> None:
        self._cells: OrderedDict[Key, Cell] = OrderedDict()  # the oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def note(self, history: Sequence[str], program: str, before: Files, after: Files, succeeded: bool) -> None:
        digest, cell = digest_of((*history, program)), Cell(program, succeeded, before)
        with self._lock:
            for key in ((digest, frozenset(after.items())), (digest, None)):
                self._drop(key)
                self._cells[key] = cell
                self._bytes += _size(key, cell)
            while self._bytes > MOST:
                self._drop(next(iter(self._cells)))

    def cells(self, history: Sequence[str], files: Files) -> list[Cell]:
        """The cells of a history that led to ``files``, in order. Cells that nobody knows are given the files that are known."""
        found: list[Cell] = []
        digests = [digest_of(history[: index + 1]) for index in range(len(history))]
        with self._lock:
            for source, digest in zip(reversed(history), reversed(digests), strict=True):
                known = self._cells.get((digest, frozenset(files.items()))) or self._cells.get((digest, None))
                found.append(known or Cell(source, None, files))
                files = found[-1].files
        return found[::-1]

    def _drop(self, key: Key) -> None:
        if (cell := self._cells.pop(key, None)) is not None:
            self._bytes -= _size(key, cell)


def digest_of(history: Sequence[str]) -> str:
    digest = ""
    for cell in history:
        digest = history_digest(digest, cell)
    return digest


def _size(key: Key, cell: Cell) -> int:
    _, after = key
    return len(cell.source) + sum(map(len, cell.files.values())) + sum(len(content) for _, content in after or ()) + 200
