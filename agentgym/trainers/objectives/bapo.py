"""BAPO: clip bounds that move until good tokens have their share of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.clipped import clipped_loss
from agentgym.trainers.objectives.tokens import Tokens
from agentgym.trainers.seams import Heads, Metrics

START = (0.6, 1.2)
STEP = (0.02, 0.05)
STEPS = (15, 36)  # to bounds of 0.9 and 3.0; counted in whole steps, for repeated additions drift


@dataclass(frozen=True)
class BAPO:
    """PPO with ratios held in [0.6, 1.2], widened for each pack until tokens with A > 0 have ``target`` of the contributions.

    A contribution is ``|pi_sampler min(r A, clip(r) A)|``; ``contribution="gradient"`` counts only tokens that keep a gradient,
    without which raising the lower bound cannot raise the share [R]. Streams: advantage, weight. The upper bound goes first. Source:
    BAPO, arXiv 2510.18927 [S-paper]. Released code [S-code]: ``order="lower"``, ``measure="ratio"`` (good over bad),
    ``sampler=False`` (no pi_sampler), ``dual=3``; its ranges, to 0.8 and 2.0, are not taken over.
    """

    target: float = 0.4
    contribution: Literal["loss", "gradient"] = "loss"
    order: Literal["upper", "lower"] = "upper"
    measure: Literal["share", "ratio"] = "share"
    sampler: bool = True
    dual: float | None = None
    needs: frozenset[str] = frozenset({"advantage"})
    apart: ClassVar[bool] = False

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = Tokens(heads, packed)
        ratio, advantage = tokens.log_ratio.exp(), tokens.advantage
        likely = tokens.behaviour.exp() if self.sampler else torch.ones_like(ratio)
        lowest, highest, balance = self.bounds(ratio.detach().double(), advantage.double(), likely.double())
        loss, clipped = clipped_loss(ratio, advantage, lowest, highest, self.dual)
        metrics = {"clip_fraction": tokens.average(clipped), "lowest_ratio": lowest, "highest_ratio": highest, "balance": balance}
        return (tokens.weight * loss).sum(), metrics

    def bounds(self, ratio: Tensor, advantage: Tensor, likely: Tensor) -> tuple[float, float, float]:
        """The bounds that are reached, and the balance at them."""
        for steps in range(sum(STEPS) + 1):
            upper = min(steps, STEPS[1]) if self.order == "upper" else max(steps - STEPS[0], 0)
            lowest, highest = START[0] + STEP[0] * (steps - upper), START[1] + STEP[1] * upper
            balance = self._balance(ratio, advantage, likely, lowest, highest)
            if balance >= self.target - 1e-9 or not (advantage > 0).any():
                break
        return lowest, highest, balance

    def _balance(self, ratio: Tensor, advantage: Tensor, likely: Tensor, lowest: float, highest: float) -> float:
        if self.contribution == "gradient":
            held = ratio * torch.where(advantage > 0, ratio <= highest, ratio >= lowest)
        else:
            held = torch.where(advantage > 0, ratio.clamp(max=highest), ratio.clamp(min=lowest))
        each = likely * held * advantage.abs()
        good, bad = float(each[advantage > 0].sum()), float(each[advantage < 0].sum())
        if not bad:
            return 1.0 if self.measure == "share" else float("inf")
        return good / (good + bad) if self.measure == "share" else good / bad
