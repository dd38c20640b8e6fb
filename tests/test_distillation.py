"""Every way of distilling, on a real model: gradients, and what trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from credits import assigned
from distilling import OBJECTIVES, a_learner, copy_of, loss_of, random_forest, scorers
from forests import VOCABULARY
from torch import Tensor

from agentgym.pack import Packed, pack
from agentgym.trainers.credit.topk import StudentTopK, TopK
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import Frozen, TorchLearner


def _prepared(name: str, seed: int = 3, cut: int = 10**6, models: Any = None) -> tuple[TorchLearner, list[Packed], Any]:
    credit, objective = OBJECTIVES[name]
    learner = a_learner()
    forest = random_forest(seed)
    assigned(credit(), *forest, learner=learner, **(models or scorers()))
    token_mean(forest)
    return learner, pack(forest, cut), objective()


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    def norm(self: Any, x: Tensor) -> Any:  # the model's own rounds to float32 inside
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", norm)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    learner, packs, objective = _prepared(name)
    found = learner.gradient(packs, objective)
    weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
    assert found.norm() > 1e-6
    for trial in range(3):
        direction = torch.randn(len(found), dtype=torch.float64, generator=torch.Generator().manual_seed(trial))
        parts = direction.split([weight.numel() for weight in weights])
        values = []
        for step in (1e-6, -2e-6):
            for weight, part in zip(weights, parts, strict=True):
                weight.data += step * part.view_as(weight)
            values.append(loss_of(learner, packs, objective))
        for weight, part in zip(weights, parts, strict=True):
            weight.data += 1e-6 * part.view_as(weight)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(found @ direction), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_does_not_train_may_change_in_any_way(name: str) -> None:
    learner, (packed,), objective = _prepared(name)
    before = loss_of(learner, [packed], objective)
    idle = packed.streams["weight"] == 0
    assert idle.any()
    for stream in packed.streams.keys() - {"weight"}:
        packed.streams[stream][idle] = 7
    packed.logprobs[idle] = -9.0
    unread = idle & ~np.isin(np.arange(len(packed)), packed.parent)  # their ids are nobody's context
    assert unread.any()
    packed.token[unread] = (packed.token[unread] + 1) % VOCABULARY
    assert loss_of(learner, [packed], objective) == before


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "OPD in turns"])
def test_a_teacher_equal_to_its_student_teaches_nothing(name: str) -> None:
    credit, objective = OBJECTIVES[name]
    learner = a_learner()
    same = Frozen(learner.model)
    forest = random_forest(4, copy_of(learner))
    assigned(credit(), *forest, learner=learner, teacher=same, reference=same)
    token_mean(forest)
    packs = pack(forest, 10**6)
    for turn in (turn for tree in forest for turn in tree.turns):
        assert not turn.streams.get("advantage", np.zeros(1)).any()
    assert abs(loss_of(learner, packs, objective())) < 1e-12
    if name != "OPD" and name != "ExOPD":
        assert float(learner.gradient(packs, objective()).norm()) < 1e-9


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_and_cuts_of_the_batch_change_no_gradient(name: str) -> None:
    learner, packs, objective = _prepared(name)
    whole = learner.gradient(packs, objective)
    _, cut, _ = _prepared(name, cut=14)
    assert len(cut) > 2
    assert torch.allclose(learner.gradient(cut[::-1], objective), whole, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_in_which_nothing_trains_is_no_loss(name: str) -> None:
    credit, objective = OBJECTIVES[name]
    learner = a_learner()
    forest = [tree for tree in random_forest(3) if not tree.root.streams]
    for turn in (turn for tree in forest for turn in tree.turns):
        turn.sampled_tokens, turn.logprobs = 0, []
    assigned(credit(), *forest, learner=learner, **scorers())
    token_mean(forest)
    packs = pack(forest, 10**6)
    assert loss_of(learner, packs, objective()) == 0.0
    assert not learner.gradient(packs, objective()).any()


def test_metrics_say_how_much_of_the_teacher_is_seen_and_shared() -> None:
    learner, models = a_learner(), scorers()
    forest = random_forest(3)
    few = assigned(TopK(3, overlap=True), *forest, learner=learner, **models)
    all_of_it = assigned(TopK(None), *forest, learner=learner, **models)
    assert 0 < few["teacher_mass"] < 1
    assert all_of_it["teacher_mass"] == pytest.approx(1)
    assert 0 < few["overlap"] < 1
    own = assigned(StudentTopK(3, overlap=True), *forest, learner=learner, **models)
    assert own["overlap"] == pytest.approx(few["overlap"])
    assert own["teacher_mass"] < few["teacher_mass"]
    same = assigned(TopK(3, overlap=True), *forest, learner=learner, teacher=Frozen(learner.model))
    assert same["overlap"] == 1
