"""Estimates with intervals: success in k trials, means over tasks, and differences on the same tasks.

Tasks are the sample: repeats of one task resemble each other, so every interval is clustered by task, as in Miller,
"Adding Error Bars to Evals" (arXiv 2411.00640). `docs/statistics.md` says which interval is taken where, and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import AgentGymError
from agentgym.seeds import Lineage

EXACT_TASKS = 16  # up to 2**16 sign patterns are all tried
DRAWS = 10_000  # of random sign patterns beyond
Values = Mapping[str, Sequence[float]]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from ``n`` tasks. ``low`` and ``high`` are infinite where the data bound nothing."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What `paired_difference` says of b minus a."""

    difference: Interval
    p_value: float
    minimal_detectable_difference: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """``a`` and ``b`` over the tasks that both have; ``left_out`` tasks are in one of them alone."""

    a: Interval
    b: Interval
    paired: PairedDifference
    left_out: int


@dataclass(frozen=True, slots=True)
class SuccessAtK:
    """``average``: success of one trial. ``any_of_k``: pass@k. ``all_of_k``: pass^k."""

    k: int
    average: Interval
    any_of_k: Interval
    all_of_k: Interval


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k trials succeeds (pass@k), from c successes in n: 1 - C(n-c, k) / C(n, k).

    Unbiased. Raises `AgentGymError` unless 1 <= k <= n. "Evaluating Large Language Models Trained on Code", arXiv
    2107.03374.
    """
    _check_trials(n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that k trials all succeed (pass^k), from c successes in n: C(c, k) / C(n, k).

    Unbiased. Raises `AgentGymError` unless 1 <= k <= n. "tau-bench", arXiv 2406.12045.
    """
    _check_trials(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def success_at_k(successes_by_task: Mapping[str, Sequence[bool]], k: int, level: float = 0.95) -> SuccessAtK:
    """avg@k, pass@k and pass^k over tasks of at least k trials each, with intervals clustered by task."""
    counts = {task: (len(trials), sum(map(bool, trials))) for task, trials in successes_by_task.items()}
    average = {task: [float(bool(trial)) for trial in trials] for task, trials in successes_by_task.items()}
    any_of_k = {task: [pass_at_k(n, c, k)] for task, (n, c) in counts.items()}
    all_of_k = {task: [pass_hat_k(n, c, k)] for task, (n, c) in counts.items()}
    intervals = [clustered_interval(values, level) for values in (average, any_of_k, all_of_k)]
    return SuccessAtK(k, *intervals)


def clustered_interval(values_by_task: Values, level: float = 0.95) -> Interval:
    """The mean over tasks of each task's mean, and its confidence interval clustered by task.

    Values in [0, 1]: Wilson's interval (Brown, Cai & DasGupta 2001) with n_eff = p(1-p) / SE^2 in place of n, where
    SE^2 is the variance between task means over their number J, and Student's quantile at J - 1 degrees. Where no two
    tasks differ, n_eff = J; for values of 0 and 1 it is at most the number of values. Other values: Student's t. One
    task bounds nothing. Raises `AgentGymError` for no tasks, a task without values, or a value that is not finite.
    """
    return _Sample.of(values_by_task).interval(level)


def paired_difference(a: Values, b: Values, level: float = 0.95, *, power: float = 0.8) -> PairedDifference:
    """The mean over common tasks of b minus a, which removes what the tasks' difficulty contributes to both.

    Interval: values in [0, 1] take Newcombe's hybrid score interval (1998, method 10): the intervals of a and of b,
    joined with their correlation over tasks, so that 0 of 20 against 20 of 20 has a width. Others take Student's t.
    p-value: a sign-flip permutation test of the task differences, exact up to 16 of them that are not 0, else from
    10,000 seeded draws. ``minimal_detectable_difference``: the true difference that a test at 1 - ``level`` finds with
    chance ``power``, (t + t_power) * SE: arXiv 2411.00640, with Student's quantiles for the normal ones.
    Raises `AgentGymError` if no task is common.
    """
    one, other = _common(a, b)
    interval = _difference_interval(one, other, level)
    detectable = math.inf
    if (degrees := interval.n - 1) > 0:
        ratio = t_quantile(power, degrees) / t_quantile((1 + level) / 2, degrees)
        detectable = (interval.high - interval.low) / 2 * (1 + ratio)
    return PairedDifference(interval, _sign_flip_p(other.means - one.means), detectable)


def compare(a: Values, b: Values, level: float = 0.95) -> Comparison:
    """Both results over the tasks that they share, and the paired difference b minus a."""
    one, other = _common(a, b)
    paired = paired_difference(a, b, level)
    return Comparison(one.interval(level), other.interval(level), paired, len(a.keys() ^ b.keys()))


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, by bisection of its exact distribution (Abramowitz & Stegun 26.7.3-4).

    Raises `AgentGymError` unless 0 < probability < 1 and degrees >= 1.
    """
    if not (0 < probability < 1 and degrees >= 1):
        raise AgentGymError(f"Student's t has no quantile {probability} at {degrees} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_central(angle, degrees) < 2 * probability - 1 else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _t_central(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) * tan(angle))."""
    odd = degrees % 2
    steps = np.arange(odd + 1, degrees - 2, 2, dtype=np.float64)
    terms = np.cumprod(np.concatenate([[1.0], steps / (steps + 1) * math.cos(angle) ** 2]))
    if not odd:
        return math.sin(angle) * float(terms.sum())
    if degrees == 1:
        return 2 / math.pi * angle
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * float(terms.sum()))


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


