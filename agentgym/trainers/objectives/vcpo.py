"""VCPO: importance sampling by whole episodes, with the baseline of least variance and steps as long as the sample is good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO, PathTokens
from agentgym.trainers.seams import Heads, Metrics


@dataclass
class VCPO:
    """``-sg(min(w, truncation)) (R - b) logp``, w the product of the episode's ratios; stream: weight. Rewards R, no advantages.

    For each tree ``b = sum W R / (sum W + 1e-8)`` with ``W = w^2 |g|^2``, g the gradient of the episode's log-probability, which
    costs a backward pass for each; ``norms="length"`` takes its number of tokens instead [R]. ``weighted_norms`` lets g carry the
    truncated w, as released code does [S-code]. ``standardise`` divides by the population deviation of R. The learning rate of
    the update is scaled by ``sqrt(min(1, ESS / (n base)))``, or without the root, for w that are not truncated.
    Meant for the divisor `sequence_mean`. Source: Stable Asynchrony, arXiv 2602.17616 [S-code]; ``base`` is 0.55 there for many turns.
    """

    truncation: float = 8.0
    base: float = 1.0
    rule: Literal["sqrt", "linear"] = "sqrt"
    norms: Literal["gradient", "length"] = "gradient"
    weighted_norms: bool = False
    standardise: bool = False
    _ratios: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"paths", "gradient_norms"} if self.norms == "gradient" else {"paths"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = PathTokens(heads, packed)
        total = tokens.sum(tokens.logprobs)
        ratio = (total.detach() - tokens.sum(tokens.behaviour)).double().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        truncated = ratio.clamp(max=self.truncation)
        norms = heads.gradient_norms(total) if self.norms == "gradient" else tokens.lengths
        power = ratio**2 * norms.double() * (truncated**2 if self.weighted_norms else 1)
        gain = tokens.rewards - tokens.by_tree(power * tokens.rewards) / (tokens.by_tree(power) + 1e-8)
        if self.standardise:
            size = tokens.by_tree(torch.ones_like(ratio))
            spread = (tokens.by_tree((tokens.rewards - tokens.by_tree(tokens.rewards) / size) ** 2) / size).sqrt()
            gain = torch.where(spread > 1e-8, gain / spread.clamp(min=1e-8), 0.0)
        self._ratios.append(ratio)
        loss = -(truncated * gain).to(tokens.logprobs)[tokens.episode] * tokens.logprobs
        return (tokens.weight * loss).sum(), {"truncated_fraction": float((ratio > self.truncation).double().mean())}

    def pace(self) -> float:
        """From all episodes since it was last asked."""
        ratios = torch.cat([torch.ones(0), *(ratio.cpu() for ratio in self._ratios)])
        self._ratios = []
        if not len(ratios):
            return 1.0
        effective = min(1.0, float(ratios.sum() ** 2 / (ratios**2).sum()) / len(ratios) / self.base)
        return float(effective**0.5) if self.rule == "sqrt" else effective
