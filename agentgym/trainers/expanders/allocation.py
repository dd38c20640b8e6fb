"""Rollouts shared out over prompts, to where outcomes are most likely to be mixed. Pure functions in float64.

Source of the values: TRACE, arXiv 2606.11119 [S2]. The solvers are our own [R].
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentgym.errors import AgentGymError

Floats = NDArray[np.float64]
NOTHING = 1e-9  # a gain too small to spend a rollout on
BLOCK = 3  # from none, the first rollout is worth nothing alone, and the first three are worth the same each
EXACT_UP_TO = 200_000  # prompts times budget: the dynamic programme answers within a second


def root_contrasts(values: ArrayLike, most: int, confidence: ArrayLike = math.inf) -> Floats:
    """``V(v, m) = 1 - v^m - (1 - v)^m`` for m = 0 … ``most``: the chance that m rollouts hold both outcomes [S2].

    ``values``: chances of success, shape (B,); the result has shape (B, most + 1). With a finite ``confidence`` c, a number
    or of shape (B,), it is the expectation under Beta(c v, c (1 - v)): a guard against overconfident predictions [R].
    """
    v = np.asarray(values, dtype=np.float64)[:, None]
    c = np.broadcast_to(np.asarray(confidence, dtype=np.float64), (len(v),))[:, None]
    drawn = np.arange(most) / c
    contrasts = np.zeros((len(v), most + 1))
    contrasts[:, 1:] = 1 - np.cumprod((v + drawn) / (1 + drawn), axis=1) - np.cumprod((1 - v + drawn) / (1 + drawn), axis=1)
    return contrasts


def allocate_roots(contrasts: Floats, budget: int, least: int = 0, visits: ArrayLike = 0) -> NDArray[np.int64]:
    """Rollouts for each of B prompts, shape (B,), that raise the sum of contrasts most; 0 filters a prompt out.

    ``contrasts``: shape (B, most + 1), from ``root_contrasts``. Each prompt has at least ``least``, if the budget is so large.
    What would gain nothing goes to the prompts with the fewest ``visits``, shape (B,), so that no batch is empty [R].
    """
    prompts = len(contrasts)
    least = min(least, budget // prompts)
    exact = least == 0 and prompts * budget <= EXACT_UP_TO
    counts = (dynamic_programme if exact else block_greedy)(contrasts, budget, least)
    seen = np.broadcast_to(np.asarray(visits, dtype=np.float64), (prompts,)) + counts
    for _ in range(budget - int(counts.sum())):
        open_ones = np.flatnonzero(counts < contrasts.shape[1] - 1)
        if not len(open_ones):
            break
        prompt = open_ones[np.argmin(seen[open_ones])]
        counts[prompt] += 1
        seen[prompt] += 1
    return counts


def block_greedy(contrasts: Floats, budget: int, least: int = 0) -> NDArray[np.int64]:
    """Buy the largest gain per rollout, the first rollouts of a prompt as a block. Exact for ``least`` of 1 or more [R]."""
    most = contrasts.shape[1] - 1
    counts = np.full(len(contrasts), least, dtype=np.int64)
    left = _left(budget, counts)
    offers: list[tuple[float, int, int]] = []

    def offer(prompt: int) -> None:
        have = int(counts[prompt])
        step = 1 if have else min(BLOCK, left, most)
        if have + step <= most and (have or step > 1):
            gain = (contrasts[prompt, have + step] - contrasts[prompt, have]) / step
            heapq.heappush(offers, (-round(gain, 12), prompt, step))

    for prompt in range(len(contrasts)):
        offer(prompt)
    while left > 0 and offers:
        loss, prompt, step = heapq.heappop(offers)
        if -loss <= NOTHING:
            break
        step = min(step, left)
        if step == 1 and counts[prompt] == 0:
            continue
        counts[prompt] += step
        left -= step
        offer(prompt)
    return counts


def dynamic_programme(contrasts: Floats, budget: int, least: int = 0) -> NDArray[np.int64]:
    """The exact optimum over all splits, in O(B budget most) [R]. Among equals, lower prompts have more."""
    most = contrasts.shape[1] - 1
    _left(budget, np.full(len(contrasts), least))
    best = np.zeros((len(contrasts) + 1, budget + 1))  # of the prompts from here on, with so many rollouts
    for prompt in reversed(range(len(contrasts))):
        best[prompt] = -np.inf
        for count in range(least, min(most, budget) + 1):
            here = contrasts[prompt, count] + best[prompt + 1, : budget + 1 - count]
            best[prompt, count:] = np.maximum(best[prompt, count:], here)
    counts = np.zeros(len(contrasts), dtype=np.int64)
    left = budget
    for prompt in range(len(contrasts)):
        options = np.arange(least, min(most, left) + 1)
        totals = contrasts[prompt, options] + best[prompt + 1, left - options]
        count = int(options[totals >= best[prompt, left] - 1e-12][-1])
        while count > least and contrasts[prompt, count] - contrasts[prompt, count - 1] <= NOTHING:
            count -= 1
        counts[prompt] = count
        left -= count
    return counts


def _left(budget: int, counts: NDArray[np.int64]) -> int:
    if (left := budget - int(counts.sum())) < 0:
        raise AgentGymError(f"{len(counts)} prompts with at least {counts[0]} rollouts each need more than the budget of {budget}")
    return left