@dataclass(frozen=True, slots=True)
class _Sample:
    means: Array  # of shape (tasks,)
    unit: bool  # all values lie in [0, 1]
    most: float  # the effective sample size is no larger

    @classmethod
    def of(cls, values_by_task: Values) -> _Sample:
        if not values_by_task:
            raise AgentGymError("an interval needs at least one task, and there is none")
        sizes = np.array([len(values) for values in values_by_task.values()])
        flat = np.array([value for values in values_by_task.values() for value in values], np.float64)
        if not (sizes.all() and np.isfinite(flat).all()):
            sums = {task: np.array([*values] or math.nan, np.float64).sum() for task, values in values_by_task.items()}
            bad = next(task for task, total in sums.items() if not math.isfinite(total))
            raise AgentGymError(f"task {bad!r} has no value or one that is not finite: leave it out and count it")
        means = np.add.reduceat(flat, np.cumsum(sizes) - sizes) / sizes
        binary = bool(((flat == 0) | (flat == 1)).all())
        return cls(means, bool(((flat >= 0) & (flat <= 1)).all()), len(flat) if binary else math.inf)

    def interval(self, level: float) -> Interval:
        n, p = len(self.means), float(self.means.mean())
        if n == 1:
            return Interval(p, 0.0, 1.0, n) if self.unit else Interval(p, -math.inf, math.inf, n)
        variance = float(self.means.var(ddof=1)) / n
        t = t_quantile((1 + level) / 2, n - 1)
        if not self.unit:
            half = t * math.sqrt(variance)
            return Interval(p, p - half, p + half, n)
        n_eff = min(p * (1 - p) / variance, self.most) if variance > 1e-14 else n
        return Interval(p, *_wilson(p, n_eff, t), n)


def _common(a: Values, b: Values) -> tuple[_Sample, _Sample]:
    tasks = sorted(a.keys() & b.keys())
    if not tasks:
        raise AgentGymError("the two results have no task in common: compare results of the same split")
    return _Sample.of({task: a[task] for task in tasks}), _Sample.of({task: b[task] for task in tasks})


def _difference_interval(a: _Sample, b: _Sample, level: float) -> Interval:
    one, other = a.interval(level), b.interval(level)
    if not (a.unit and b.unit):
        return _Sample(b.means - a.means, False, math.inf).interval(level)
    spread = float(a.means.std() * b.means.std())
    covariance = float(((a.means - one.estimate) * (b.means - other.estimate)).mean())
    correlation = covariance / spread if spread > 1e-14 else 0.0
    difference = other.estimate - one.estimate

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down - 2 * correlation * down * up + up * up))

    low = reach(other.estimate - other.low, one.high - one.estimate)
    high = reach(other.high - other.estimate, one.estimate - one.low)
    return Interval(difference, difference - low, difference + high, one.n)


def _sign_flip_p(differences: Array) -> float:
    """The two-sided chance of a sum at least as far from 0, were the sign of each difference a fair coin's."""
    sizes = np.abs(differences[np.abs(differences) > 1e-12])
    most = sizes.sum()
    observed = abs(differences.sum()) * (1 - 1e-9)
    if len(sizes) <= EXACT_TASKS:
        flips = (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1
        return float((np.abs(most - 2 * flips @ sizes) >= observed).mean())
    groups, counts = np.unique(sizes.round(12), return_counts=True)  # equal sizes are drawn together
    rng = np.random.default_rng(Lineage.of(0, "sign flips").seed())
    flipped = np.zeros(DRAWS)
    for size, count in zip(groups, counts, strict=True):
        flipped += size * rng.binomial(count, 0.5, DRAWS)
    hits = int((np.abs(most - 2 * flipped) >= observed).sum())
    return (1 + hits) / (1 + DRAWS)


def _check_trials(n: int, c: int, k: int) -> None:
    if not 1 <= k <= n:
        raise AgentGymError(f"k = {k} trials need at least that many samples of a task, and at least one: it has {n}")
    if not 0 <= c <= n:
        raise AgentGymError(f"{c} successes in {n} trials is impossible")
