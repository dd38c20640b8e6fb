"""Distances between whole distributions that are differentiated: of a policy from a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agentgym.errors import AgentGymError


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
