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
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.lags import WithLags
from agentgym.trainers.credit.snapshots import Snapshots
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.objectives.interpolated import Interpolated, between
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


def test_an_old_log_probability_between_two_is_that_of_the_worked_example() -> None:
    lag = np.array([2.0])  # drawn by version 5, learnt by 7 first
    found = between(np.log([0.4]), np.log([0.7]), lag, "log")
    assert np.exp(found) == pytest.approx([0.580879], abs=1e-6)
    assert np.exp(between(np.log([0.4]), np.log([0.7]), lag, "linear")) == pytest.approx([0.6])
    assert between(np.array([-1.0]), np.array([-2.0]), np.zeros(1), "linear") == pytest.approx([-1.0])


@pytest.mark.parametrize(
    ("lag", "form", "mask", "clip"),
    [
        (1, "linear", (0.98, 1.02), (0.994018, 1.008032)),
        (1, "log", (0.9801, 1.0201), (0.994009, 1.008016)),
        (2, "linear", (0.985, 1.015), (0.991054, 1.012097)),
        (2, "log", (0.985038, 1.015037), (0.991027, 1.012048)),
        (3, "linear", (0.986667, 1.013333), (0.988107, 1.016194)),
        (3, "log", (0.986689, 1.013356), (0.988054, 1.016096)),
    ],
)
def test_tests_of_an_interpolated_ratio_are_wider_tests_of_the_whole_one(lag: int, form: Any, mask: Any, clip: Any) -> None:
    def keeps(ratio: float, advantage: float, band: float, low: float, high: float) -> bool:
        sampler, now = np.log([0.5]), np.log([0.5 * ratio])
        old = between(sampler, now, np.array([float(lag)]), form)
        return bool(kept(*map(torch.from_numpy, (sampler, old, now, np.array([advantage]))), band, low, high))

    near = 2e-6
    assert keeps(mask[1] - near, -1.0, 1.01, 1.0, 1.0)
    assert not keeps(mask[1] + near, -1.0, 1.01, 1.0, 1.0)
    assert keeps(mask[0] + near, 1.0, 1 / 0.99, 1.0, 1.0)  # the band of the table is 1 -+ 0.01
    assert not keeps(mask[0] - near, 1.0, 1 / 0.99, 1.0, 1.0)
    assert keeps(clip[1] - near, 1.0, 9.0, 0.003, 0.004)
    assert not keeps(clip[1] + near, 1.0, 9.0, 0.003, 0.004)
    assert keeps(clip[0] + near, -1.0, 9.0, 0.003, 0.004)
    assert not keeps(clip[0] - near, -1.0, 9.0, 0.003, 0.004)


def test_an_objective_takes_its_old_log_probabilities_from_the_running_pass() -> None:
    lag = np.array([0.0, 1.0, 1.0])
    packed = group([3], advantage=[2.0, 2.0, 2.0], lag=lag)
    given = heads([1.0, 1.008, 1.0085])
    objective = Interpolated(Masked(band=2.0))
    assert objective.needs == {"advantage", "lag"}
    assert gradient(objective, given, packed) == pytest.approx([-2.0, -2.0 * 1.008, 0.0])
    assert objective(given, packed)[1]["gap_sampler"] == pytest.approx(np.mean([1.0, 1.008**0.5, 1.0085**0.5]))


def test_what_cannot_be_between_is_never_no_number() -> None:
    found = between(np.array([-800.0]), np.array([-801.0]), np.array([1.0]), "linear")
    assert found == pytest.approx([-800 + math.log((1 + math.exp(-1)) / 2)])
    assert between(np.array([-1.0]), np.array([-np.inf]), np.zeros(1), "log").tolist() == [-1.0]
    with pytest.raises(AgentGymError, match="form is 'nonsense'"):
        Interpolated(Masked(), form="nonsense")  # type: ignore[arg-type]


def test_lags_are_counted_from_the_weights_that_drew_each_token() -> None:
    learner = a_learner()
    learner.version = 6
    tree = a_forest(learner.model, [(2, 2), (6, 1)])
    asyncio.run(WithLags(Even()).assign([tree], {"learner": learner}))
    assert tree.turns[1].streams["lag"].tolist() == [4.0, 4.0, 0.0, 0.0]
    assert not tree.root.streams["lag"].any()


def test_a_run_ahead_of_its_learner_can_guess_what_is_old() -> None:
    run = a_run(BoundedStaleness(2), credit=WithLags(GRPO()), objective=Interpolated(Masked(band=2.0, low=0.2, high=0.2)))
    heard = [metrics for metrics, _ in played(run, 5)]
    assert any(metrics.get("kept", 0.0) > 0 for metrics in heard)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(AgentGymError, match="keep is 0"):
        Snapshots(Even(), keep=0)
    with pytest.raises(AgentGymError, match=r"beta is 1\.0"):
        Averaged(Even(), beta=1.0)
