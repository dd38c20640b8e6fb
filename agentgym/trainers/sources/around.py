"""What sources have in common that give more than another source draws."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.trainers.seams import Metrics, Source, State
from agentgym.turn import TurnTree


class Around:
    """``source`` observes and admits what is played; its state and its metrics are also those of what stands around it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._metrics: Metrics = {}

    def observe(self, trees: Sequence[TurnTree]) -> None:
        self.source.observe(trees)

    def admit(self, tree: TurnTree) -> str | None:
        return self.source.admit(tree)

    def state_dict(self) -> State:
        return self.source.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.source.load_state_dict(state)

    def metrics(self) -> Metrics:
        return {**self.source.metrics(), **self._metrics}
