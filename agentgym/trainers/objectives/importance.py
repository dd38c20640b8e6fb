"""Two ratios instead of one: how the data was made, and how far a step may go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.seams import Heads, Metrics, Objective


@dataclass(frozen=True)
class Decoupled:
    """``objective`` with ratios against the trainer's own log-probabilities, each token times its importance.

    Streams: weight, and from `agentgym.trainers.credit.importance.Corrected` ``old`` (the trainer's log-probabilities before the
    update) and ``importance`` (the bounded ratio of trainer to sampler, without gradient). A token of importance 0 still counts in the
    divisor. Source: AReaL, arXiv 2505.24298, and verl's rollout correction [S-code].
    """

    objective: Objective

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs | {"old", "importance"}

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        weight = packed.streams["weight"] * packed.streams["importance"]
        if not weight.any():
            return 0.0 * heads.logprobs.sum(), {}
        logprobs = np.where(packed.sampled, packed.streams["old"], 0.0)
        return self.objective(heads, replace(packed, logprobs=logprobs, streams={**packed.streams, "weight": weight}))
