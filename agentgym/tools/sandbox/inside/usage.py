"""What the processes of a call use, read from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    state: str
    cpu: float  # seconds, with those of children that ended and were waited for
    tasks: int
    resident: int  # bytes, shared pages counted in full


def processes(proc: int) -> list[Process]:
    """All processes of a ``/proc``, given as a descriptor of the folder."""
    names = [name for name in os.listdir(proc) if name.isdigit()]
    return [process for name in names if (process := _process(proc, int(name))) is not None]


def descendants(found: Iterable[Process], ancestor: int) -> list[Process]:
    children: dict[int, list[Process]] = {}
    for process in found:
        children.setdefault(process.parent, []).append(process)
    below, queue = [], list(children.get(ancestor, ()))
    while queue:
        below.append(process := queue.pop())
        queue += children.get(process.pid, ())
    return below


def memory(proc: int, of: Collection[Process], limit: int, common: int) -> int:
    """Bytes that processes hold. Pages are shared out among their users, which costs time, only where a plain sum exceeds ``limit``.

    ``common``: bytes that all share, for processes which do not let themselves be looked into.
    """
    plain = sum(process.resident for process in of)
    return plain if plain <= limit else sum(_proportional(proc, process, common) for process in of)


def _process(proc: int, pid: int) -> Process | None:
    try:
        fields = _read(proc, f"{pid}/stat").rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None  # it has ended
    cpu = sum(map(int, fields[11:15])) / _TICKS
    return Process(pid, int(fields[1]), fields[0].decode(), cpu, int(fields[17]), int(fields[21]) * _PAGE)


def _proportional(proc: int, process: Process, common: int) -> int:
    try:
        for line in _read(proc, f"{process.pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return max(0, process.resident - common)


def _read(proc: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
