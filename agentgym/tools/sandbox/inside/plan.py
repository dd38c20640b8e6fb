"""What the host asks of a worker when it starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits are those of `agentgym.tools.sandbox.SandboxLimits`, in the same units."""

    socket: str  # the path that the worker listens at
    isolated: bool  # in namespaces of its own, else as an ordinary process of the machine
    scratch: str  # where working folders are made; isolated: not used
    wall: float
    cpu: float
    memory: int
    processes: int
    output: int
    disk: int
    network: bool
    commands: bool = False  # whether programs get a root folder of their own and the machine's commands
