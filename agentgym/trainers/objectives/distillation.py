"""Distances from a teacher's distributions that are differentiated: of whole distributions, not of the token that was sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO, Tokens
from agentgym.trainers.seams import Heads, Metrics

LEAST_REST = 1e-5  # less mass than this is rounding: over a large vocabulary float32 tells no smaller one [R]
LEAST_LOGPROB = -100.0


class Divergence(Protocol):
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of log-probabilities over a support, shapes (N, k) to (N,)."""


@dataclass(frozen=True)
class ReverseKL:
    """``sum of p log(p / q)``, p the student's: seeks what the teacher finds likely. Gradient in the logits: ``p (log(p / q) - KL)``."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.exp() * (student - teacher)).sum(-1)


@dataclass(frozen=True)
class ForwardKL:
    """``sum of q log(q / p)``, p the student's: covers all that the teacher writes. Gradient in the logits: ``p - q``."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (teacher.exp() * (teacher - student)).sum(-1)


@dataclass(frozen=True)
class JSD:
    """``beta KL(Q | M) + (1 - beta) KL(P | M)`` with ``M = beta Q + (1 - beta) P``, Q the teacher and P the student.

    Near beta 0 it is beta times the forward KL, near 1 (1 - beta) times the reverse. Source: GKD, arXiv 2306.13649 [S-paper].
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise AgentGymError(f"beta is {self.beta}: it must lie between 0 and 1; at the ends use ForwardKL or ReverseKL")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        mixture = torch.logaddexp(teacher + math.log(self.beta), student + math.log(1 - self.beta))
        return self.beta * ForwardKL()(mixture, teacher) + (1 - self.beta) * ReverseKL()(student, mixture)


@dataclass(frozen=True)
class Distillation:
    """``divergence`` of the policy from the teacher at each token that trains, on the tokens of ``teacher_ids``.

    All other tokens are one more (``rest`` "tail"): a lower bound, equal where the support is the whole vocabulary; or "renormalised", as
    if there were no others. Streams: weight, and teacher_ids and teacher_logprobs of shape (T, k), from `agentgym.trainers.credit.topk`.
    Source: GKD, arXiv 2306.13649 [S-paper]; the tail, "Reinforcement Learning via Self-Distillation", arXiv 2601.20802 [S-code].
    """

    divergence: Divergence = ReverseKL()
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


@dataclass(frozen=True)
class SampledKL:
    """A squared log-ratio to the teacher at each sampled token, ``d^2 / 2`` with ``d = logp - teacher`` (k2), differentiated.

    In expectation the reverse KL's gradient, as `OPD` has it, and without ratios. ``estimator="k3"``, ``exp(-d) - 1 + d``, is an estimate
    of the reverse KL too, but its gradient is that of the forward KL: not what its value says. Streams: weight, teacher. Both [R].
    """

    estimator: Literal["k2", "k3"] = "k2"
    needs: frozenset[str] = frozenset({"trained", "teacher"})

    def __post_init__(self) -> None:
        if self.estimator not in ("k2", "k3"):
            raise AgentGymError(f"estimator is {self.estimator!r}: choose 'k2' or 'k3'; k1 has no gradient of its own, see OPD")

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = Tokens(heads, packed)
        d = (tokens.logprobs - tokens.of(packed.streams["teacher"])).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        values = d**2 / 2 if self.estimator == "k2" else (-d).exp() - 1 + d
        return (tokens.weight * values).sum(), {"divergence": tokens.average(values)}


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


def with_tail(logprobs: Tensor) -> Tensor:
    """One more entry with the mass of all other tokens, shapes (N, k) to (N, k + 1). Without gradient where that is only rounding."""
    logprobs = logprobs.clamp(min=LEAST_LOGPROB)
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=1e-12 if logprobs.dtype == torch.float64 else LEAST_REST)
    return torch.cat([logprobs, rest.log()], -1)


def renormalised(logprobs: Tensor) -> Tensor:
    return logprobs.clamp(min=LEAST_LOGPROB).log_softmax(-1)
