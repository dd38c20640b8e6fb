"""Divergences of distributions: the worked numbers, tails, and values at the edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilling import FORWARD, REVERSE, P, Q, differentiated, log
from hypothesis import given as for_all
from hypothesis import strategies as st

from agentgym.trainers.credit.topk import common
from agentgym.trainers.objectives.distillation import renormalised, with_tail
from agentgym.trainers.objectives.divergences import JSD, ForwardKL, ReverseKL


def test_divergences_of_whole_distributions_are_the_worked_ones() -> None:
    for divergence, expected, slope in (
        (ReverseKL(), 0.056641, REVERSE),
        (ForwardKL(), 0.057068, FORWARD),
        (JSD(0.5), 0.014074, None),
        (JSD(0.1), 0.1 * 0.051126, None),
        (JSD(0.9), 0.1 * 0.050843, None),
    ):
        for complete in (with_tail, renormalised):
            value, gradient = differentiated(divergence, log(P), log(Q), complete)
            assert value == pytest.approx(expected, abs=1e-6)
            assert slope is None or gradient == pytest.approx(slope, abs=1e-6)


def test_divergences_on_two_tokens_are_the_worked_ones() -> None:
    p, q = log(P), log(Q)
    assert differentiated(ReverseKL(), p, q[:2], lambda own: renormalised(own[:, :2]))[0] == pytest.approx(0.038098, abs=1e-6)
    assert differentiated(ReverseKL(), p, q[:2], lambda own: with_tail(own[:, :2]))[0] == pytest.approx(0.030479, abs=1e-6)


def test_divergences_with_a_tail_are_those_of_the_self_distillation_example() -> None:
    p, q = log([[0.5, 0.3, 0.1]]), log([[0.6, 0.1, 0.2]])
    for divergence, complete, expected in (
        (JSD(0.5), with_tail, 0.036933),
        (ForwardKL(), with_tail, 0.138161),
        (ReverseKL(), with_tail, 0.169108),
        (ReverseKL(), renormalised, 0.187898),
    ):
        assert float(divergence(complete(p), complete(q))) == pytest.approx(expected, abs=1e-6)


@for_all(st.integers(0, 10**6), st.integers(1, 12))
def test_a_tail_never_adds_and_loses_nothing_where_all_tokens_are_there(seed: int, k: int) -> None:
    student, teacher = torch.randn(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)[:, None]
    for divergence in (ReverseKL(), ForwardKL(), JSD(0.3)):
        whole = float(divergence(student, teacher))
        part = float(divergence(with_tail(student[:, :k]), with_tail(teacher[:, :k])))
        assert -1e-12 <= part <= whole + 1e-12
        if k == 12:
            assert part == pytest.approx(whole)
        assert abs(float(divergence(renormalised(teacher), renormalised(teacher)))) < (1e-15 if isinstance(divergence, JSD) else 1e-300)


@pytest.mark.parametrize("scale", [1, 5])
@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JSD(0.5)])
def test_rounding_over_a_whole_vocabulary_is_no_tail(divergence: Any, scale: float) -> None:
    logits = (scale * torch.randn(32, 5000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    other = (scale * torch.randn(32, 5000, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    found = []
    for complete in (with_tail, lambda own: own):
        value = divergence(complete(logits.log_softmax(-1)), complete(other)).sum()
        found.append((value.detach(), *torch.autograd.grad(value, logits)))
    assert torch.isfinite(found[0][1]).all()
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    tail = with_tail(logits.log_softmax(-1))[:, -1]
    assert torch.equal(tail, with_tail(other)[:, -1])
    assert not torch.autograd.grad(tail.sum(), logits)[0].any()


def test_a_token_that_one_of_them_never_writes_gives_finite_gradients() -> None:
    impossible = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    for divergence in (ReverseKL(), ForwardKL(), JSD(0.5)):
        for complete in (with_tail, renormalised):
            logits = torch.zeros(1, 3, requires_grad=True)
            value = divergence(complete(logits.log_softmax(-1)), complete(impossible)).sum()
            value.backward()  # type: ignore[no-untyped-call]
            assert torch.isfinite(value)
            assert torch.isfinite(logits.grad).all()
            assert torch.isfinite(divergence(complete(impossible), complete(logits.detach().log_softmax(-1)))).all()


def test_the_overlap_of_top_three_and_the_mass_that_they_share() -> None:
    p, other = torch.tensor(P), torch.tensor([0.6, 0.2, 0.02, 0.18])
    ids = [values.topk(3).indices[None] for values in (p, other)]
    assert common(*ids).item() == pytest.approx(2 / 3)
    shared = [token for token in ids[0][0].tolist() if token in ids[1][0].tolist()]
    assert float(p[shared].sum()) == pytest.approx(0.8) == float(other[shared].sum())
