"""LPO: a target distribution over the episodes of a group, and the policy's own projected on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import PathTokens
from agentgym.trainers.seams import Heads, Metrics

Divergence = Literal["forward", "reverse", "jensen-shannon", "hellinger", "chi-square"]
SLOPES: dict[Divergence, Callable[[Tensor], Tensor]] = {  # dD/dP up to a constant, at the logarithm of u = w* / P
    "forward": lambda log_u: -log_u.exp(),
    "reverse": lambda log_u: -log_u,
    "jensen-shannon": lambda log_u: -0.5 * ((1 + log_u.exp()) / 2).log(),
    "hellinger": lambda log_u: -(log_u / 2).exp(),  # sum of (sqrt w* - sqrt P)^2
    "chi-square": lambda log_u: -(2 * log_u).exp(),  # sum of (w* - P)^2 / P
}


@dataclass(frozen=True)
class LPO:
    """``sum sg(c_k) l(logp_k)``, c the gradient of ``D(w*, P)`` in s; l is the mean over an episode's tokens. Stream: weight.

    In each tree ``P = softmax(s)``, ``s = l(logp) - l(behaviour)``; ``w* = softmax(R / temperature + s0)``, s0 as s at the start of
    the iteration, from the stream ``old`` where there is one, else 0. ``temperature``: the population deviation of R ("std"), its
    mean (MaxRL-like), or a number (1: Dr.GRPO-like). Forward is KL(w* | P), reverse KL(P | w*). Beyond ratios of 1 +- ``clip`` a token
    has no gradient. Trees count by their weight. Source: Listwise Policy Optimization, arXiv 2605.06139 [S-paper]; other divergences [R].
    """

    divergence: Divergence = "forward"
    temperature: float | Literal["std", "mean"] = "std"
    clip: float | None = 0.2
    needs: frozenset[str] = frozenset({"paths"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = PathTokens(heads, packed)
        start = tokens.of(packed.streams["old"]) if "old" in packed.streams else tokens.behaviour
        change = tokens.logprobs - tokens.behaviour
        scores, begun = tokens.mean(change.detach()).double(), tokens.mean(start - tokens.behaviour).double()
        coefficients = torch.zeros_like(scores)
        for tree in set(tokens.tree.tolist()):
            group = tokens.tree == tree
            coefficients[group] = self.coefficients(tokens.rewards[group], scores[group], begun[group])
        if self.clip is not None:
            change = change.clamp(math.log(1 - self.clip), math.log(1 + self.clip))
        importance = tokens.by_tree(tokens.sum(tokens.weight)) * coefficients.to(change)
        return (importance * tokens.mean(change)).sum(), {"distance_to_target": float(coefficients.abs().mean())}

    def coefficients(self, rewards: Tensor, scores: Tensor, begun: Tensor) -> Tensor:
        """Shapes (K,) to shape (K,), in float64; 0 for equal rewards. They sum to 0."""
        if float(rewards.std(correction=0)) < 1e-8:
            return torch.zeros_like(rewards)
        target = (rewards / self._temperature(rewards) + begun).log_softmax(0)
        policy = scores.log_softmax(0)
        slope = SLOPES[self.divergence](target - policy)
        return policy.exp() * (slope - (policy.exp() * slope).sum())

    def _temperature(self, rewards: Tensor) -> float:
        found = {"std": rewards.std(correction=0), "mean": rewards.mean()}.get(str(self.temperature), self.temperature)
        if float(found) <= 0:
            raise AgentGymError(f"LPO's temperature is {float(found):g} for rewards {rewards.tolist()}, but it must be positive")
        return float(found)
