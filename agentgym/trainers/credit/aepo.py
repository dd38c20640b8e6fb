"""AEPO's advantages: more where the policy was unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.expanders.entropy import known, standard
from agentgym.turn import TurnTree


class AEPO(Stateless):
    """GRPO's advantages times ``max(0, 1 + weight H)``, H the standard score of a token's entropy among those of the batch.

    H is of the behaviour policy, with the population deviation, each unique token once. Source: Agentic Entropy-Balanced
    Policy Optimization, arXiv 2510.14545 [S2]; the bound at 0, so that no sign turns [R]. Its clipping, which keeps the
    gradient of clipped tokens, is `agentgym.trainers.objectives.aepo.KeptGradient`.
    """

    def __init__(self, weight: float = 0.2) -> None:
        self.weight = weight
        self._outcomes = GRPO()

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self._outcomes.assign(trees, models)
        turns = [turn for tree in trees for turn in tree.turns if turn.sampled_tokens]
        entropies = [known(turn) for turn in turns]
        factors = iter(entropy_factors(np.array([h for of_turn in entropies for h in of_turn]), self.weight).tolist())
        for turn in turns:
            turn.streams["advantage"] *= [next(factors) if sampled else 0.0 for sampled in turn.sampled]

    def metrics(self) -> dict[str, float]:
        return self._outcomes.metrics()


def entropy_factors(entropies: Floats, weight: float = 0.2) -> Floats:
    """Shape (T,) to shape (T,); all 1 where the entropies are alike."""
    return np.maximum(0.0, 1 + weight * standard(entropies)) if len(entropies) else entropies
