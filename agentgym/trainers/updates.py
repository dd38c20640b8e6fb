"""The optimiser steps of one step of the loop."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.seeds import Lineage
from agentgym.trainers.credit.streams import teaches
from agentgym.trainers.figures import means
from agentgym.trainers.seams import Metrics, pace
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree


class Updates:
    """Trees are learnt in ``run.updates`` optimiser steps, of which the last waits for ``end``: more may belong to it."""

    def __init__(self, run: Training, step: int) -> None:
        self.run, self.step = run, step
        self._packs: list[Metrics] = []  # what was accumulated since the last optimiser step
        self._tokens = 0
        self._found: list[Metrics] = []

    def add(self, trees: Sequence[TurnTree]) -> None:
        """A group without contrast has no gradient; as in DAPO (arXiv 2503.14476) it is left out of the divisor too."""
        taught = [tree for tree in trees if teaches(tree)]
        Lineage.of(self.run.seed, "order", self.step).rng().shuffle(taught)
        for first in range(min(self.run.updates, len(taught))):
            if first:
                self._apply()
            part = taught[first :: self.run.updates]
            self.run.divisor(part)
            packs = self.run.packing(part)
            self._packs += self.run.learner.accumulate_all(packs, self.run.objective)
            self._tokens += sum(map(len, packs))

    def end(self) -> Metrics:
        """Means over packs, and over optimiser steps."""
        if self._tokens:
            self._apply()
        return means((1.0, metrics) for metrics in self._found)

    def _apply(self) -> None:
        totals = {"loss": sum(metrics.pop("loss", 0.0) for metrics in self._packs), "packed_tokens": float(self._tokens)}
        self._found += [*self._packs, totals, self.run.learner.step(pace(self.run.objective))]
        self._packs, self._tokens = [], 0
