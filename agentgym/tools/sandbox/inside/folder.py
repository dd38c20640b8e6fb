"""Files into a working folder and out of it again, through descriptors, so that no link that a program left is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress

DEEPEST = 32  # folders within folders
_BLOCK = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def fill(folder: int, files: Mapping[str, bytes], uid: int) -> None:
    """Write files by relative path, owned by ``uid``. Raises OSError where they do not fit."""
    for path, content in files.items():
        *parents, name = path.split("/")
        at = os.dup(folder)
        try:
            for parent in parents:
                at = _inner(at, parent, uid)
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=at)
            with open(fd, "wb", buffering=0) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                os.fchown(fd, uid, uid)
        finally:
            os.close(at)


def _inner(at: int, name: str, uid: int) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=at)
        os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False)
    except FileExistsError:
        pass
    inner = os.open(name, _FOLDER, dir_fd=at)
    os.close(at)
    return inner


def collect(folder: int, most: int) -> tuple[dict[str, bytes], bool]:
    """The regular files by relative path, at most ``most`` bytes of them, and whether all are there."""
    files: dict[str, bytes] = {}
    left = most
    for path, at, name, size in _regular(folder, "", 0):
        if size > left:
            return files, False
        try:
            fd = os.open(name, _FILE, dir_fd=at)
        except OSError:
            continue
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                files[path] = file.read(left)
                left -= len(files[path])
    return files, True


def _regular(folder: int, prefix: str, depth: int) -> Iterator[tuple[str, int, str, int]]:
    """Path, descriptor of the folder, name and size, in order of names."""
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        try:
            is_folder, about = entry.is_dir(follow_symlinks=False), entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            yield prefix + entry.name, folder, entry.name, about.st_size
        elif is_folder and depth < DEEPEST:
            try:
                inner = os.open(entry.name, _FOLDER, dir_fd=folder)
            except OSError:
                continue
            try:
                yield from _regular(inner, f"{prefix}{entry.name}/", depth + 1)
            finally:
                os.close(inner)


def empty(folder: int) -> None:
    """Take out all that can be taken out. What lies in inner folders is moved up first, so that no depth is too deep."""
    for turn in range(2**16):
        inner = [entry.name for entry in _entries(folder) if not _unlinked(folder, entry)]
        if not inner:
            return
        for index, name in enumerate(inner):
            _move_up(folder, name, f".{turn}.{index}")


def _move_up(folder: int, name: str, prefix: str) -> None:
    with suppress(OSError):
        os.chmod(name, 0o700, dir_fd=folder)
        within = os.open(name, _FOLDER, dir_fd=folder)
        try:
            for index, entry in enumerate(_entries(within)):
                if not _unlinked(within, entry):
                    os.rename(entry.name, f"{prefix}.{index}", src_dir_fd=within, dst_dir_fd=folder)
        finally:
            os.close(within)
        os.rmdir(name, dir_fd=folder)


def _unlinked(folder: int, entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return False
    with suppress(OSError):
        os.unlink(entry.name, dir_fd=folder)
    return True


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def is_full(folder: int) -> bool:
    about = os.fstatvfs(folder)
    return about.f_bfree == 0 or about.f_ffree == 0


def size(folder: int, enough: int) -> int:
    """What the files take, counted until ``enough`` bytes are reached; the smallest takes a block."""
    total = 0
    for _, _, _, length in _regular(folder, "", 0):
        total += max(length, _BLOCK)
        if total >= enough:
            break
    return total
