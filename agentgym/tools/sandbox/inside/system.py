"""The calls to the kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
_PDEATHSIG, _DUMPABLE, _DROP_BOUND, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
_CAPABILITIES_3 = 0x20080522
_BRING_UP, _UP_AND_RUNNING = 0x8914, 0x41

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def enter(namespace: int, flag: int) -> None:
    """Make the namespace of a file descriptor that of the children to come."""
    _check(_libc.setns(namespace, flag), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {source} on {target}")


def bind(source: str, target: str) -> None:
    mount(source, target, flags=BIND)


def unmount(target: str) -> None:
    _check(_libc.umount2(target.encode(), 2), f"unmount {target}")


def prctl(option: int, value: int = 0, pointer: ctypes.c_void_p | None = None) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), pointer, None, None), f"prctl {option}")


def die_with_parent() -> None:
    prctl(_PDEATHSIG, 9)


def adopt_orphans() -> None:
    prctl(_SUBREAPER, 1)


def readable_by_owner(readable: bool) -> None:
    """Whether processes of the same user may look into this one's memory and descriptors."""
    prctl(_DUMPABLE, int(readable))


def drop_capabilities() -> None:
    """All of them, and the way back: programs that are executed get none either."""
    for capability in range(64):
        try:
            prctl(_DROP_BOUND, capability)
        except OSError:
            break  # without the right to, or beyond the last
    header = struct.pack("Ii", _CAPABILITIES_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def no_new_privileges() -> None:
    prctl(_NO_NEW_PRIVILEGES, 1)


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _BRING_UP, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
