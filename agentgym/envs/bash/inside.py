"""What runs in the sandbox: makes the tree, runs one command in it, and leaves the tree as it is then. Standard library alone.

The command is of the same user and could write over what is left; all that it can forge is its own tree and output.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import stat
import subprocess
import time
from contextlib import suppress
from typing import Any

ORDER, RESULT, PROFILE = "/work/order", "/work/result", "/work/profile"
# As in the official image, whose bash is older: ``.*`` stands for . and .. as well.
SETTINGS = "shopt -u globskipdots 2>/dev/null; unset BASH_ENV\n"
SYSTEM = ("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "python", "sbin", "work")  # never kept
FIXED = ("boot", "home", "media", "mnt", "opt", "root", "run", "srv", "sys", "tmp", "usr", "var")  # in every root: what is in them is kept
LONGEST = 2**20  # bytes of output


def main() -> None:
    with open(ORDER) as file:
        order = json.load(file)
    os.remove(ORDER)
    now = order["now"]
    with open(PROFILE, "w") as file:
        file.write(SETTINGS)
    times = make(order["tree"], now)
    output, ended = run(order["words"], order["folder"], {**order["environment"], "BASH_ENV": PROFILE}, order["seconds"])
    end_all_others()
    result = {"output": base64.b64encode(output).decode(), **ended, "tree": read(now, times)}
    with open(RESULT, "w") as file:
        json.dump(result, file)


def make(tree: list[list[Any]], now: int) -> dict[int, int]:
    """Write a tree. Returns the times that were given, by what they are in the tree."""
    times = {}
    for path, kind, _, _, content in tree:
        if kind == "folder":
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "link":
            os.symlink(os.fsdecode(base64.b64decode(content)), path)
        else:
            with open(path, "wb") as file:
                file.write(base64.b64decode(content))
    for path, kind, mode, when, _ in reversed(tree):  # what lies within a folder comes after it
        at = when if when > 0 else now + when
        times[at] = when
        os.utime(path, (at, at), follow_symlinks=False)
        if kind != "link":
            os.chmod(path, mode)
    return times


def run(words: list[str], folder: str, environment: dict[str, str], seconds: float) -> tuple[bytes, dict[str, Any]]:
    """Its output, both streams in one, and how it ended."""
    try:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload]
    except OSError as error:
        return f"cannot run in {folder}: {error.strerror}\n".encode(), {"status": 126, "late": False}
    assert process.stdout is not None
    output, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            data = os.read(process.stdout.fileno(), 65536)
            output += data[: LONGEST - len(output)]
            if not data:
                with suppress(subprocess.TimeoutExpired):
                    return output, {"status": process.wait(max(0.1, until - time.monotonic())), "late": False}
                break
    return output, {"status": None, "late": True}


def end_all_others() -> None:
    """What goes on in the background would change the tree while it is read."""
    with suppress(ProcessLookupError):
        for _ in range(200):
            os.kill(-1, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.001)


def read(now: int, times: dict[int, int]) -> list[list[Any]]:
    """The tree as it is: path, kind, permissions, time, content."""
    found: list[list[Any]] = []
    device = os.stat("/").st_dev
    queue = [""]
    while queue:
        folder = queue.pop()
        for name in sorted(os.listdir(folder or "/")):
            path = f"{folder}/{name}"
            if not folder and name in SYSTEM:
                continue
            about = os.lstat(path)
            if about.st_dev != device:
                continue  # of the system
            mode, at = stat.S_IMODE(about.st_mode), int(about.st_mtime)
            when = times.get(at, 0 if at >= now else at)
            if stat.S_ISDIR(about.st_mode):
                if folder or name not in FIXED:
                    found.append([path, "folder", mode, when, ""])
                    os.chmod(path, 0o700)  # the user is not root here, and reads what root would
                queue.append(path)
            elif stat.S_ISLNK(about.st_mode):
                found.append([path, "link", mode, when, base64.b64encode(os.fsencode(os.readlink(path))).decode()])
            elif stat.S_ISREG(about.st_mode):
                os.chmod(path, 0o600)
                with open(path, "rb") as file:
                    found.append([path, "file", mode, when, base64.b64encode(file.read()).decode()])
    return found


if __name__ == "__main__":
    main()
