"""The learner's weights on running servers from process to process, with no file that both must see."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import httpx
import torch
import torch.distributed
from pydantic import BaseModel

from agentgym.errors import AgentGymError
from agentgym.policies.sync import TOLERANCE
from agentgym.policies.vllm.client import VllmPolicy
from agentgym.policies.vllm.replica import QUICK, Anything, Lost, Replica
from agentgym.policies.vllm.sync import PushedWeights, refusals

dist: Any = torch.distributed  # its stubs lack half of what it has
PATIENCE = QUICK  # seconds until all have come, and for each weight
TROUBLE = (RuntimeError, OSError)  # torch's words for a line that breaks
LOOK = 0.005  # seconds between two looks at who has come


class Size(BaseModel):
    world_size: int  # processes of the server that hold weights


class BroadcastWeights(PushedWeights):
    """Weights by a process group of the learner and one server, over gloo, whatever the two compute on.

    ``host`` is the learner's address as servers see it, or else the one from which it reaches each. It listens there while a push is
    under way, to whoever comes first. The group is made anew for each push, for a server may be another than it was. Names and shapes
    are checked before; a line that breaks in the middle leaves a mixture, and the server counts as lost until a push was whole. What
    was pushed last is kept in this process's memory.
    """

    def __init__(self, policy: VllmPolicy, model: Any, *, host: str | None = None, tolerance: float = TOLERANCE) -> None:
        super().__init__(policy, model, tolerance=tolerance)
        self.host = host
        self._weights: dict[str, torch.Tensor] = {}

    def _keep(self, weights: dict[str, Any]) -> None:
        self._weights = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}

    def _kept(self) -> dict[str, Any]:
        return self._weights

    async def _send(self, replica: Replica) -> None:
        about = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in self._weights.items()]
        with refusals(replica):
            await replica.quick("/init_weight_transfer_engine", Anything, {"init_info": {"weights": about}})
        world = 1 + (await replica.get("/get_world_size", Size)).world_size
        with await asyncio.to_thread(_listener, self.host, replica.url) as listener:
            await replica.quick("/start_weight_update", Anything)
            await self._transfer(replica, listener, world)
        await replica.post("/finish_weight_update", Anything, {"weight_version": self._name})

    async def _transfer(self, replica: Replica, listener: socket.socket, world: int) -> None:
        """Raises `Lost` where the line breaks, with what both ends say. No update is left open at the server."""
        host, port = listener.getsockname()[:2]
        body = {"update_info": {"host": host, "port": port, "world": world, "patience": PATIENCE}}
        giving_up = threading.Event()
        sending = asyncio.create_task(asyncio.to_thread(_broadcast, list(self._weights.values()), listener, world, giving_up))
        try:
            await replica.post("/update_weights", Anything, body)
        except BaseException as error:
            giving_up.set()
            (here,) = await asyncio.gather(sending, return_exceptions=True)
            if isinstance(here, Exception) and not isinstance(here, TROUBLE):
                raise here from error
            if isinstance(error, Lost) and here is not None:
                raise Lost(f"{error}; here: {here}") from error
            raise
        try:
            await sending
        except TROUBLE as error:
            await replica.post("/finish_weight_update", Anything)
            raise Lost(f"{replica.url}: the line to it broke ({error})") from error


def _listener(host: str | None, url: str) -> socket.socket:
    """At this machine's address on the way to ``url``, unless another is given. Nothing is sent."""
    if host is not None:
        try:
            return socket.create_server((host, 0))
        except OSError as error:
            raise AgentGymError(f"weights cannot be sent from host {host!r} ({error}): name an address of this machine") from error
    where = httpx.URL(url)
    try:
        family, kind, _, _, address = socket.getaddrinfo(where.host, where.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return socket.create_server((probe.getsockname()[0], 0), family=family)
    except OSError as error:
        raise Lost(f"{url} cannot be reached: {error}") from error


def _broadcast(weights: list[torch.Tensor], listener: socket.socket, world: int, giving_up: threading.Event) -> None:
    host, port = listener.getsockname()[:2]
    patience = timedelta(seconds=PATIENCE)
    store = dist.TCPStore(host, port, is_master=True, timeout=patience, wait_for_workers=False, master_listen_fd=listener.detach())
    if not _met(store, world, giving_up):
        return
    options = dist.ProcessGroupGloo._Options()
    options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=host)], patience
    group = dist.ProcessGroupGloo(store, 0, world, options)
    for weight in weights:
        group.broadcast(weight, 0).wait()


def _met(store: Any, world: int, giving_up: threading.Event) -> bool:
    """Whether all came before it was given up: a group would wait for them whatever had become of them."""
    until = time.monotonic() + PATIENCE
    while not store.check([f"rank {rank}" for rank in range(1, world)]):
        if giving_up.wait(LOOK):
            return False
        if time.monotonic() > until:
            raise TimeoutError(f"not all of {world - 1} came within {PATIENCE:g} s")
    return True
