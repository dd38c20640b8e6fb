"""Roll out, learn, push, in turn: always on-policy."""

from __future__ import annotations

from agentgym.expand import Stateless
from agentgym.turn import TurnTree


class Synchronous(Stateless):
    """Every batch is sampled by the newest weights, and all of it is trained on."""

    async def admit(self, version: int) -> bool:
        return True

    def select(self, ready: list[TurnTree], version: int) -> list[TurnTree] | None:
        return ready

    def push_due(self, learner_step: int) -> bool:
        return True
