"""Rules that bound importance weights or reject episodes by them.

They multiply. Each takes log-ratios of trainer to sampler, within +-20, and the episode of each, both of shape (P,), and gives
weights (P,). Names and numbers: verl's rollout correction [S-code].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentgym.pack import Floats, Ints

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
        capped: Floats = np.minimum(np.exp(bounded(sums(log_ratio, episode))), self.cap)
        return capped[episode]


@dataclass(frozen=True)
class SequenceRejection:
    """0 for an episode whose product is above ``cap``, else 1. Times `SequenceTruncated` of that cap it is MIS."""

    cap: float = 2.0

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        return np.where(sums(log_ratio, episode) <= np.log(self.cap), 1.0, 0.0)[episode]


@dataclass(frozen=True)
class GeometricRejection:
    """0 for an episode whose geometric mean lies outside [low, high]: it does not punish length, as products do."""

    low: float = 0.999
    high: float = 1.001

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        mean = np.exp(means(log_ratio, episode))
        return np.where((mean >= self.low) & (mean <= self.high), 1.0, 0.0)[episode]


@dataclass(frozen=True)
class DivergenceRejection:
    """0 for an episode whose mean k2, ``(ln rho)^2 / 2``, or k3, ``rho - ln rho - 1``, is above ``cap``."""

    cap: float = 0.01
    estimator: Literal["k2", "k3"] = "k3"

    def __call__(self, log_ratio: Floats, episode: Ints) -> Floats:
        each = log_ratio**2 / 2 if self.estimator == "k2" else k3(log_ratio)
        return np.where(means(each, episode) <= self.cap, 1.0, 0.0)[episode]


def bounded(log_ratio: Floats) -> Floats:
    return log_ratio.clip(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def k3(log_ratio: Floats) -> Floats:
    return np.exp(log_ratio) - log_ratio - 1


def sums(values: Floats, episode: Ints) -> Floats:
    return np.bincount(episode, values).astype(np.float64)


def means(values: Floats, episode: Ints) -> Floats:
    means: Floats = np.bincount(episode, values) / np.maximum(np.bincount(episode), 1)
    return means
