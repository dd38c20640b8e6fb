"""One command in a tree of files, as InterCode gives it to its container; the tree and the folder afterwards are values."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentgym.envs.bash import inside
from agentgym.envs.bash.tree import Entry, Tree, tree_of
from agentgym.errors import InfrastructureError
from agentgym.tools.sandbox import Sandbox, SandboxLimits

SECONDS = 10.0  # that a command may take, as in the official environment
LIMITS = SandboxLimits(wall=15.0, cpu=15.0, processes=64)
MOST_ENTRIES, LARGEST = 2000, 6 * 2**20  # of a tree, and bytes of it as it is sent
LONGEST_NAME = 255  # bytes
LONGEST_COMMAND = 2**17  # characters; the system takes no longer word
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOSTNAME": "sandbox",
    "HOME": "/root",
}
LATE, MALFORMED = "Command timed out", "Malformed command"
_PROGRAM = Path(inside.__file__).read_text()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command finds itself."""

    tree: Tree
    folder: str = "/"


@dataclass(frozen=True, slots=True)
class Done:
    """``output``: both streams as one text, or one of the official sentences in its place."""

    output: str
    place: Place
    problem: str = ""  # why the tree is as before
    late: bool = False


def perform(sandbox: Sandbox, place: Place, command: str, now: int) -> Done:
    """Run a command. One that begins with ``cd`` also moves those after it, as in the official environment.

    ``now``: what relative times are relative to, in seconds since 1970: the same for commands whose trees are compared.
    """
    folder = _moved(place.folder, command) if command.startswith("cd") else None
    words = _words(command if folder is None else f"cd {folder}")
    if words is None:
        return Done(MALFORMED, place)
    order = {
        "tree": _rows(place.tree),
        "now": now,
        "words": words,
        "folder": place.folder if folder is None else "/",
        "environment": ENVIRONMENT,
        "seconds": SECONDS,
    }
    try:
        done = sandbox.run(_PROGRAM, files={Path(inside.ORDER).name: json.dumps(order).encode()})
    except ValueError as error:
        raise InfrastructureError(f"the files of a task do not fit into the sandbox ({error}): open one with more disk") from error
    try:
        result = json.loads(done.files[Path(inside.RESULT).name])
        output, status, late = base64.b64decode(result["output"]), result["status"], bool(result["late"])
        tree = _read(result["tree"])
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return Done(_unfinished(done.stopped), place, str(error) or "nothing was left")
    after = Place(tree, folder if folder is not None and status == 0 else place.folder)
    if late:
        return Done(LATE, replace(after, folder=place.folder), late=True)
    try:
        return Done(output.decode(), after)
    except UnicodeDecodeError:
        return Done(MALFORMED, after)


def _words(command: str) -> list[str] | None:
    """The words of ``/bin/bash -c "command"``, read as Docker's client reads a command line: inner double quotes end the text."""
    if len(command) > LONGEST_COMMAND:
        return None
    try:
        return shlex.split(f'/bin/bash -c "{command.strip()}"')
    except ValueError:
        return None


def _moved(folder: str, command: str) -> str:
    """Where a command that begins with ``cd`` leads by its words alone."""
    wanted = command.partition("cd ")[2].strip()
    path: list[str] = []
    for part in ("" if wanted.startswith("/") else folder).split("/") + wanted.split("/"):
        if part == "..":
            path = path[:-1]
        elif part not in ("", "."):
            path.append(part)
    return "/" + "/".join(path)


def _unfinished(stopped: str) -> str:
    why = f"it was stopped at the limit of {stopped}" if stopped else "its shell was killed"
    return f"The command did not end: {why}. The files are as before it."


def _rows(tree: Tree) -> list[list[Any]]:
    return [[path, *entry[:3], base64.b64encode(entry.content).decode()] for path, entry in tree]


def _read(rows: Sequence[Any]) -> Tree:
    """Raises ValueError for what is no tree, or too large a one."""
    if not isinstance(rows, list) or len(rows) > MOST_ENTRIES:
        raise ValueError(f"a tree is a list of at most {MOST_ENTRIES} places")
    tree = tree_of(dict(_entry(*row) for row in rows))
    if len(json.dumps(_rows(tree))) > LARGEST:
        raise ValueError(f"the files are more than {LARGEST:,} bytes as they are sent")
    return tree


def _entry(path: str, kind: Any, mode: int, when: int, content: str) -> tuple[str, Entry]:
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path or len(path) > 16 * LONGEST_NAME:
        raise ValueError(f"{path!r} is no absolute path")
    if kind not in ("file", "folder", "link") or parts[1] in inside.SYSTEM:
        raise ValueError(f"{path!r} cannot be kept")
    return path, Entry(kind, int(mode) & 0o7777, int(when), base64.b64decode(content))
