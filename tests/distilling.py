"""Students, teachers and worked numbers for tests of distillation."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from forests import add_turn, random_model, random_tree
from torch import Tensor

from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.credit.exopd import ExOPD, WholeExOPD
from agentgym.trainers.credit.logprobs import by_turn
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.topk import StudentTopK, TopK
from agentgym.trainers.learner import Frozen, PackScorer, TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.distillation import Distillation
from agentgym.trainers.objectives.divergences import JSD, ForwardKL, ReverseKL
from agentgym.trainers.objectives.sampled_kl import SampledKL
from agentgym.trainers.objectives.token_rewards import TokenRewards
from agentgym.turn import TurnTree

P, Q = [0.5, 0.3, 0.15, 0.05], [0.6, 0.2, 0.1, 0.1]
REVERSE = [-0.119481, 0.104647, 0.052324, -0.037489]
FORWARD = [-0.1, 0.1, 0.05, -0.05]
OBJECTIVES: dict[str, Any] = {
    "OPD": (OPD, ClippedSurrogate),
    "OPD in turns": (lambda: OPD(discount=0.9, turn_discount=0.5, window=9), ClippedSurrogate),
    "ExOPD": (ExOPD, ClippedSurrogate),
    "k2": (OPD, SampledKL),
    "k3": (OPD, lambda: SampledKL("k3")),
    "reverse": (TopK, Distillation),
    "reverse on the student's": (lambda: StudentTopK(4), Distillation),
    "forward": (lambda: TopK(5), lambda: Distillation(ForwardKL())),
    "JSD": (lambda: TopK(5), lambda: Distillation(JSD(0.3))),
    "renormalised": (lambda: TopK(5), lambda: Distillation(ReverseKL(), "renormalised")),
    "whole": (lambda: TopK(None), Distillation),
    "beyond the teacher": (WholeExOPD, Distillation),
    "token rewards": (lambda: StudentTopK(5), TokenRewards),
}


def log(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


@dataclass
class Says:
    """A model whose log-probabilities a test chose, one for each token of the pack."""

    values: Any

    def logprobs(self, packed: Packed) -> Tensor:
        return torch.as_tensor(self.values, dtype=torch.float64)


class Silent:
    """A model that may not be asked."""

    def logprobs(self, packed: Packed) -> Tensor:
        raise AssertionError


@dataclass
class Heads:
    """Log-probabilities of the tokens of a pack, and of any others in their places: the same distribution in all."""

    logprobs: Tensor
    every: Any = None
    entropy: Any = None

    def at(self, ids: Tensor) -> Tensor:
        found: Tensor = self.every[ids]
        return found

    def gradient_norms(self, values: Tensor) -> Tensor:
        raise NotImplementedError


def episode(*turns: tuple[list[float], int]) -> TurnTree:
    """One episode after a prompt of one token: of each turn the log-probabilities of what was sampled, and how long its observation is."""
    tree = TurnTree("tree", Task("task", ""))
    turn = add_turn(tree, None, [0])
    for logprobs, observed in turns:
        turn = add_turn(tree, turn, [1] * (len(logprobs) + observed), len(logprobs))
        turn.logprobs = logprobs
    turn.end, turn.reward = "done", 1.0
    return tree


def advantages_of(tree: TurnTree) -> list[float]:
    return [float(value) for turn in tree.turns[1:] for value in turn.streams["advantage"]]


def differentiated(divergence: Any, student: Tensor, teacher: Tensor, complete: Any) -> tuple[float, list[float]]:
    """Its value, and its gradient in the student's logits."""
    logits = student.clone().requires_grad_()
    value = divergence(complete(logits.log_softmax(-1)[None]), complete(teacher[None])).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return float(value.detach()), gradient.tolist()


def expected_gradient(student: Tensor, advantages: Any, teacher: Any, objective: Any) -> list[float]:
    """The gradient in the logits, averaged over all actions, each sampled as often as it is likely."""
    logits = student.clone().requires_grad_()
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [0])
    for token, logprob in enumerate(student.tolist()):
        turn = add_turn(tree, root, [token], 1, end="done")
        turn.logprobs = [logprob]
        turn.streams = {"weight": np.exp([logprob])}
        if advantages is not None:
            turn.streams["advantage"] = np.array([advantages[token]])
        if teacher is not None:
            turn.streams["teacher"] = np.array([float(teacher[token])])
    (packed,) = pack([tree], 100)
    every = logits.log_softmax(-1)
    loss = objective(Heads(torch.cat([every.new_zeros(1), every])), packed)[0]
    (gradient,) = torch.autograd.grad(loss, logits)
    found: list[float] = gradient.tolist()
    return found


def random_forest(seed: int, model: Any = None) -> list[TurnTree]:
    """Three random trees that ``model`` may have sampled."""
    rng = random.Random(seed)
    forest = [random_tree(rng, empty=0.1, restarts=0.1) for _ in range(3)]
    for packed in pack(forest, 10**6) if model is not None else ():
        for turn, own in by_turn(packed, PackScorer(model).logprobs(packed).numpy()):
            turn.logprobs = own[turn.sampled].tolist()
    for tree, name in zip(forest, "abc", strict=True):
        tree.id = name
    return forest


def scorers(seed: int = 1) -> dict[str, Any]:
    return {"teacher": PackScorer(random_model("Llama", seed).double()), "reference": PackScorer(random_model("Llama", 7).double())}


def a_learner() -> TorchLearner:
    return TorchLearner(random_model("Qwen3").double(), 1e-2)


def copy_of(learner: TorchLearner) -> Any:
    return Frozen(learner.model).model


def loss_of(learner: TorchLearner, packs: list[Packed], objective: Any) -> float:
    total = sum(learner.accumulate(packed, objective).get("loss", 0.0) for packed in packs)
    learner.optimizer.zero_grad()
    return total
