"""Endless demonstrations by an expert that errs, for warm starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.envs.household.expert import Expert
from agentgym.expand import Groups
from agentgym.rollout import Rollout, Start
from agentgym.seeds import Lineage
from agentgym.turn import TurnTree


class Demonstrations:
    """Episodes of the erring expert on training tasks, drawn evenly."""

    def __init__(self, make_env: Callable[[], AgentEnv], chat: Chat | None, seed: int, mistakes: float) -> None:
        self.make_env = make_env
        self.chat = chat
        self.lineage = Lineage.of(seed, "demonstrations")
        self.expert = Expert(seed=seed, mistakes=mistakes)
        self.tasks = make_env().tasks("train")
        self._round = 0

    def play(self, count: int) -> list[TurnTree]:
        """The next ``count`` demonstrations, each a tree of one episode."""
        lineage = self.lineage / self._round
        self._round += 1
        starts = [Start(task) for task in (lineage / "tasks").rng().choices(self.tasks, k=count)]
        rollout = Rollout(self.make_env, Groups(1, "expert"), {"expert": self.expert}, self.chat, lineage)
        return asyncio.run(rollout.run(starts))
