"""Further along the way from some weights to others, while a score rises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Score = Callable[[Weights], Awaitable[float]]


class Found(NamedTuple):
    weights: Weights
    multiple: int
    score: float


async def extrapolate(weights: Weights, base: Weights, score: Score, iterations: int = 5) -> Found:
    """``base + multiple (weights - base)`` with the last multiple of 1, 3, 5, … before the score first fails to rise.

    At multiple 1 the ``weights`` themselves. Computed in float32 at least, cast back. The code steps by ``f (present - base)`` with f = 2
    and then ``f / (1 + f)``, which are these points [S-code].
    """
    found = Found(weights, 1, await score(weights))
    for multiple in range(3, 2 * iterations + 2, 2):
        candidate = {name: _beyond(weight, base[name].to(weight.device), multiple) for name, weight in weights.items()}
        if not (reached := await score(candidate)) > found.score:
            break
        found = Found(candidate, multiple, reached)
    return found


def _beyond(weight: Tensor, base: Tensor, multiple: int) -> Tensor:
    start, end = (one.to(torch.promote_types(weight.dtype, torch.float32)) for one in (base, weight))
    return (start + multiple * (end - start)).to(weight.dtype)
