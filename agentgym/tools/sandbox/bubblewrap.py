"""Sandboxes by bubblewrap (``bwrap``): the kernel's namespaces, with no engine. For root, and for users where they may have namespaces."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.tools.sandbox import rootfs
from agentgym.tools.sandbox.process import ProcessShell
from agentgym.tools.sandbox.worker import SOCKET, Shell

_DEVICES = ("null", "zero", "full", "random", "urandom")
_SHOWN = ("bin", "sbin", "lib", "share")  # how the folders of /usr begin that hold commands; packages of Python are covered even there
_NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
# What the worker needs until it has made a user namespace of its own, where root starts it.
_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN")


class Bubblewrap:
    name = "bubblewrap"

    def __init__(self, commands: bool = False) -> None:
        found = shutil.which("bwrap")
        if found is None:
            raise AgentGymError("bubblewrap is not installed (no 'bwrap' in PATH; apt-get install bubblewrap)")
        self._program, self._commands = found, commands
        if commands and not all(os.path.islink(f"/{name}") for name in ("bin", "lib", "sbin")):
            raise AgentGymError("this machine keeps commands outside of /usr, so a sandbox cannot offer them: merge them into /usr")

    def launch(self, folder: Path, limits: Mapping[str, Any]) -> Shell:
        root = rootfs.this_machine()
        plan = {"socket": f"/run/agentgym/{SOCKET}", "isolated": True, "scratch": "", "commands": self._commands, **limits}
        options = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--new-session", "--hostname", "sandbox"]
        options += [] if limits["network"] else ["--unshare-net"]
        options += ["--cap-drop", "ALL"]
        if os.geteuid() == 0:
            for capability in _CAPABILITIES:
                options += ["--cap-add", capability]
        else:
            options += ["--unshare-user"]
        for place in _folders([*rootfs.FOLDERS, *rootfs.TEXTS, root.library_target, "/dev/null", *(place for place, _ in root.files)]):
            options += ["--dir", place]
        options += ["--ro-bind", str(root.standard_library), root.library_target]
        for name in root.absent:
            options += ["--tmpfs", f"{root.library_target}/{name}", "--remount-ro", f"{root.library_target}/{name}"]
        for place, path in root.files:
            options += ["--ro-bind", path, place]
        for place, written in _texts(folder):
            options += ["--ro-bind", str(written), place]
        for place in _NETWORK if limits["network"] else ():
            options += ["--ro-bind-try", os.path.realpath(place), place]
        for name in _DEVICES:
            options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        options += _machine(folder) if self._commands else []
        options += ["--proc", "/proc", "--bind", str(folder), "/run/agentgym", "--remount-ro", "/", "--chdir", "/"]
        return ProcessShell([self._program, *options, "--", *rootfs.command(json.dumps(plan))], rootfs.ENVIRONMENT)


def _machine(folder: Path) -> list[str]:
    """The commands of this machine, and the few files of ``/etc`` that they need, beside what every sandbox has."""
    options = [word for place in ("", "/etc", "/usr") for word in ("--dir", rootfs.MACHINE + place)]
    for entry in os.scandir("/usr"):
        if entry.is_dir(follow_symlinks=False):
            options += ["--ro-bind", entry.path] if entry.name.startswith(_SHOWN) else ["--dir"]
            options.append(rootfs.MACHINE + entry.path)
    for packages in glob("/usr/lib*/python*/*-packages"):
        options += ["--tmpfs", rootfs.MACHINE + packages, "--remount-ro", rootfs.MACHINE + packages]
    for place in ("/etc/alternatives", "/etc/ld.so.cache"):
        options += ["--ro-bind-try", place, rootfs.MACHINE + place]
    for place, text in rootfs.ROOT_TEXTS.items():
        path = folder.parent / f"root-{Path(place).name}"
        path.write_text(text)
        options += ["--ro-bind", str(path), rootfs.MACHINE + place]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        options += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    return options


def _folders(places: Iterable[str]) -> list[str]:
    """Places that are to be folders, and all above them: those that bubblewrap makes by itself are closed to other users."""
    above = {str(parent) for place in places for parent in Path(place).parents}
    return sorted(above.union(rootfs.FOLDERS) - {"/"})


def _texts(folder: Path) -> list[tuple[str, Path]]:
    written = []
    for place, text in rootfs.TEXTS.items():
        path = folder.parent / Path(place).name
        path.write_text(text)
        written.append((place, path))
    return written
