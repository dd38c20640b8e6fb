"""vLLM servers in Ray actors on other machines: where each of them is now, and another in its place when its machine is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from agentgym.cluster import PING, Share, connect
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

    ``urls`` are for `agentgym.policies.vllm.client.VllmPolicy`. A server that ends is started again, on another node where its own is
    gone and another has room, and gets the weights that were pushed last before anything is asked of it. ``model`` and ``settings`` are
    those of ``agentgym serve-policy``; all machines have the same agentgym and model, and vLLM in the environment whose python
    ``AGENTGYM_VLLM_PYTHON`` names there. Servers listen at their node's address, and their routes have no password: the cluster's network
    must be private.

    Raises `AgentGymError` where there is no cluster, it is too small, or a server does not start.
    """

    def __init__(
        self, model: str, address: str = "auto", number: int | None = None, cpus: float = 1.0, gpus: float = 0.0, **settings: Any
    ) -> None:
        (number,) = connect(address, Share("servers", number, cpus, gpus))
        actor = ray.remote(Serving).options(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, scheduling_strategy="SPREAD")
        settings = {"cpu": not gpus, **settings}
        self.urls = [Served(f"server {i}", actor.remote(model, settings)) for i in range(1, number + 1)]
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers."""
        stopping = [server.actor.stop.remote() for server in self.urls]
        ray.wait(stopping, num_returns=len(stopping), timeout=PING)
        for server in self.urls:
            ray.kill(server.actor)

    def _wait(self) -> None:
        started = {server.actor.url.remote(): server for server in self.urls}
        _, missing = ray.wait(list(started), num_returns=len(started), timeout=START)
        if missing:
            names = ", ".join(started[one].name for one in missing)
            raise AgentGymError(f"{names} on Ray did not start in {START:g} s: is vLLM installed there, and has the cluster room?")
        for answer, server in started.items():
            try:
                ray.get(answer)
            except RayError as error:
                raise AgentGymError(f"{server.name} on Ray cannot be started: {_last_line(error)}") from None


def _last_line(error: BaseException) -> str:
    """Of what Ray says: the error itself, without where it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
