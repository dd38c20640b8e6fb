"""A tree of files as a value, what changed between two of them, and trees from the manifests of InterCode."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from agentgym.errors import AgentGymError

# What the official image leaves out of its comparison, at any depth.
IGNORED = frozenset(("bin", "boot", "dev", "etc", "home", "lib", "media", "opt", "proc", "root", "run", "sbin", "srv", "sys", "usr", "var"))
PACKED = 1685095980  # 2023-05-26: when the files of an archive were written


class Entry(NamedTuple):
    """``mode``: the permissions. ``when``: seconds since 1970 of its last change; 0 or less: relative to the present command."""

    kind: Literal["file", "folder", "link"]
    mode: int
    when: int
    content: bytes = b""  # of a link: what it leads to


Tree = tuple[tuple[str, Entry], ...]  # by absolute path, sorted; without the system's own folders


class Item(BaseModel):
    """One place of a manifest."""

    path: str
    type: Literal["file", "dir"]
    mode: str
    content: str = ""
    content_b64: str | None = None
    mtime: datetime | None = None
    tar_gz_of: list[str] | None = None

    def entry(self, age: int) -> Entry:
        when = -age if self.mtime is None else int(self.mtime.replace(tzinfo=UTC).timestamp())
        if self.type == "dir":
            return Entry("folder", int(self.mode, 8), when)
        content = self.content.encode() if self.content_b64 is None else base64.b64decode(self.content_b64, validate=True)
        return Entry("file", int(self.mode, 8), when, content)


def tree_of(entries: Mapping[str, Entry]) -> Tree:
    return tuple(sorted(entries.items()))


def read_manifest(path: Path, age: int) -> Tree:
    """``age``: seconds since the files without a fixed time were written. Raises `AgentGymError` with the place of what does not fit."""
    try:
        items = TypeAdapter(list[Item]).validate_json(path.read_bytes())
        entries = {item.path: item.entry(age) for item in items}
    except OSError as error:
        raise AgentGymError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise AgentGymError(f"{path}: {reasons}") from None
    except ValueError as error:
        raise AgentGymError(f"{path}: a mode or a base64 content cannot be read ({error})") from None
    for item in items:
        if item.tar_gz_of is not None:
            entries[item.path] = entries[item.path]._replace(content=_archive(entries, item.tar_gz_of))
    return tree_of(_without_empty(entries))


def _without_empty(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The official environment resets itself by ``git clean``, which takes empty folders away."""
    filled = {str(folder) for path, entry in entries.items() if entry.kind != "folder" for folder in Path(path).parents}
    return {path: entry for path, entry in entries.items() if entry.kind != "folder" or path in filled}


def _archive(entries: Mapping[str, Entry], places: list[str]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path, entry in sorted(entries.items()):
            if any(path == place or path.startswith(f"{place}/") for place in places):
                info = tarfile.TarInfo(path.lstrip("/"))
                info.type = tarfile.DIRTYPE if entry.kind == "folder" else tarfile.REGTYPE
                info.mode, info.mtime, info.size = entry.mode, max(PACKED, entry.when), len(entry.content)
                info.uname = info.gname = "root"
                tar.addfile(info, io.BytesIO(entry.content))
    return packed.getvalue()


@dataclass(frozen=True, slots=True)
class Change:
    path: str  # as ``git status --short`` writes it
    code: str  # M, D, T or ??


def changes(before: Tree, after: Tree) -> list[Change]:
    """What ``git status --short`` says, read as InterCode reads it: by words, so that a space in a path shifts what follows."""
    words = _status(dict(before), dict(after)).split()
    return [Change(path, code) for code, path in zip(words[::2], words[1::2], strict=False)]


def _status(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> str:
    tracked = {path: entry for path, entry in before.items() if entry.kind != "folder"}
    lines = [f" {code} {_quoted(path)}" for path in tracked if (code := _code(tracked[path], after.get(path)))]
    with_tracked = {str(folder) for path in tracked for folder in Path(path).parents}
    new = [path for path, entry in after.items() if entry.kind != "folder" and path not in tracked and IGNORED.isdisjoint(path.split("/"))]
    return "\n".join([*lines, *(f"?? {_quoted(path)}" for path in sorted({_topmost(path, with_tracked) for path in new}))])


def _code(old: Entry, new: Entry | None) -> str:
    if new is None or new.kind == "folder":
        return "D"
    if new.kind != old.kind:
        return "T"
    return "M" if new.content != old.content or (new.mode ^ old.mode) & 0o100 else ""


def _topmost(path: str, with_tracked: set[str]) -> str:
    """The highest folder above ``path`` that holds nothing tracked, with a slash; or ``path``."""
    above = [str(folder) for folder in Path(path).parents if str(folder) not in with_tracked | {"/"}]
    return f"{above[-1]}/" if above else path


def _quoted(path: str) -> str:
    """From the root, quoted where there is anything but plain characters."""
    written = json.dumps(path[1:], ensure_ascii=True)
    return written if written != f'"{path[1:]}"' or " " in path else path[1:]
