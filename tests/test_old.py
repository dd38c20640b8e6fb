"""Stale data: what older weights say of it, and the two tests of its ratio. Numbers: the references' worked examples."""

from __future__ import annotations

import asyncio
import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from forests import add_turn
from packs import BEHAVIOUR, gradient, group, heads
from test_ahead import a_run, played

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import pack
from agentgym.policies.tiny import new_model
from agentgym.task import Task
from agentgym.trainers.credit.averaged import Averaged
from agentgym.trainers.credit.snapshots import Snapshots
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.objectives.masked import Masked, kept
from agentgym.trainers.schedules.ahead import BoundedStaleness
from agentgym.turn import TurnTree


class Even(Stateless):
    """Every sampled token has this advantage."""

    def __init__(self, advantage: float = 1.0) -> None:
        self.advantage = advantage

    async def assign(self, trees: Any, models: Any) -> None:
        for turn in (turn for tree in trees for turn in tree.turns):
            turn.streams["advantage"] = self.advantage * turn.sampled.astype(np.float64)


@pytest.mark.parametrize(
    ("sampler", "old", "now", "advantage", "keeps"),
    [
        (0.5, 0.5, 0.5, 1, True),
        (0.5, 0.504, 0.506, 1, True),
        (0.5, 0.52, 0.52, 1, False),
        (0.5, 0.502, 0.51, 1, False),
        (0.5, 0.502, 0.51, -1, True),
        (0.5, 0.502, 0.495, -1, False),
    ],
)
def test_the_masks_of_the_worked_example(sampler: float, old: float, now: float, advantage: float, keeps: bool) -> None:
    probabilities = (torch.tensor([math.log(p)], dtype=torch.float64) for p in (sampler, old, now))
    found = kept(*probabilities, torch.tensor([float(advantage)]), band=1.01, low=0.003, high=0.004)
    assert found.tolist() == [keeps]


def test_what_is_kept_has_the_whole_ratio_as_its_weight_and_the_rest_no_gradient() -> None:
    old = BEHAVIOUR + np.log([1.0, 1.004, 1.5])
    packed = group([3], advantage=[2.0, 2.0, 2.0], old=old)
    given = heads([1.0, 1.006, 1.5])
    assert gradient(Masked(), given, packed) == pytest.approx([-2.0, -2.0 * 1.006, 0.0])
    metrics = Masked()(given, packed)[1]
    assert metrics["kept"] == pytest.approx(2 / 3)


def test_the_average_of_the_worked_example() -> None:
    credit = Averaged(Even(), beta=0.75)
    found = []
    for theta in (0.0, 1.0, 1.0, 1.0):
        credit.follow({"weight": torch.tensor([theta], dtype=torch.float64)})
        found.append((credit.weight, float(credit.average["weight"])))
    assert [weight for weight, _ in found] == [1, 1.75, 2.3125, 2.734375]
    assert [average for _, average in found] == pytest.approx([0, 0.571429, 0.756757, 0.845714], abs=1e-6)


def a_forest(model: Any, versions: list[tuple[int, int]]) -> TurnTree:
    """One episode of one turn, with log-probabilities of this model."""
    tree = TurnTree("tree", Task("t", ""))
    root = add_turn(tree, None, [5, 6])
    turn = add_turn(tree, root, [7, 8, 9, 10], 3, end="done", reward=1.0)
    turn.versions = versions
    turn.logprobs = PackScorer(copy.deepcopy(model)).logprobs(pack([tree], 99)[0])[2:5].tolist()
    return tree


def changed(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


def a_learner() -> TorchLearner:
    return TorchLearner(new_model(40, seed=0), 1e-3)


def test_snapshots_say_what_the_weights_said_that_drew_each_token() -> None:
    learner, credit = a_learner(), Snapshots(Even(), keep=2)
    first = copy.deepcopy(learner.model)
    asyncio.run(credit.assign([a_forest(first, [(0, 3)])], {"learner": learner}))
    changed(learner.model, 1)
    learner.version = 4
    mixed = a_forest(first, [(0, 2), (4, 1)])
    asyncio.run(credit.assign([mixed], {"learner": learner}))
    by_old, by_new = (PackScorer(copy.deepcopy(m)).logprobs(pack([mixed], 99)[0])[2:5].tolist() for m in (first, learner.model))
    assert mixed.turns[1].streams["old"][:3] == pytest.approx([*by_old[:2], by_new[2]], abs=1e-6)
    assert abs(by_old[2] - by_new[2]) > 1e-3
    assert credit.metrics()["old_missing"] == 0


def test_where_the_weights_are_gone_the_samplers_word_stands_in_and_is_counted() -> None:
    learner, credit = a_learner(), Snapshots(Even(), keep=1)
    first = copy.deepcopy(learner.model)
    asyncio.run(credit.assign([a_forest(first, [(0, 3)])], {"learner": learner}))
    changed(learner.model, 1)
    learner.version = 4
    late = a_forest(first, [(0, 3)])
    late.turns[1].logprobs = [-1.0, -2.0, -3.0]
    asyncio.run(credit.assign([late], {"learner": learner}))
    assert late.turns[1].streams["old"].tolist() == [-1.0, -2.0, -3.0, 0.0]
    assert credit.metrics()["old_missing"] == 1.0


def test_an_average_that_has_fallen_behind_begins_anew() -> None:
    learner, credit = a_learner(), Averaged(Even(), beta=0.75, least=0.9)
    asyncio.run(credit.assign([a_forest(learner.model, [(0, 3)])], {"learner": learner}))
    assert credit.metrics() == {"old_kept": 1.0, "old_resets": 0.0}
    changed(learner.model, 1)
    tree = a_forest(learner.model, [(1, 3)])
    asyncio.run(credit.assign([tree], {"learner": learner}))
    assert credit.metrics()["old_resets"] == 1.0
    assert credit.weight == 1.0
    assert tree.turns[1].streams["old"][:3] == pytest.approx(tree.turns[1].logprobs, abs=1e-6)


@pytest.mark.parametrize("make", [Snapshots, Averaged])
def test_a_saved_state_says_the_same_of_the_next_batch(make: Any) -> None:
    learner, credit = a_learner(), make(Even())
    first = copy.deepcopy(learner.model)
    asyncio.run(credit.assign([a_forest(first, [(0, 3)])], {"learner": learner}))
    again = make(Even())
    again.load_state_dict(copy.deepcopy(credit.state_dict()))
    changed(learner.model, 1)
    learner.version = 2
    found = []
    for one in (credit, again):
        tree = a_forest(first, [(0, 3)])
        asyncio.run(one.assign([tree], {"learner": learner}))
        found.append(tree.turns[1].streams["old"])
    assert np.array_equal(*found)


def test_a_run_ahead_of_its_learner_is_told_apart_from_its_engine() -> None:
    run = a_run(BoundedStaleness(2))
    run.credit, run.objective = Snapshots(run.credit, keep=3), Masked(band=1.01, low=0.2, high=0.2)
    heard = [metrics for metrics, _ in played(run, 5)]
    assert max(metrics["staleness"] for metrics in heard) >= 1
    assert all(metrics["gap_sampler"] == pytest.approx(1, abs=1e-4) for metrics in heard if "gap_sampler" in metrics)
    assert any(abs(metrics["gap_moved"] - 1) > 1e-4 for metrics in heard if "gap_moved" in metrics)
    assert all(metrics["old_missing"] == 0 for metrics in heard)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(AgentGymError, match="keep is 0"):
        Snapshots(Even(), keep=0)
    with pytest.raises(AgentGymError, match=r"beta is 1\.0"):
        Averaged(Even(), beta=1.0)
