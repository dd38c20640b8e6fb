"""Joining a Ray cluster, and whether what is asked of it has room there."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import Any

from agentgym.errors import AgentGymError, MissingExtra

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
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
        sizes = (self.cpus, self.gpus)
        if not all(map(math.isfinite, sizes)) or min(sizes) < 0 or max(sizes) < 0.0001 or (1 if self.number is None else self.number) < 1:
            raise AgentGymError(f"{self} cannot be placed: ask for 1 at least, each of which takes some CPU or GPU")
        if self.gpus > 1 and self.gpus % 1:
            raise AgentGymError(f"{self} cannot be placed: Ray shares one GPU, or gives whole ones")

    def __str__(self) -> str:
        total = f" ({self._taken(self.number)})" if self.number else ""
        return f"{'' if self.number is None else f'{self.number} '}{self.what} of {self._taken(1)} each{total}"

    def _taken(self, number: int) -> str:
        taken = ((number * self.cpus, "CPUs"), (number * self.gpus, "GPUs"))
        return " and ".join(f"{amount:g} {unit}" for amount, unit in taken if amount) or "nothing"


def connect(address: str, *shares: Share) -> list[list[str]]:
    """Join the cluster, if this process is in none yet, and choose for each share the nodes that its parts are to begin on, by their ids.

    ``address`` is Ray's: "auto", "local", or that of a head. What others have taken of the cluster counts as free. Raises `AgentGymError`
    where there is no cluster, or it is too small.
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
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    free = {id: (round(10_000 * node.get("CPU", 0.0)), round(10_000 * node.get("GPU", 0.0))) for id, node in nodes.items()}  # as Ray counts
    chosen: dict[str, list[str]] = {}
    for share in sorted(shares, key=lambda share: (share.number is None, -share.gpus, -share.cpus)):  # the small fit in beside the large
        found = chosen[share.what] = place(share, free)
        if len(found) < (share.number or 1):
            units = ("CPU", "GPU") if share.gpus else ("CPU",)
            there = ", ".join(f"{' + '.join(f'{node.get(unit, 0.0):g}' for node in nodes.values())} {unit}s" for unit in units)
            besides = " beside ".join(str(other) for other in shares if other is not share)
            raise AgentGymError(
                f"the Ray cluster at {address!r} is too small: {share} are asked for{besides and f' beside {besides}'}, but its nodes have "
                f"{there}, room for {len(found)}. Add nodes, or ask for fewer"
            )
    return [chosen[share.what] for share in shares]


def actor_on(node: str, kind: type, share: Share, **options: Any) -> Any:
    """What makes an actor of that class on a node, and elsewhere once the node is gone."""
    where = NodeAffinitySchedulingStrategy(node, soft=True)
    return ray.remote(kind).options(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=-1, scheduling_strategy=where, **options)


def place(share: Share, free: dict[str, tuple[int, int]]) -> list[str]:
    """The nodes for as many as have room, each on that with the most left, which then has less."""
    cpus, gpus = round(10_000 * share.cpus), round(10_000 * share.gpus)
    chosen: list[str] = []
    while share.number is None or len(chosen) < share.number:
        room = {id: left[::-1] if gpus else left for id, left in free.items() if left[0] >= cpus and left[1] >= gpus}
        if not room:
            break
        chosen.append(most := max(room, key=lambda id: room[id]))
        free[most] = free[most][0] - cpus, free[most][1] - gpus
    return chosen


def _refuse_closed_port(address: str) -> None:
    """Ray by itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), PING).close()
