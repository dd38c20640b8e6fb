"""The tokens that an objective trains, as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agentgym.pack import Floats, Ints, Packed
from agentgym.trainers.paths import paths
from agentgym.trainers.seams import Heads

LARGEST_LOG_RATIO = 20.0


class Tokens:
    """The K sampled tokens of a pack that carry weight; every tensor has shape (K,)."""

    def __init__(self, heads: Heads, packed: Packed, places: Ints | None = None) -> None:
        self.packed = packed
        if places is None:
            places = np.flatnonzero(packed.sampled & (packed.streams["weight"] != 0))
        self.place = torch.from_numpy(places).to(heads.logprobs.device)
        self.logprobs = heads.logprobs[self.place]
        self.behaviour = self.of(packed.logprobs)
        self.weight = self.of(packed.streams["weight"])

    def of(self, values: Floats) -> Tensor:
        """An array over the pack, shape (T,), at these tokens."""
        return torch.from_numpy(values).to(self.logprobs)[self.place]

    @property
    def advantage(self) -> Tensor:
        return self.of(self.packed.streams["advantage"])

    @property
    def log_ratio(self) -> Tensor:
        return (self.logprobs - self.behaviour).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    def average(self, values: Tensor) -> float:
        """By weight, for metrics; 0 where there is no weight."""
        total = float(self.weight.sum())
        return float((self.weight * values.detach()).sum()) / total if total else 0.0


class PathTokens(Tokens):
    """The P entries of a pack's E episodes, see `paths`. A shared token's weight is divided among its episodes."""

    def __init__(self, heads: Heads, packed: Packed) -> None:
        found = paths(packed)
        super().__init__(heads, packed, found.token)
        device = self.logprobs.device
        self.weight = self.weight * torch.from_numpy(found.share).to(self.logprobs)
        self.episode = torch.from_numpy(found.episode).to(device)
        self.tree = torch.from_numpy(found.tree).to(device)
        self.rewards = torch.from_numpy(found.rewards).to(device)  # float64
        self.lengths = torch.bincount(self.episode, minlength=len(self.rewards))

    def sum(self, values: Tensor) -> Tensor:
        """Over each episode, shape (P,) to shape (E,)."""
        return values.new_zeros(len(self.rewards)).index_add(0, self.episode, values)

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.lengths.clamp(min=1)

    def by_tree(self, values: Tensor) -> Tensor:
        """The sum over each episode's tree, shape (E,) to shape (E,)."""
        trees = int(self.tree.max()) + 1 if len(self.tree) else 0  # some may have no judged episode
        return values.new_zeros(trees).index_add(0, self.tree, values)[self.tree]
