"""Where environments and servers of the policy live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from agentgym.policies.vllm.on_ray import RayServers
    from agentgym.trainers.recipe import Recipe


def hosted(make_env: Callable[[], AgentEnv], ray: str | None, **workers: Any) -> AbstractContextManager[Callable[[], AgentEnv]]:
    """``make_env`` as it is, or with its environments on the Ray cluster at that address, in ``workers`` (number, cpus, nodes)."""
    if ray is None:
        return nullcontext(make_env)
    from agentgym.envs.on_ray import RayWorkers

    return RayWorkers(make_env, ray, **workers)


@dataclass(frozen=True)
class Nodes:
    """Those on which a recipe's workers and servers begin, by their ids."""

    workers: list[str]
    servers: list[str]


def nodes_for(recipe: Recipe, ray: str | None) -> Nodes | None:
    """Raises `AgentGymError` where the cluster is too small for the recipe, or there is none for its servers."""
    workers, servers = recipe.workers, recipe.servers
    if ray is None:
        if servers is not None:
            raise AgentGymError("servers are started on a Ray cluster: give --ray ADDRESS, or leave them out and name the urls of others")
        return None
    from agentgym.cluster import Share, connect

    asked = [] if servers is None else [Share("servers", servers.number, servers.cpus, servers.gpus)]
    *for_servers, for_workers = connect(ray, *asked, Share("workers", workers.number, workers.cpus))
    return Nodes(for_workers, for_servers[0] if for_servers else [])


@contextmanager
def served(recipe: Recipe, nodes: Nodes | None) -> Iterator[RayServers | None]:
    """The servers that a recipe asks for, which begin to start."""
    if recipe.servers is None or nodes is None:
        yield None
        return
    from agentgym.policies.vllm.on_ray import RayServers

    with closing(RayServers(recipe.policy, nodes=nodes.servers, **recipe.servers.model_dump())) as servers:
        yield servers
