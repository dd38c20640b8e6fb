"""The gap between the sampler's log-probabilities and the trainer's: bounded importance, rejection, and how wide it is.

Rules multiply. Each takes log-ratios of trainer to sampler, within +-20, and the episode of each, both of shape (P,), and gives
weights (P,). Names and numbers: verl's rollout correction [S-code].
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentgym.pack import Floats, Ints, pack
from agentgym.trainers.credit.logprobs import by_turn, write_logprobs
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.paths import Paths, paths
from agentgym.trainers.seams import Credit, Metrics
from agentgym.turn import TurnTree

LARGEST_LOG_RATIO = 20.0
Rule = Callable[[Floats, Ints], Floats]


@dataclass(frozen=True)
class Truncated:
    """``min(rho, cap)`` for each token (TIS). DART's form has a cap of 1."""

    cap: float = 2.0

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        return np.minimum(np.exp(log_ratio), self.cap)


@dataclass(frozen=True)
class Band:
    """``rho`` where it lies in [low, high], else 0, for each token (IcePop's form of masking)."""

    low: float = 0.5
    high: float = 2.0

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        ratio: Floats = np.exp(log_ratio)
        return ratio * ((ratio >= self.low) & (ratio <= self.high))


@dataclass(frozen=True)
class SequenceTruncated:
    """``min(product of rho over the episode, cap)`` for all its tokens."""

    cap: float = 2.0

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        capped: Floats = np.minimum(np.exp(_bounded(_sums(log_ratio, episode))), self.cap)
        return capped[episode]


@dataclass(frozen=True)
class SequenceRejection:
    """0 for an episode whose product is above ``cap``, else 1. Times `SequenceTruncated` of that cap it is MIS."""

    cap: float = 2.0

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        return np.where(_sums(log_ratio, episode) <= np.log(self.cap), 1.0, 0.0)[episode]


@dataclass(frozen=True)
class GeometricRejection:
    """0 for an episode whose geometric mean lies outside [low, high]: it does not punish length, as products do."""

    low: float = 0.999
    high: float = 1.001

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        mean = np.exp(_means(log_ratio, episode))
        return np.where((mean >= self.low) & (mean <= self.high), 1.0, 0.0)[episode]


@dataclass(frozen=True)
class DivergenceRejection:
    """0 for an episode whose mean k2, ``(ln rho)^2 / 2``, or k3, ``rho - ln rho - 1``, is above ``cap``."""

    cap: float = 0.01
    estimator: Literal["k2", "k3"] = "k3"

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        each = log_ratio**2 / 2 if self.estimator == "k2" else _k3(log_ratio)
        return np.where(_means(each, episode) <= self.cap, 1.0, 0.0)[episode]


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

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        write_logprobs(trees, "old", models, "learner", self.max_tokens)
        for packed in pack(trees, sys.maxsize):
            found = paths(packed)
            log_ratio = _bounded(packed.streams["old"] - packed.logprobs)[found.token]
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
    mean = _average(weights, found) if normalise == "tokens" else _average_episode(_means(weights, found.episode), found)
    return weights / mean


def gap(log_ratio: Floats, weights: Floats, found: Paths) -> Metrics:
    """Diagnostics. Look closer at an effective share below 0.5, a k3 above 0.01, or more than a tenth rejected [R]."""
    if not len(log_ratio):
        return {}
    ratio, mean = np.exp(log_ratio), _average(weights, found)
    return {
        "sampler_kl": _average(-log_ratio, found),
        "sampler_k3": _average(_k3(log_ratio), found),
        "sampler_chi2": _average(ratio**2, found) - 1,
        "sampler_sequence_chi2": _average_episode(np.exp(2 * _bounded(_sums(log_ratio, found.episode))), found) - 1,
        "sampler_largest_ratio": float(ratio.max()),
        "importance_rejected": _average(weights == 0, found),
        "importance_effective": 1 / _average((weights / mean) ** 2, found) if mean else 0.0,
    }


def _bounded(log_ratio: Floats) -> Floats:
    return log_ratio.clip(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _k3(log_ratio: Floats) -> Floats:
    return np.exp(log_ratio) - log_ratio - 1


def _average(values: Floats, found: Paths) -> float:
    """Over tokens, each once."""
    return float((values * found.share).sum() / found.share.sum())


def _average_episode(values: Floats, found: Paths) -> float:
    """Over the episodes that have tokens."""
    return float(values[np.bincount(found.episode) > 0].mean())


def _sums(values: Floats, episode: Ints) -> Floats:
    return np.bincount(episode, values).astype(np.float64)


def _means(values: Floats, episode: Ints) -> Floats:
    means: Floats = np.bincount(episode, values) / np.maximum(np.bincount(episode), 1)
    return means
