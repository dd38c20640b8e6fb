"""Where environments live."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agentgym.env import AgentEnv


def hosted(make_env: Callable[[], AgentEnv], ray: str | None, **workers: Any) -> AbstractContextManager[Callable[[], AgentEnv]]:
    """``make_env`` as it is, or with its environments on the Ray cluster at that address, in ``workers`` (number, cpus)."""
    if ray is None:
        return nullcontext(make_env)
    from agentgym.envs.on_ray import RayWorkers

    return RayWorkers(make_env, ray, **workers)
