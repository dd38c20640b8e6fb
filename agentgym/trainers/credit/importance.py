"""The gap between the sampler's log-probabilities and the trainer's: bounded by rules that multiply, and how wide it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agentgym.pack import Floats, pack
from agentgym.trainers.credit.importance_rules import Rule, Truncated, bounded, k3, means, sums
from agentgym.trainers.credit.logprobs import by_turn, write_logprobs
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.paths import Paths, paths
from agentgym.trainers.seams import Credit, Metrics
from agentgym.turn import TurnTree


class Corrected(Around):
    """``credit``, and the streams that `agentgym.trainers.objectives.importance.Decoupled` reads: ``old`` and ``importance``.

    ``old`` are the learner's log-probabilities before the update, from one more forward pass. A token that episodes share has the
    mean of its weights in them [R]. ``normalise`` then makes the mean weight of the batch 1, over its tokens or over its episodes.
    Advantages are left as the whole group had them: rejection must not move a baseline [R].
    """

    adds = frozenset({"old", "importance"})

    def __init__(
        self,
        credit: Credit,
        rules: Sequence[Rule] = (Truncated(),),
        normalise: Literal["tokens", "sequences"] | None = None,
        max_tokens: int = 4096,
    ) -> None:
        super().__init__(credit)
        self.rules, self.normalise, self.max_tokens = rules, normalise, max_tokens

    @property
    def apart(self) -> bool:
        return self.normalise is None and super().apart

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        write_logprobs(trees, "old", models, "learner", self.max_tokens)
        for packed in pack(trees, sys.maxsize):
            found = paths(packed)
            log_ratio = bounded(packed.streams["old"] - packed.logprobs)[found.token]
            weights = importance(log_ratio, found, self.rules, self.normalise)
            self._metrics = gap(log_ratio, weights, found)
            stream: Floats = np.bincount(found.token, found.share * weights, minlength=len(packed)).astype(np.float64)
            for turn, own in by_turn(packed, stream):
                turn.streams["importance"] = own


def importance(log_ratio: Floats, found: Paths, rules: Sequence[Rule], normalise: Literal["tokens", "sequences"] | None = None) -> Floats:
    """The product of the rules for each entry, shape (P,)."""
    weights = np.ones(len(log_ratio))
    for rule in rules:
        weights = weights * rule(log_ratio, found.episode)
    if normalise is None or not weights.any():
        return weights
    mean = _average(weights, found) if normalise == "tokens" else _average_episode(means(weights, found.episode), found)
    return weights / mean


def gap(log_ratio: Floats, weights: Floats, found: Paths) -> Metrics:
    """Diagnostics. Look closer at an effective share below 0.5, a k3 above 0.01, or more than a tenth rejected [R]."""
    if not len(log_ratio):
        return {}
    ratio, mean = np.exp(log_ratio), _average(weights, found)
    return {
        "sampler_kl": _average(-log_ratio, found),
        "sampler_k3": _average(k3(log_ratio), found),
        "sampler_chi2": _average(ratio**2, found) - 1,
        "sampler_sequence_chi2": _average_episode(np.exp(2 * bounded(sums(log_ratio, found.episode))), found) - 1,
        "sampler_largest_ratio": float(ratio.max()),
        "importance_rejected": _average(weights == 0, found),
        "importance_effective": 1 / _average((weights / mean) ** 2, found) if mean else 0.0,
    }


def _average(values: Floats, found: Paths) -> float:
    """Over tokens, each once."""
    return float((values * found.share).sum() / found.share.sum())


def _average_episode(values: Floats, found: Paths) -> float:
    """Over the episodes that have tokens."""
    return float(values[np.bincount(found.episode) > 0].mean())
