"""A teacher's log-probabilities as rewards of the student's own likeliest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.support import LEAST_LOGPROB, Support
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO
from agentgym.trainers.seams import Heads, Metrics


@dataclass(frozen=True)
class TokenRewards:
    """``-sum of r_j A_j`` over the student's own likeliest tokens j, ``A_j = -w_j (old logp_j - teacher logp_j)``, r_j the ratio to old.

    w_j is the student's probability among them. With the whole vocabulary the reverse KL's exact gradient, else without the tail's.
    Streams: weight, and those of `agentgym.trainers.credit.topk.StudentTopK`. Source: arXiv 2604.13016 [S-code].
    """

    needs: frozenset[str] = frozenset({"at", "trained", "teacher_ids", "teacher_logprobs", "student_logprobs"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        support = Support(heads, packed)
        old = support.of("student_logprobs")
        rewards = old.softmax(-1) * (support.of("teacher_logprobs").clamp(min=LEAST_LOGPROB) - old)
        ratio = (support.student - old).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        return -(support.weight[:, None] * rewards * ratio).sum(), {"divergence": -support.average(rewards.sum(-1))}
