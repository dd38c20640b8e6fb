"""Gradients of the parts of a batch, and how well the sum of the first parts points where the whole does."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import Tensor

from agentgym.pack import Floats, pack
from agentgym.trainers.expanders.windows import places
from agentgym.trainers.seams import Learner, Objective
from agentgym.turn import Turn, TurnTree

ROUNDING = 1e-12  # of the sum of all inner products: a gradient below it is none


def bucket_gradients(
    probed: Mapping[TurnTree, Collection[Turn]], candidates: Sequence[int], learner: Learner, objective: Objective, max_tokens: int
) -> tuple[list[Tensor], int]:
    """One flat gradient for the trained tokens of ``probed`` up to each candidate and one for the rest, and the tokens computed for them.

    They add up to the gradient of all those tokens: the divisor is one for all buckets.
    """
    for tree, turns in probed.items():
        for turn in tree.turns:
            bucket = np.searchsorted(candidates, places(tree, turn)) if turn in turns else np.full(len(turn.ids), -1)
            turn.streams["bucket"] = bucket.astype(np.float64)
    packs = pack(list(probed), max_tokens)
    total = sum(packed.streams["trained"][packed.streams["bucket"] >= 0].sum() for packed in packs)
    gradients, tokens = [], 0
    for number in range(len(candidates) + 1):
        for packed in packs:
            packed.streams["weight"] = packed.streams["trained"] * (packed.streams["bucket"] == number) / (total or 1.0)
            tokens += len(packed) * bool(packed.streams["weight"].any())
        gradients.append(learner.gradient(packs, objective))
    return gradients, tokens


def cosines(inner: Floats) -> list[float]:
    """Of the first j buckets' gradient and that of all, j = 1 ... k, from the buckets' inner products, shape (k + 1, k + 1).

    0 where either gradient is none.
    """
    inner = np.asarray(inner, dtype=np.float64)
    full, least = float(inner.sum()), ROUNDING * float(np.abs(inner).sum())
    found = []
    for j in range(1, len(inner)):
        own = float(inner[:j, :j].sum())
        found.append(float(inner[:j].sum()) / math.sqrt(own * full) if min(own, full) > least else 0.0)
    return found
