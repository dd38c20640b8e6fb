"""Sandboxes for programs: text and files in, text and files out, and nothing outlives the call. See docs/sandbox.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from agentgym.tools.sandbox.worker import Launcher

Backend = Literal["docker", "bubblewrap", "subprocess"]


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one call may use. All of its processes count together."""

    wall: float = 5.0  # seconds
    cpu: float = 5.0  # seconds
    memory: int = 256  # MiB
    processes: int = 32  # and threads
    output: int = 65536  # bytes of stdout and stderr together; what is beyond is cut with a notice
    disk: int = 16  # MiB, all that the call may leave in its working folder and /tmp
    network: bool = False  # nothing but loopback, and that empty, unless True

    def __post_init__(self) -> None:
        for name in ("wall", "cpu", "memory", "processes", "output", "disk"):
            if not getattr(self, name) > 0:
                raise AgentGymError(f"SandboxLimits({name}={getattr(self, name)!r}): a limit is a positive number")


@dataclass(frozen=True, slots=True)
class Execution:
    """How a program ended, and what it left. A program that a limit ended is a result like any other."""

    stdout: str  # decoded with replacement; oversized output is cut with a notice that says how much is missing
    stderr: str
    status: int | None  # exit status; negative: the signal; None: the sandbox ended it
    stopped: str  # "" or the limit that ended it: "wall", "cpu", "memory", "processes", "output", "disk"
    files: Mapping[str, bytes]  # the working folder after the call: regular files by relative path, never what a link leads to
    seconds: float  # wall time of the program itself
    cpu: float = 0.0  # seconds that its processes used, to a hundredth or two


class Sandbox(Protocol):
    """Runs Python programs. Calls are independent of each other, and may come from several threads."""

    name: str
    limits: SandboxLimits

    def run(self, program: str, *, files: Mapping[str, bytes] = {}, stdin: str = "", history: Sequence[str] = ()) -> Execution:
        """Run ``program`` as ``__main__`` in a fresh working folder that holds ``files``.

        ``history``: earlier programs, whose variables it finds, as cells of a notebook do; those that failed left none.
        Raises ValueError for files that cannot be there, `SnapshotMismatch` if a cell of the history that had succeeded
        fails when it is repeated, and `InfrastructureError` if the sandbox itself dies; the next call gets a new one.
        """
        ...

    def close(self) -> None: ...


def open_sandbox(backend: Backend | None = None, limits: SandboxLimits | None = None, *, commands: bool = False) -> Sandbox:
    """A sandbox that works here: ``backend`` if one is named, else bubblewrap, else Docker.

    ``commands``: programs find the commands of this machine as well (of ``/usr``, read-only), and a root folder of their own,
    which they may fill. Bubblewrap alone does that.

    Raises `AgentGymError` if it cannot be had, and says what to install. ``"subprocess"`` guarantees less (docs/sandbox.md)
    and is never chosen by itself.
    """
    from agentgym.tools.sandbox.client import ForkingSandbox

    limits = limits or SandboxLimits()
    if commands:
        return ForkingSandbox(_commands(backend), limits)
    if backend is not None:
        return ForkingSandbox(_launcher(backend), limits)
    missing = []
    for name in ("bubblewrap", "docker"):
        try:
            return ForkingSandbox(_launcher(name), limits)
        except AgentGymError as error:
            missing.append(str(error))
    raise AgentGymError(
        f"no sandbox works here: {'; '.join(missing)}. Install bubblewrap (apt-get install bubblewrap) or a Docker engine. "
        f"open_sandbox('subprocess') runs programs with weaker guarantees: {WEAKER}"
    )


WEAKER = "they can read the files and see the processes that their user can, and only polling holds their memory and disk"


def _commands(backend: Backend | None) -> Launcher:
    from agentgym.tools.sandbox.bubblewrap import Bubblewrap

    if backend not in (None, "bubblewrap"):
        raise AgentGymError(f"the {backend} sandbox cannot offer this machine's commands: leave the backend out, or name bubblewrap")
    return Bubblewrap(commands=True)


def _launcher(backend: str) -> Launcher:
    if backend == "bubblewrap":
        from agentgym.tools.sandbox.bubblewrap import Bubblewrap

        return Bubblewrap()
    if backend == "docker":
        from agentgym.tools.sandbox.docker import Docker

        return Docker()
    if backend == "subprocess":
        from agentgym.tools.sandbox.unguarded import Unguarded

        return Unguarded()
    raise AgentGymError(f"no sandbox {backend!r}; there are docker, bubblewrap and subprocess")
