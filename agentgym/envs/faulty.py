"""Any environment, with tools that fail: to see what a training makes of it."""

from __future__ import annotations

from typing import Any

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.registry import make


def faulty(of: str, rate: float, **arguments: Any) -> AgentEnv:
    """The environment ``of``, each of whose turns fails at this rate before anything of it is done.

    Which do is drawn from the episode's own seeds: a run that is repeated fails at the same turns.
    """
    if not 0 <= rate <= 1:
        raise AgentGymError(f"the rate of failures is {rate}: it is a probability, between 0 and 1")
    env: Any = make(of, **arguments)
    sound = env.step

    def step(action: str) -> Any:
        if env.rng("fault").random() < rate:
            raise InfrastructureError("a fault was injected")
        return sound(action)

    env.step = step
    found: AgentEnv = env
    return found
