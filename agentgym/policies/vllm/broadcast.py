"""The learner's weights on running servers from process to process, with no file that both must see."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import Any

import httpx
import torch
import torch.distributed
from pydantic import BaseModel

from agentgym.policies.sync import TOLERANCE
from agentgym.policies.vllm.client import VllmPolicy
from agentgym.policies.vllm.replica import QUICK, Anything, Lost, Replica
from agentgym.policies.vllm.sync import PushedWeights, refusals

dist: Any = torch.distributed  # its stubs lack half of what it has
PATIENCE = timedelta(seconds=QUICK)  # for each step of a transfer; a weight takes one


class Size(BaseModel):
    world_size: int  # processes of the server that hold weights


class BroadcastWeights(PushedWeights):
    """Weights by a process group of the learner and one server: with NCCL from a learner on a GPU, else with gloo.

    ``host`` is the learner's address as servers see it, or else the one from which it reaches each. It listens there while a push is
    under way, to whoever comes first. The group is made anew for each push, for a server may be another than it was. Names and shapes
    are checked before; a line that breaks in the middle leaves a mixture, and the server counts as lost until a push was whole. What
    was pushed last is kept where the model is.

    NCCL joins no two processes on one GPU: where a server shares the learner's, use `FileWeights`. Not yet run with NCCL.
    """

    def __init__(self, policy: VllmPolicy, model: Any, *, host: str | None = None, tolerance: float = TOLERANCE) -> None:
        super().__init__(policy, model, tolerance=tolerance)
        self.host = host
        self._weights: dict[str, torch.Tensor] = {}

    def _keep(self, weights: dict[str, Any]) -> None:
        device = next(self.model.parameters()).device
        self._weights = {name: weight.to(device, copy=True) for name, weight in weights.items()}

    def _kept(self) -> dict[str, Any]:
        return {name: weight.cpu() for name, weight in self._weights.items()}

    async def _send(self, replica: Replica) -> None:
        weights = list(self._weights.values())
        about = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in self._weights.items()]
        device = weights[0].device
        with refusals(replica):
            await replica.quick("/init_weight_transfer_engine", Anything, {"init_info": {"weights": about, "device": device.type}})
        await replica.quick("/start_weight_update", Anything)
        world = 1 + (await replica.get("/get_world_size", Size)).world_size
        with socket.create_server((self.host or _reached_from(replica.url), 0)) as listener:
            host, port = listener.getsockname()
            place = {"host": host, "port": port, "world": world, "patience": QUICK}
            asked = replica.post("/update_weights", Anything, {"update_info": place})
            sent = asyncio.to_thread(_broadcast, weights, listener, world)
            answered, ended = await asyncio.gather(asked, sent, return_exceptions=True)
        if isinstance(answered, BaseException):
            raise answered
        if isinstance(ended, BaseException):
            raise Lost(f"{replica.url}: the line to it broke ({ended})") from ended
        await replica.post("/finish_weight_update", Anything, {"weight_version": self._name})


def _reached_from(url: str) -> str:
    """This machine's address on the way there. Nothing is sent."""
    where = httpx.URL(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((where.host, where.port or 80))
        return str(probe.getsockname()[0])


def _broadcast(weights: list[torch.Tensor], listener: socket.socket, world: int) -> None:
    host, port = listener.getsockname()
    store = dist.TCPStore(host, port, is_master=True, timeout=PATIENCE, wait_for_workers=False, master_listen_fd=listener.detach())
    group = _nccl(store, world) if weights[0].is_cuda else _gloo(store, world, host)
    for weight in weights:
        group.broadcast(weight, 0).wait()
    if weights[0].is_cuda:
        torch.cuda.synchronize(weights[0].device)
    group.shutdown()


def _gloo(store: Any, world: int, host: str) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=host)], PATIENCE
    return dist.ProcessGroupGloo(store, 0, world, options)


def _nccl(store: Any, world: int) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = PATIENCE
    return dist.ProcessGroupNCCL(store, 0, world, options)
