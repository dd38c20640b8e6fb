"""Joining a Ray cluster, and whether what is asked of it has room there."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from agentgym.errors import AgentGymError, MissingExtra

try:
    import ray
except ImportError as error:
    raise MissingExtra("ray", "ray") from error

PING = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Share:
    """So many of something, each of which takes so much of one node; None: as many as have room."""

    what: str
    number: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus) < 0 or max(self.cpus, self.gpus) < 0.0001 or (self.number or 1) < 1:
            raise AgentGymError(f"{self} cannot be placed: ask for 1 at least, each of which takes some CPU or GPU")

    def __str__(self) -> str:
        total = f" ({self._taken(self.number)})" if self.number else ""
        return f"{'' if self.number is None else f'{self.number} '}{self.what} of {self._taken(1)} each{total}"

    def _taken(self, number: int) -> str:
        taken = ((number * self.cpus, "CPUs"), (number * self.gpus, "GPUs"))
        return " and ".join(f"{amount:g} {unit}" for amount, unit in taken if amount) or "nothing"


def connect(address: str, *shares: Share) -> list[int]:
    """Join the cluster, if this process is in none yet, and count how many of each share there may be, the first placed first.

    ``address`` is Ray's: "auto", "local", or that of a head. Raises `AgentGymError` where there is no cluster, or it is too small.
    """
    if not ray.is_initialized():
        try:
            _refuse_closed_port(address)
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise AgentGymError(
                f"no Ray cluster at {address!r} ({reason}): start one with 'ray start --head', and join it as docs/clusters.md says"
            ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = [(round(10_000 * node.get("CPU", 0.0)), round(10_000 * node.get("GPU", 0.0))) for node in nodes]  # as Ray counts
    counts = []
    for share in shares:
        counts.append(room := place(share, free))
        if room < (share.number or 1):
            units = ("CPU", "GPU") if share.gpus else ("CPU",)
            there = ", ".join(f"{' + '.join(f'{node.get(unit, 0.0):g}' for node in nodes)} {unit}s" for unit in units)
            besides = f" beside {' and '.join(map(str, shares[: len(counts) - 1]))}" if len(counts) > 1 else ""
            raise AgentGymError(
                f"the Ray cluster at {address!r} is too small: {share} are asked for{besides}, but its nodes have {there}, "
                f"room for {room}. Add nodes, or ask for fewer"
            )
    return counts


def place(share: Share, free: list[tuple[int, int]]) -> int:
    """How many of a share have room, each on the node with the most left, which then has less."""
    cpus, gpus, placed = round(10_000 * share.cpus), round(10_000 * share.gpus), 0
    while share.number is None or placed < share.number:
        room = [(left, at) for at, left in enumerate(free) if left[0] >= cpus and left[1] >= gpus]
        if not room:
            break
        (has_cpus, has_gpus), at = max(room, key=lambda found: (found[0][::-1] if gpus else found[0], -found[1]))
        free[at] = has_cpus - cpus, has_gpus - gpus
        placed += 1
    return placed


def _refuse_closed_port(address: str) -> None:
    """Ray by itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), PING).close()
