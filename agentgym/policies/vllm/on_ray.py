"""vLLM servers in Ray actors on other machines: where each of them is now, and another in its place when its machine is lost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from agentgym.cluster import PING, Share, actor_on, connect
from agentgym.errors import AgentGymError
from agentgym.policies.vllm.export import servable
from agentgym.policies.vllm.replica import QUICK, Lost
from agentgym.policies.vllm.server import VllmServer

import ray  # isort: skip  # after the cluster, which says what is missing
from ray.exceptions import RayError  # isort: skip

START = 900.0  # seconds until all servers answer: a machine may have to load the model first


class Serving:
    """What a Ray actor is made of: one server, started again where it has ended."""

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        if os.path.isabs(model) and not os.path.exists(model):
            raise AgentGymError(f"there is no {model} on this machine: servers need the policy's folder where they run")
        self._model, self._settings = model, settings
        self._folder = TemporaryDirectory(prefix="agentgym-")
        self._server: VllmServer | None = None

    def url(self) -> str:
        """Once it answers."""
        if self._server is None:
            folder = Path(self._folder.name)
            python = os.environ.get("AGENTGYM_VLLM_PYTHON", "python")
            settings = {"python": python, "host": ray.util.get_node_ip_address(), "log": folder / "vllm.log", **self._settings}
            self._server = VllmServer(servable(self._model, folder / "model"), **settings)
        if not self._server.running():
            self._server.start()
        return self._server.url

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._folder.cleanup()


class Served:
    """Where a server is now, for `agentgym.policies.vllm.client.VllmPolicy`."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self.actor = name, actor

    def __str__(self) -> str:
        return self.name

    async def __call__(self) -> str:
        """Raises `Lost` until it answers."""
        try:
            return str(await asyncio.wait_for(self.actor.url.remote(), QUICK))
        except TimeoutError:
            raise Lost(f"{self.name} has not started yet") from None
        except RayError as error:
            raise Lost(f"{self.name}: {_last_line(error)}") from None


class RayServers:
    """``number`` servers of ``model``, each in a Ray actor of ``cpus`` and ``gpus``, spread over a cluster; or as many as have room.

    ``urls`` are for `agentgym.policies.vllm.client.VllmPolicy`, from the beginning; ``wait``, or the beginning of a ``with``, ends once all
    servers answer. ``nodes``: those that `agentgym.cluster.connect` chose, where it was asked before. A server that ends is started again,
    on another node where its own is gone and another has room, and gets the weights that were pushed last before anything is asked of it.
    ``model`` and ``settings`` are those of ``agentgym serve-policy``; all machines have the same agentgym and model, and vLLM in the
    environment whose python ``AGENTGYM_VLLM_PYTHON`` names there. Servers listen at their node's address, and their routes have no
    password: the cluster's network must be private.

    Raises `AgentGymError` where there is no cluster, it is too small, or a server does not start.
    """

    def __init__(
        self,
        model: str,
        address: str = "auto",
        number: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        nodes: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        share = Share("servers", number, cpus, gpus)
        nodes = connect(address, share)[0] if nodes is None else nodes
        model = os.path.abspath(model) if os.path.exists(model) else model  # actors have another working folder
        actors = [actor_on(node, Serving, share).remote(model, {"cpu": not gpus, **settings}) for node in nodes]
        self.urls = [Served(f"server {i}", actor) for i, actor in enumerate(actors, 1)]
        self._starting = {server.actor.url.remote(): server for server in self.urls}

    def __enter__(self) -> Self:
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers."""
        stopping = [server.actor.stop.remote() for server in self.urls]
        ray.wait(stopping, num_returns=len(stopping), timeout=PING)
        for server in self.urls:
            ray.kill(server.actor)

    def wait(self) -> None:
        until = time.monotonic() + START
        while self._starting:
            answers, _ = ray.wait(list(self._starting), num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not answers:
                names = ", ".join(server.name for server in self._starting.values())
                raise AgentGymError(f"{names} on Ray did not start in {START:g} s: is vLLM installed there, and has the cluster room?")
            server = self._starting.pop(answers[0])
            try:
                ray.get(answers[0])
            except RayError as error:
                raise AgentGymError(f"{server.name} on Ray cannot be started: {_last_line(error)}") from None


def _last_line(error: BaseException) -> str:
    """Of what Ray says: the error itself, without where it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
