"""A temporary folder that goes with the process that made it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from agentgym.tools.sandbox.inside.folder import empty


class Scratch:
    """Removed when asked to, or when nobody needs it any more. A fork of the process that drops it leaves it where it is."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="agentgym-"))
        self._removal = weakref.finalize(self, _remove, self.path, os.getpid())

    def remove(self) -> None:
        self._removal()


def _remove(path: Path, maker: int) -> None:
    if maker != os.getpid():
        return
    with suppress(OSError):
        left = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        empty(left)  # to any depth, which the next line is no match for
        os.close(left)
    shutil.rmtree(path, ignore_errors=True)
