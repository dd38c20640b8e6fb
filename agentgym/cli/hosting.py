"""Where environments and servers of the policy live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from agentgym.trainers.recipe import Recipe


def hosted(make_env: Callable[[], AgentEnv], ray: str | None, **workers: Any) -> AbstractContextManager[Callable[[], AgentEnv]]:
    """``make_env`` as it is, or with its environments on the Ray cluster at that address, in ``workers`` (number, cpus)."""
    if ray is None:
        return nullcontext(make_env)
    from agentgym.envs.on_ray import RayWorkers

    return RayWorkers(make_env, ray, **workers)


@contextmanager
def served(recipe: Recipe, ray: str | None) -> Iterator[dict[str, Any]]:
    """What the recipe's actor is to be told of the servers that it asks for, while they run on the Ray cluster at that address."""
    if recipe.servers is None:
        yield {}
        return
    if ray is None:
        raise AgentGymError("servers are started on a Ray cluster: give --ray ADDRESS, or start 'agentgym serve-policy' and name its urls")
    from agentgym.policies.vllm.on_ray import RayServers

    with RayServers(recipe.policy, ray, **recipe.servers.model_dump()) as servers:
        yield {"urls": servers.urls}


def placed(recipe: Recipe, ray: str) -> Recipe:
    """With as many servers and workers as have room, servers first. Raises `AgentGymError` where the cluster is too small."""
    from agentgym.cluster import Share, connect

    workers, servers = recipe.workers, recipe.servers
    asked = Share("workers", workers.number, workers.cpus)
    if servers is None:
        (number,) = connect(ray, asked)
    else:
        servers_number, number = connect(ray, Share("servers", servers.number, servers.cpus, servers.gpus), asked)
        servers = servers.model_copy(update={"number": servers_number})
    return recipe.model_copy(update={"workers": workers.model_copy(update={"number": number}), "servers": servers})
