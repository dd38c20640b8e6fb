"""Estimates that have, in expectation, the gradient of a divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from distilling import FORWARD, REVERSE, Heads, P, Q, episode, expected_gradient, log
from forests import add_turn

from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.distillation import Distillation
from agentgym.trainers.objectives.divergences import JSD
from agentgym.trainers.objectives.sampled_kl import SampledKL
from agentgym.trainers.objectives.token_rewards import TokenRewards
from agentgym.turn import TurnTree


def test_sampled_tokens_give_the_gradient_of_a_divergence_in_expectation() -> None:
    p, q = log(P), log(Q)
    assert expected_gradient(p, (q - p).tolist(), None, ClippedSurrogate()) == pytest.approx(REVERSE, abs=1e-6)
    assert expected_gradient(p, None, q, SampledKL()) == pytest.approx(REVERSE, abs=1e-6)
    assert expected_gradient(p, None, q, SampledKL("k3")) == pytest.approx(FORWARD, abs=1e-6)


def test_estimates_have_the_worked_means() -> None:
    p, q = log(P), log(Q)
    r = p - q
    assert r.tolist() == pytest.approx([-0.182322, 0.405465, 0.405465, -0.693147], abs=1e-6)
    assert float((p.exp() * r).sum()) == pytest.approx(0.056641, abs=1e-6)
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [0])
    for token in range(4):
        add_turn(tree, root, [token], 1).streams = {"weight": np.array([P[token]]), "teacher": q[token : token + 1].numpy()}
    (packed,) = pack([tree], 100)
    for estimator, expected in (("k2", 0.057312), ("k3", 0.056641)):
        loss, metrics = SampledKL(estimator)(Heads(torch.cat([p.new_zeros(1), p])), packed)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(expected, abs=1e-6)
        assert metrics["divergence"] == pytest.approx(expected, abs=1e-6)


def _one_place(ids: list[int], weight: float = 1.0) -> Packed:
    """A token that trains, in whose place ``ids`` stand."""
    tree = episode(([-1.0], 0))
    p, q = log(P), log(Q)
    tree.turns[1].streams = {
        "weight": np.array([weight]),
        "teacher_ids": np.array([ids], float),
        "teacher_logprobs": q[ids][None].numpy(),
        "student_logprobs": p[ids][None].numpy(),
    }
    return pack([tree], 10)[0]


def test_token_rewards_are_the_worked_ones_and_with_all_tokens_the_exact_gradient() -> None:
    p = log(P)

    def gradient(ids: list[int]) -> tuple[float, list[float]]:
        logits = p.clone().requires_grad_()
        every = logits.log_softmax(-1)
        loss = TokenRewards()(Heads(every.new_zeros(2), every), _one_place(ids))[0]
        return float(loss.detach()), torch.autograd.grad(loss, logits)[0].tolist()

    two = gradient([0, 1])
    assert two[0] == pytest.approx(0.038098, abs=1e-6)
    expected = torch.zeros(4, dtype=torch.float64)
    for token, reward in ((0, 0.113951), (1, -0.152049)):
        expected += reward * (p.exp() - torch.eye(4, dtype=torch.float64)[token])
    assert two[1] == pytest.approx(expected.tolist(), abs=1e-6)
    assert gradient([2, 0, 3, 1])[1] == pytest.approx(REVERSE, abs=1e-6)


def test_no_token_that_trains_is_a_loss_of_zero_with_a_finite_gradient() -> None:
    for objective in (Distillation(), Distillation(JSD(), "renormalised"), TokenRewards()):
        every = log(P).requires_grad_()
        loss, metrics = objective(Heads(every.new_zeros(2), every.log_softmax(-1)), _one_place([0, 1], weight=0.0))
        assert float(loss.detach()) == 0.0 == metrics["divergence"]
        assert torch.autograd.grad(loss, every)[0].tolist() == [0] * 4
