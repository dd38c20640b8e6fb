"""``agentgym view``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from agentgym.cli import console
from agentgym.report.viewing import Viewer


def run(folder: Path, port: int) -> None:
    with Viewer(folder, port) as viewer:
        console.print(f"{viewer.address}  (for this machine alone; Ctrl-C ends it)", highlight=False, soft_wrap=True)
        with suppress(KeyboardInterrupt):
            viewer.serve_forever()
