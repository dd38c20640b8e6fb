"""A filter on system calls: what no program needs and what would lead out of a sandbox is answered with "not permitted".

The kernel hands it down to every descendant, and nobody can take it off (seccomp(2), mode FILTER).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import system

_MODE_FILTER, _SET_SECCOMP = 2, 22
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT, _SECOND = 0, 4, 16, 24  # offsets of a call's number, architecture and arguments
_NAMESPACES = 0x7E020000  # all flags of clone(2) that ask for a new namespace
_UNIX, _INET, _INET6 = 1, 2, 10
_PR_SET_DUMPABLE = 4
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64; None where an architecture lacks the call.
_FORBIDDEN: dict[str, tuple[int, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "memfd_create": (319, 279),  # memory that no process is charged with
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),  # as memfd_create
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
_CLONE, _CLONE3, _SOCKET, _KILL_CALL, _PRCTL = (56, 220), (435, 435), (41, 198), (62, 129), (157, 167)


def instructions(sockets: bool, kill_all: bool) -> bytes:
    """The filter for this architecture. ``sockets``: of Unix and the internet alone, else none; pairs of them are always
    allowed. ``kill_all``: whether a signal may be sent to all processes at once, as a process identifier of -1 asks for.
    """
    architecture, column = _ARCHITECTURES[os.uname().machine]
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if column == 0:
        lines += [(_AT_LEAST, 0, 1, 0x40000000), _refused()]  # the x32 interface: the same calls by other numbers
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), _refused()]
    lines += [(_EQUAL, 0, 1, _CLONE3[column]), _refused(errno.ENOSYS)]  # its flags lie in memory; libraries fall back to clone
    lines += _for_call(_CLONE[column], [(_ANY_BIT, 0, 1, _NAMESPACES), _refused()])
    lines += _for_call(_PRCTL[column], [(_EQUAL, 0, 3, _PR_SET_DUMPABLE), (_LOAD, 0, 0, _SECOND), (_EQUAL, 1, 0, 0), _refused()])
    if sockets:
        lines += _for_call(_SOCKET[column], [(_EQUAL, 3, 0, _UNIX), (_EQUAL, 2, 0, _INET), (_EQUAL, 1, 0, _INET6), _refused()])
    else:
        lines += [(_EQUAL, 0, 1, _SOCKET[column]), _refused()]
    if not kill_all:
        lines += _for_call(_KILL_CALL[column], [(_EQUAL, 0, 1, 0xFFFFFFFF), _refused()])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def install(program: bytes) -> None:
    """For this process and all its descendants. Needs ``no_new_privileges`` first."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    system.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.cast(ctypes.create_string_buffer(described), ctypes.c_void_p))


def _refused(code: int = errno.EPERM) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, _ERROR | code)


def _for_call(number: int, checks: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Checks on the first argument of one call; the number is loaded again behind them."""
    return [(_EQUAL, 0, len(checks) + 2, number), (_LOAD, 0, 0, _ARGUMENT), *checks, (_LOAD, 0, 0, _NUMBER)]
