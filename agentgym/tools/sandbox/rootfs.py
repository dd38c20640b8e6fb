"""What of this machine a sandbox may see: its Python without installed packages, a shell, and the libraries that these need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agentgym.errors import AgentGymError

PYTHON = "/python/bin/python3"
LIBRARIES = "/python/libs"
FOLDERS = ("/box", "/empty", "/proc", "/run/agentgym", "/tmp", "/work")
TEXTS = {
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/passwd": "root:x:0:0::/work:/bin/sh\n" + "".join(f"user{uid}:x:{uid}:{uid}::/work:/bin/sh\n" for uid in range(1, 64)),
}
MACHINE = "/machine"  # where a sandbox that offers commands keeps what its programs find at the root
ROOT_TEXTS = {  # there every user is called root, whatever its number
    "/etc/group": "".join(f"root:x:{gid}:\n" for gid in range(64)),
    "/etc/hosts": TEXTS["/etc/hosts"],
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/passwd": "".join(f"root:x:{uid}:{uid}:root:/root:/bin/bash\n" for uid in range(64)),
}
ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "LD_LIBRARY_PATH": LIBRARIES,
    "PATH": "/python/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # a history that is repeated finds its sets in the same order
    "TMPDIR": "/tmp",
}
_ABSENT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"}
_UNUSED = ("_tkinter", "_test", "xx")  # extension modules whose libraries nobody needs
_INSIDE = Path(__file__).parent / "inside"


@dataclass(frozen=True, slots=True)
class Root:
    """Files and folders of this machine by their place in the sandbox."""

    standard_library: Path
    library_target: str
    files: tuple[tuple[str, str], ...]  # place in the sandbox, path on this machine
    absent: tuple[str, ...]  # folders of the standard library, by name, that the sandbox lacks

    def library_files(self) -> Iterator[tuple[str, Path]]:
        """All files of the standard library by their place in the sandbox."""
        for folder, inner, names in os.walk(self.standard_library):
            if Path(folder) == self.standard_library:
                inner[:] = [name for name in inner if name not in self.absent]
            inner.sort()
            for name in sorted(names):
                path = Path(folder, name)
                yield f"{self.library_target}/{path.relative_to(self.standard_library)}", path


def command(plan: str) -> list[str]:
    """Starts the worker within the sandbox. Not isolated from its environment, which is the sandbox's, for the sake of the hash seed."""
    return [PYTHON, *arguments("/worker"), plan]


def arguments(worker: str) -> list[str]:
    return ["-s", "-S", "-P", "-B", "-c", f"import sys; sys.path.insert(0, {worker!r}); from inside.main import main; main()"]


@cache
def this_machine() -> Root:
    """Raises `AgentGymError` where the libraries of this machine's Python cannot be listed."""
    library = Path(sysconfig.get_path("stdlib"))
    python, shell = os.path.realpath(getattr(sys, "_base_executable", sys.executable)), os.path.realpath("/bin/sh")
    files = {PYTHON: python, "/bin/sh": shell}
    modules = [str(path) for path in sorted(library.glob("lib-dynload/*.so")) if not path.name.startswith(_UNUSED)]
    for name, path in {**_libraries(shell, []), **_libraries(python, modules)}.items():
        files[name if name.startswith("/") else f"{LIBRARIES}/{name}"] = os.path.realpath(path)
    files |= {f"/worker/inside/{path.name}": str(path) for path in sorted(_INSIDE.glob("*.py"))}
    absent = {path.name for path in library.iterdir() if path.is_dir() and (path.name in _ABSENT or path.name.startswith("config-"))}
    return Root(library, f"/python/{sys.platlibdir}/{library.name}", tuple(files.items()), tuple(sorted(absent)))


def _libraries(program: str, modules: list[str]) -> dict[str, str]:
    """Shared libraries by name, and the loader by its path, as the loader itself lists them for a program and modules together."""
    environment = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(modules)}
    listed = subprocess.run([program], env=environment, capture_output=True, text=True).stdout
    found = dict(re.findall(r"^\s+(\S+) => (/\S+)", listed, flags=re.MULTILINE))
    found |= {path: path for path in re.findall(r"^\s+(/\S+) \(0x", listed, flags=re.MULTILINE) if path not in modules}
    if not found:
        raise AgentGymError(f"cannot list the libraries that {program} needs: sandboxes are made for Linux with the GNU C library")
    return found
