"""Endless demonstrations by an expert, for warm starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.expand import Groups
from agentgym.policy import Actor
from agentgym.rollout import Rollout, Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import TurnTree


class Demonstrations:
    """Episodes of ``expert`` on training tasks, drawn evenly. ``chat`` None: without tokens."""

    def __init__(self, make_env: Callable[[], AgentEnv], expert: Actor, chat: Chat | None, seed: int) -> None:
        self.make_env = make_env
        self.expert = expert
        self.chat = chat
        self.lineage = Lineage.of(seed, "demonstrations")
        self.tasks = make_env().tasks("train")
        self._round = 0

    def play(self, count: int) -> list[TurnTree]:
        """The next ``count`` demonstrations, each a tree of one episode."""
        lineage = self.lineage / self._round
        self._round += 1
        starts = [Start(task) for task in self.draw(lineage / "tasks", count)]
        rollout = Rollout(self.make_env, Groups(1, "expert"), {"expert": self.expert}, self.chat, lineage)
        return asyncio.run(rollout.run(starts))

    def draw(self, lineage: Lineage, count: int) -> Sequence[Task]:
        return lineage.rng().choices(self.tasks, k=count)
