"""Continuations shared out over the prefixes of one tree. Pure functions in float64.

Source of the values: TRACE, arXiv 2606.11119 [S2]. The guard and the solver are our own [R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentgym.trainers.expanders.allocation import NOTHING


def flip_probability(value: float, outcomes: AbstractSet[bool]) -> float:
    """The chance that one more continuation ends otherwise than all before it; 0 where both ends were seen, or none [R].

    ``outcomes``: whether the finished episodes through this prefix succeeded.
    """
    if len(outcomes) != 1:
        return 0.0
    return 1.0 - value if True in outcomes else value


def prefix_contrast(flip: float, n: int, agreed: int = 0, confidence: float = math.inf) -> float:
    """``1 - (1 - q)^n``: the chance that one of n continuations ends otherwise [S2].

    With a finite ``confidence`` c, the ``agreed`` episodes that all ended alike, and each continuation that does so too, are
    evidence against a flip, as under Beta(c q, c (1 - q)): the k-th has the chance ``c q / (c + agreed + k - 1)`` [R].
    """
    evidence = (agreed + np.arange(n)) / confidence
    return float(1.0 - np.prod(1.0 - np.float64(flip) / (1.0 + evidence)))


def allocate_prefixes(
    values: ArrayLike, outcomes: Sequence[AbstractSet[bool]], budget: int, agreed: ArrayLike = 0, confidence: ArrayLike = math.inf
) -> NDArray[np.int64]:
    """Continuations of each of A prefixes, shape (A,), that raise the sum of contrasts most; among equals, earlier ones [R].

    ``values``: chances of success, shape (A,). ``outcomes``: what was seen so far below each. ``agreed`` and ``confidence``:
    numbers or of shape (A,), see ``prefix_contrast``. Exact, as gains only shrink.
    """
    chances = np.asarray(values, dtype=np.float64)
    flips = np.array([flip_probability(float(value), seen) for value, seen in zip(chances, outcomes, strict=True)])
    alike = np.ones(len(flips))  # the chance that all continuations so far ended as before
    counts = np.zeros(len(flips), dtype=np.int64)
    for _ in range(budget if len(flips) else 0):
        chance = flips / (1.0 + (np.asarray(agreed) + counts) / np.asarray(confidence))
        best = int(np.argmax(np.round(alike * chance, 12)))
        if alike[best] * chance[best] <= NOTHING:
            break
        counts[best] += 1
        alike[best] *= 1.0 - chance[best]
    return counts
