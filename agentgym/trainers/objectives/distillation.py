"""The policy brought near to a teacher's distributions: by whole distributions, not by the token that was sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.objectives.divergences import Divergence, ReverseKL
from agentgym.trainers.objectives.support import LEAST_LOGPROB, Support
from agentgym.trainers.seams import Heads, Metrics

LEAST_REST = 1e-5  # less mass than this is rounding: over a large vocabulary float32 tells no smaller one [R]


@dataclass(frozen=True)
class Distillation:
    """``divergence`` of the policy from the teacher at each token that trains, on the tokens of ``teacher_ids``.

    All other tokens are one more (``rest`` "tail"): a lower bound, equal where the support is the whole vocabulary; or "renormalised", as
    if there were no others. Streams: weight, and teacher_ids and teacher_logprobs of shape (T, k), from `agentgym.trainers.credit.topk`.
    Source: GKD, arXiv 2306.13649 [S-paper]; the tail, "Reinforcement Learning via Self-Distillation", arXiv 2601.20802 [S-code].
    """

    divergence: Divergence = field(default_factory=ReverseKL)
    rest: Literal["tail", "renormalised"] = "tail"
    needs: frozenset[str] = frozenset({"at", "trained", "teacher_ids", "teacher_logprobs"})

    def __post_init__(self) -> None:
        if self.rest not in ("tail", "renormalised"):
            raise AgentGymError(f"rest is {self.rest!r}: choose 'tail' or 'renormalised'")

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        support = Support(heads, packed)
        complete = with_tail if self.rest == "tail" else renormalised
        values = self.divergence(complete(support.student), complete(support.of("teacher_logprobs")))
        return (support.weight * values).sum(), {"divergence": support.average(values)}


def with_tail(logprobs: Tensor) -> Tensor:
    """One more entry with the mass of all other tokens, shapes (N, k) to (N, k + 1). Without gradient where that is only rounding."""
    logprobs = logprobs.clamp(min=LEAST_LOGPROB)
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=1e-12 if logprobs.dtype == torch.float64 else LEAST_REST)
    return torch.cat([logprobs, rest.log()], -1)


def renormalised(logprobs: Tensor) -> Tensor:
    return logprobs.clamp(min=LEAST_LOGPROB).log_softmax(-1)
