"""The tokens that stand in place of each that trains, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.seams import Heads

LEAST_LOGPROB = -100.0


class Support:
    """The N tokens of a pack that train, each with k that stand in its place."""

    def __init__(self, heads: Heads, packed: Packed) -> None:
        self.packed = packed
        weight = torch.from_numpy(packed.streams["weight"]).to(heads.logprobs)
        self.place = weight.nonzero()[:, 0]
        self.weight = weight[self.place]
        ids = torch.from_numpy(packed.streams["teacher_ids"]).to(weight.device).long()
        self.student = heads.at(ids)[self.place]

    def of(self, stream: str) -> Tensor:
        """Shape (N, k)."""
        return torch.from_numpy(self.packed.streams[stream]).to(self.student)[self.place]

    def average(self, values: Tensor) -> float:
        return float((self.weight * values.detach()).sum() / self.weight.sum()) if len(self.weight) else 0.0
