"""A leash to a reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO, Tokens
from agentgym.trainers.seams import Heads, Metrics, Objective


@dataclass(frozen=True)
class KL:
    """An estimate of KL(policy | reference) at each sampled token, ``d = logp - reference``; streams: weight, reference.

    k1 is ``d``, k2 ``d^2 / 2``, k3 ``exp(-d) - 1 + d``. Whichever gives the value, the gradient is ``sg(d) grad logp``, that of the
    divergence itself for tokens from the policy; it is k2's own. ``gradient="estimator"`` differentiates the estimate as many
    trainers do: k1 then has none in expectation, and k3 that of the forward divergence. Source: Approximating KL Divergence
    (Schulman, 2020); k3 in GRPO, arXiv 2402.03300 [S-code].
    """

    estimator: Literal["k1", "k2", "k3"] = "k3"
    gradient: Literal["true", "estimator"] = "true"
    needs: frozenset[str] = frozenset({"reference"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = Tokens(heads, packed)
        d = (tokens.logprobs - tokens.of(packed.streams["reference"])).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        value = d if self.estimator == "k1" else d**2 / 2 if self.estimator == "k2" else (-d).exp() - 1 + d
        if self.gradient == "true":
            value = value.detach() + d.detach() * (tokens.logprobs - tokens.logprobs.detach())
        return (tokens.weight * value).sum(), {"kl_reference": tokens.average(value)}


@dataclass(frozen=True)
class Regularised:
    """``objective + coefficient * regulariser``."""

    objective: Objective
    regulariser: Objective = KL()
    coefficient: float = 0.001

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs | self.regulariser.needs

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        loss, metrics = self.objective(heads, packed)
        more, others = self.regulariser(heads, packed)
        return loss + self.coefficient * more, {**metrics, **others}
