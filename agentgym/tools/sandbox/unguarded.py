"""Programs as processes of this machine, for where nothing better can be had. Their limits hold; what they may read does not.

See docs/sandbox.md for what this does not stop.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentgym.tools.sandbox import rootfs
from agentgym.tools.sandbox.process import ProcessShell
from agentgym.tools.sandbox.scratch import Scratch
from agentgym.tools.sandbox.worker import SOCKET, Shell


class Unguarded:
    name = "subprocess"

    def launch(self, folder: Path, limits: Mapping[str, Any]) -> Shell:
        scratch = Scratch()
        scratch.path.chmod(0o711)  # programs of another user pass through to their working folders
        plan = {"socket": str(folder / SOCKET), "isolated": False, "scratch": str(scratch.path), **limits}
        python, worker = getattr(sys, "_base_executable", sys.executable), str(Path(__file__).parent)
        environment = {name: text for name, text in rootfs.ENVIRONMENT.items() if name != "LD_LIBRARY_PATH"} | {"PATH": os.defpath}
        if os.geteuid() == 0:  # programs run as nobody, who may not reach this Python
            python, worker = _copy(scratch.path)
            environment["LD_LIBRARY_PATH"] = str(Path(python).parents[1] / "libs")
        return UnguardedShell([python, *rootfs.arguments(worker), json.dumps(plan)], environment, scratch)


class UnguardedShell(ProcessShell):
    def __init__(self, command: list[str], environment: Mapping[str, str], scratch: Scratch) -> None:
        self._scratch = scratch
        super().__init__(command, environment)

    def stop(self) -> None:
        super().stop()
        self._scratch.remove()


def _copy(within: Path) -> tuple[str, str]:
    """Python and worker within a folder that everybody may read: linked where the file system allows it."""
    root = rootfs.this_machine()
    paths = [*root.files, *((place, str(path)) for place, path in root.library_files())]
    for place, path in paths:
        if place.startswith(("/python/", "/worker/")):
            target = Path(f"{within}{place}")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                with suppress(shutil.SameFileError):
                    shutil.copyfile(path, target)
                    target.chmod(0o755)
    return f"{within}{rootfs.PYTHON}", f"{within}/worker"
