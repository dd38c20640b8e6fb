"""Does the claim hold? Pure statistics of figures that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.statistics import Interval, t_quantile
from agentgym.trainers.laboratory.card import Claim

Word = Literal["supported", "not supported", "undecided"]
Pair = tuple[float, float]  # one seed's figure of the method, and of the baseline
MOST_SEEDS = 10_000
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Verdict:
    """``effect``: the mean difference, or the geometric mean ratio, with its interval over seeds.

    ``seeds_to_decide`` is None where no number up to 10,000 would do, or where one seed alone shows no variance.
    """

    word: Word
    effect: Interval
    seeds_to_decide: int | None


def judge(claim: Claim, pairs: Sequence[Pair], level: float = 0.95) -> Verdict:
    """Supported if the whole interval lies beyond the accepted value; not supported if it lies wholly on its other side.

    Ratios are compared by their logarithms. Raises `AgentGymError` for a figure that is not finite, or a ratio of figures
    that are not above 0.
    """
    if not pairs:
        raise AgentGymError("no seed has been played by both arms yet")
    values = np.array(pairs, np.float64)
    ratio = claim.measure == "ratio"
    if not np.isfinite(values).all() or (ratio and (values <= 0).any()):
        need = "above 0, or their ratio says nothing" if ratio else "finite"
        raise AgentGymError(f"{claim.metric} must be {need}: by seed, method and baseline have {values.tolist()}")
    accepted = math.log(claim.accepted) if ratio else claim.accepted
    differences = (np.log(values) if ratio else values) @ np.array([1.0, -1.0])
    interval = t_interval(differences.tolist(), level)
    above, below = interval.low > accepted + ROUNDING, interval.high < accepted - ROUNDING
    holds, fails = (above, below) if claim.direction == "higher" else (below, above)
    word: Word = "supported" if holds else "not supported" if fails else "undecided"
    return Verdict(word, _ratios(interval) if ratio else interval, seeds_to_decide(differences.tolist(), accepted, level))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean and Student's t interval, for values of any size. One value bounds nothing."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = t_quantile((1 + level) / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def seeds_to_decide(differences: Sequence[float], accepted: float, level: float = 0.95, power: float = 0.8) -> int | None:
    """The fewest seeds whose interval leaves ``accepted`` outside with chance ``power``.

    Taken for the truth are the observed mean m and standard deviation s: (t + t_power) * s / sqrt(n) <= |m - accepted|.
    """
    if len(differences) < 2:
        return None
    distance = abs(float(np.mean(differences)) - accepted)
    spread = float(np.std(differences, ddof=1))

    def decide(n: int) -> bool:
        quantiles = t_quantile((1 + level) / 2, n - 1) + t_quantile(power, n - 1)
        return distance > ROUNDING and quantiles * spread / math.sqrt(n) <= distance

    if not decide(MOST_SEEDS):
        return None
    few, enough = 1, MOST_SEEDS
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decide(middle) else (middle, enough)
    return enough


def _ratios(logs: Interval) -> Interval:
    estimate, low, high = (math.inf if x > 700 else math.exp(x) for x in (logs.estimate, logs.low, logs.high))
    return Interval(estimate, low, high, logs.n)
