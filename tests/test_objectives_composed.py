"""Objectives in a training: what they need is there or refused, they compose, and their state is kept."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forests import add_turn, random_model
from packs import gradient, group, heads, learn
from test_objectives_paths import wild_tree

from agentgym.errors import AgentGymError
from agentgym.expand import Groups, Stateless
from agentgym.pack import Packed
from agentgym.task import Task
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.hapo import HAPO as HapoCredit  # noqa: N811
from agentgym.trainers.credit.importance import Corrected, importance
from agentgym.trainers.credit.importance_rules import (
    Band,
    DivergenceRejection,
    GeometricRejection,
    SequenceRejection,
    SequenceTruncated,
    Truncated,
)
from agentgym.trainers.credit.logprobs import WithLogprobs
from agentgym.trainers.divisors import sequence_mean, token_mean
from agentgym.trainers.learner import Frozen, TorchLearner
from agentgym.trainers.objectives.aepo import KeptGradient
from agentgym.trainers.objectives.bapo import BAPO
from agentgym.trainers.objectives.cispo import CISPO
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.entropic import EntroPIC
from agentgym.trainers.objectives.gspo import GSPO
from agentgym.trainers.objectives.hapo import HAPO
from agentgym.trainers.objectives.importance import Decoupled
from agentgym.trainers.objectives.kl import KL, Regularised
from agentgym.trainers.objectives.lpo import LPO
from agentgym.trainers.objectives.minpro import MinPRO
from agentgym.trainers.objectives.vcpo import VCPO
from agentgym.trainers.packing import ByPath, ByTree, ByWholeTree
from agentgym.trainers.paths import Paths, paths
from agentgym.trainers.recipe import Plugin, Recipe
from agentgym.trainers.seams import Objective
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree

MAKE: dict[str, Any] = {
    "clipped": ClippedSurrogate,
    "AEPO": KeptGradient,
    "CISPO": CISPO,
    "GSPO": GSPO,
    "MinPRO": MinPRO,
    "BAPO": BAPO,
    "VCPO": VCPO,
    "VCPO by length": lambda: VCPO(norms="length", standardise=True),
    "LPO": LPO,
    "reverse LPO": lambda: LPO("reverse"),
    "HAPO": HAPO,
    "EntroPIC": EntroPIC,
    "EntroPIC on GSPO": lambda: EntroPIC(GSPO()),
    "KL": lambda: Regularised(ClippedSurrogate(), KL("k2")),
    "decoupled": lambda: Decoupled(ClippedSurrogate()),
    "all at once": lambda: Regularised(EntroPIC(Decoupled(GSPO())), KL()),
}


def _forest(seed: int) -> list[TurnTree]:
    rng = random.Random(seed)
    forest = [wild_tree(rng) for _ in range(4)]
    for tree in forest:
        for turn in tree.turns:
            turn.entropies = [rng.uniform(0, 2) for _ in turn.logprobs]
    return forest


def _training(objective: Objective, credit: Any = None, packing: Any = None, **others: Any) -> Training:
    nothing: Any = None
    learner = others.pop("learner", None) or TorchLearner(random_model("Llama"), 1e-3)
    source = Uniform([Task("task", "")])
    credit = credit or GRPO()
    packing = packing or ByWholeTree(60)
    return Training(nothing, nothing, nothing, source, Groups(2), credit, objective, learner, nothing, packing=packing, **others)


@pytest.mark.parametrize("divisor", [token_mean, sequence_mean])
@pytest.mark.parametrize("name", MAKE)
def test_every_objective_learns_from_a_forest_with_grpos_credit(name: str, divisor: Any) -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2)
    credit: Any = WithLogprobs(Corrected(HapoCredit() if name == "HAPO" else GRPO()), {"reference": "reference"})
    run = _training(MAKE[name](), credit, learner=learner, divisor=divisor, models={"reference": Frozen(learner.model)})
    before = [weights.detach().clone() for weights in learner.model.parameters()]
    for seed in range(2):
        forest = _forest(seed)
        asyncio.run(run.credit.assign(forest, {"learner": learner, **run.models}))
        metrics = learn(run, seed, forest)
        assert np.isfinite(list(metrics.values())).all()
        assert metrics["gradient_norm"] > 0
    assert learner.version == 4
    assert any(not torch.equal(old, new) for old, new in zip(before, learner.model.parameters(), strict=True))
    assert all(torch.isfinite(weights).all() for weights in learner.model.parameters())


# What cannot work is refused at once


@pytest.mark.parametrize(
    ("objective", "credit", "packing", "reason"),
    [
        (GSPO(), GRPO(), ByTree(), "GSPO couples the tokens of whole episodes, which ByTree may cut"),
        (LPO(), GRPO(), ByPath(), "LPO couples .* ByPath may cut: set packing to agentgym.trainers.packing:ByWholeTree"),
        (EntroPIC(MinPRO()), GRPO(), ByTree(), "EntroPIC couples"),
        (Regularised(CISPO()), GRPO(), ByTree(), "Regularised needs reference, which neither GRPO writes nor TorchLearner gives"),
        (Decoupled(CISPO()), WithLogprobs(GRPO(), {"old": "learner"}), ByTree(), "Decoupled needs importance, which neither WithLogprobs"),
        (HAPO(), GRPO(), ByTree(), "HAPO needs heterogeneity"),
    ],
)
def test_an_impossible_pair_is_refused_with_the_reason(objective: Any, credit: Any, packing: Any, reason: str) -> None:
    with pytest.raises(AgentGymError, match=reason):
        _training(objective, credit, packing)


def test_a_learner_without_the_heads_is_refused() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-3)
    learner.heads = frozenset({"logprobs"})
    with pytest.raises(AgentGymError, match="EntroPIC needs entropy"):
        _training(EntroPIC(), learner=learner)


def test_possible_pairs_are_not_refused() -> None:
    _training(HAPO(), HapoCredit(), ByTree())
    _training(Decoupled(CISPO()), Corrected(GRPO()), ByPath())
    _training(GSPO(), packing=lambda trees: ByWholeTree()(trees))


# State and pace


def test_the_state_of_an_objective_is_in_the_checkpoint(tmp_path: Path) -> None:
    def run() -> Training:
        return _training(Regularised(EntroPIC(), KL()), WithLogprobs(GRPO(), {"reference": "reference"}))

    first = run()
    controller: Any = first.objective.objective  # type: ignore[attr-defined]
    controller.error = 2.5
    first.save(Stateless(), tmp_path)
    second = run()
    second.load(Stateless(), tmp_path)
    assert second.objective.objective.error == 2.5  # type: ignore[attr-defined]
    assert [plugin.metrics() for plugin in second.plugins().values()][-1] == {"entropy_error": 2.5}
    assert not [name for name in _training(GSPO()).plugins() if "objective" in name]


def test_an_update_is_as_long_as_its_objective_says() -> None:
    forest = _forest(3)
    learner = TorchLearner(random_model("Llama"), 1e-2)
    objective = VCPO(norms="length")
    run = _training(Regularised(objective, KL()), WithLogprobs(GRPO(), {"reference": "learner"}), learner=learner, updates=1)
    asyncio.run(run.credit.assign(forest, {"learner": learner}))
    frozen = Frozen(learner.model)
    metrics = learn(run, 0, forest)
    taught = [tree for tree in forest if any(turn.streams["advantage"].any() for turn in tree.turns)]
    ratios = []
    for packed in ByWholeTree()(taught):
        found = paths(packed)
        change = frozen.logprobs(packed).double().numpy() - packed.logprobs
        ratios.extend(np.exp(np.bincount(found.episode, change[found.token], minlength=len(found.rewards)).clip(-20, 20)))
    effective = np.sum(ratios) ** 2 / np.sum(np.square(ratios)) / len(ratios)
    assert 0 < effective < 1
    assert metrics["learning_rate"] == pytest.approx(1e-2 * np.sqrt(effective), rel=1e-3)


# Streams of log-probabilities


def test_streams_hold_what_each_model_thinks() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-1)
    reference = Frozen(random_model("Llama", seed=1))
    forest = _forest(5)
    credit = WithLogprobs(GRPO(), {"old": "learner", "reference": "reference"}, max_tokens=20)
    asyncio.run(credit.assign(forest, {"learner": learner, "reference": reference}))
    for packed in ByWholeTree()(forest):
        for stream, model in (("old", learner), ("reference", reference)):
            assert packed.streams[stream] == pytest.approx(model.logprobs(packed).numpy(), abs=1e-5)  # type: ignore[attr-defined]
    assert credit.writes == {"advantage", "old", "reference"}
    with pytest.raises(AgentGymError, match=r"'reference' asks for a model 'reference' .* models: learner"):
        asyncio.run(credit.assign(forest, {"learner": learner}))


def test_a_frozen_model_stays_as_it_was() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-1)
    frozen, forest = Frozen(learner.model), _forest(1)
    run = _training(ClippedSurrogate(), learner=learner)
    (packed,) = ByWholeTree()(forest[:1])
    before = frozen.logprobs(packed)
    asyncio.run(run.credit.assign(forest, {}))
    learn(run, 0, forest)
    assert torch.equal(frozen.logprobs(packed), before)
    assert not torch.equal(learner.logprobs(packed), before)


# Importance

OLD = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.3, 5: 0.6, 9: 0.1}
SAMPLER = [[0.5, 0.5, 0.3], [0.3, 0.5]]


class Looked:
    """A trainer that gives each token a probability of its own."""

    def logprobs(self, packed: Packed) -> torch.Tensor:
        return torch.tensor([np.log(OLD[token]) for token in packed.token.tolist()])


def _rows() -> TurnTree:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [9])
    for ids, probabilities, reward in (([1, 2, 3], SAMPLER[0], 1.0), ([4, 5, 9], SAMPLER[1], 0.0)):
        turn = add_turn(tree, root, ids, len(probabilities), end="done", reward=reward)
        turn.logprobs = np.log(probabilities).tolist()
    return tree


def _importance(*rules: Any, normalise: Any = None) -> tuple[list[list[float]], Mapping[str, float]]:
    tree, credit = _rows(), Corrected(GRPO(), rules, normalise)
    asyncio.run(credit.assign([tree], {"learner": Looked()}))
    return [turn.streams["importance"].tolist() for turn in tree.leaves()], credit.metrics()


@pytest.mark.parametrize(
    ("rules", "normalise", "expected"),
    [
        ([Truncated(1e9)], None, [[1, 0.8, 3], [1, 1.2, 0]]),
        ([Truncated(2.0)], None, [[1, 0.8, 2], [1, 1.2, 0]]),
        ([Truncated(2.0)], "tokens", [[0.833333, 0.666667, 1.666667], [0.833333, 1, 0]]),
        ([Band(0.5, 2.0)], None, [[1, 0.8, 0], [1, 1.2, 0]]),
        ([SequenceTruncated(10)], None, [[2.4] * 3, [1.2, 1.2, 0]]),
        ([SequenceTruncated(2)], None, [[2] * 3, [1.2, 1.2, 0]]),
        ([SequenceTruncated(2)], "sequences", [[1.25] * 3, [0.75, 0.75, 0]]),
        ([SequenceRejection(2)], None, [[0] * 3, [1, 1, 0]]),
        ([SequenceTruncated(2), SequenceRejection(2)], None, [[0] * 3, [1.2, 1.2, 0]]),
        ([GeometricRejection(1.0954, 1.3388), Truncated()], None, [[0] * 3, [1, 1.2, 0]]),
        ([GeometricRejection(1.0955, 1.3389), Truncated()], None, [[1, 0.8, 2], [0] * 3]),
        ([DivergenceRejection(0.01)], None, [[0] * 3, [1, 1, 0]]),  # 0.3 and 0.00884
        ([DivergenceRejection(0.01, "k2")], None, [[0] * 3, [1, 1, 0]]),
        ([DivergenceRejection(0.005)], None, [[0] * 3, [0] * 3]),
    ],
)
def test_rules_of_the_worked_example(rules: Sequence[Any], normalise: Any, expected: list[list[float]]) -> None:
    assert np.array(_importance(*rules, normalise=normalise)[0]) == pytest.approx(np.array(expected), abs=1e-4)


def test_the_gap_of_the_worked_example_is_measured() -> None:
    metrics = _importance(Truncated(2.0))[1]
    expected = {
        "sampler_kl": -0.211558,
        "sampler_k3": 0.188442,
        "sampler_chi2": 1.616,
        "sampler_sequence_chi2": 2.6,
        "sampler_largest_ratio": 3.0,
        "importance_effective": 0.891089,
        "importance_rejected": 0.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert _importance(Band(0.5, 2.0))[1]["importance_rejected"] == pytest.approx(0.2)
    assert _importance(SequenceRejection(1.0))[1]["importance_effective"] == 0


def test_darts_cap_and_the_length_trap() -> None:
    one = Paths(*(np.array(v) for v in ([0, 1, 2], [0, 0, 0], [1.0] * 3, [1.0], [0])))
    assert importance(np.log([1.25, 0.8, 1.0]), one, [Truncated(1.0)]).tolist() == pytest.approx([1, 0.8, 1])
    for n, product in ((10, 2.593742), (100, 13780.6)):
        episode, log_ratio = np.zeros(n, dtype=np.int64), np.full(n, np.log(1.1))
        assert SequenceTruncated(1e9)(log_ratio, episode)[0] == pytest.approx(product, rel=1e-5)
        assert GeometricRejection(1.09, 1.11)(log_ratio, episode).all()


def test_decoupled_ppo_of_the_worked_example() -> None:
    mu, old = 0.4, 0.5
    rows = [(0.7, old / mu, 1.5, 1.2), (0.7, 1.2, 1.44, 1.2), (0.44, old / mu, 1.1, 1.1), (0.55, 1.0, 1.1, 1.2)]
    for theta, weight, value, coupled in rows:
        packed = group([1], advantage=1.0, old=np.log(old), importance=weight)
        packed.logprobs[1:] = np.log(mu)
        given = heads([1.0])
        given.logprobs.data[1] = np.log(theta)
        assert float(Decoupled(ClippedSurrogate(0.2, 0.2))(given, packed)[0].detach()) == pytest.approx(-value, abs=1e-4)
        assert float(ClippedSurrogate(0.2, 0.2)(given, packed)[0].detach()) == pytest.approx(-coupled, abs=1e-4)


def test_what_is_rejected_has_no_gradient_and_stays_in_the_divisor() -> None:
    packed = group([2], advantage=1.0, weight=0.5, old=-3.0, importance=[0.0, 1.0])
    assert gradient(Decoupled(CISPO()), heads([1.0, 1.0]), packed) == [0, -0.5]
    packed.streams["importance"][:] = 0
    assert gradient(Decoupled(CISPO()), heads([1.0, 1.0]), packed) == [0, 0]


def test_advantages_are_those_of_the_whole_group_whatever_is_rejected() -> None:
    plain, corrected = _rows(), _rows()
    asyncio.run(GRPO().assign([plain], {}))
    asyncio.run(Corrected(GRPO(), [SequenceRejection(2)]).assign([corrected], {"learner": Looked()}))
    pairs = zip(plain.turns, corrected.turns, strict=True)
    assert all((a.streams["advantage"] == b.streams["advantage"]).all() for a, b in pairs)


# Recipes


@pytest.mark.parametrize(
    ("divisor", "weights"),
    [
        ({}, [1 / 5, 1 / 5]),
        ({"divisor": "agentgym.trainers.divisors:sequence_mean"}, [1 / 6, 1 / 4]),
        ({"divisor": {"class": "agentgym.trainers.divisors:Constant", "divisor": 8}}, [1 / 8, 1 / 8]),
    ],
)
def test_a_recipe_chooses_its_divisor(divisor: dict[str, Any], weights: list[float]) -> None:
    tree = _rows()
    Recipe.model_validate({"env": {"id": "any"}, "steps": 1, **divisor}).build_divisor()([tree])
    assert [leaf.streams["weight"][0] for leaf in tree.leaves()] == pytest.approx(weights)


def test_a_recipe_builds_objectives_within_objectives_and_lists_of_rules() -> None:
    at = "agentgym.trainers."
    objective = Plugin.model_validate(
        {"class": at + "objectives.kl:Regularised", "objective": {"class": at + "objectives.gspo:GSPO", "low": 0.1}, "coefficient": 0.5}
    ).build()
    assert objective == Regularised(GSPO(0.1), KL(), 0.5)
    rules = [{"class": at + "credit.importance_rules:Truncated", "cap": 3}, {"class": at + "credit.importance_rules:GeometricRejection"}]
    credit = {"class": at + "credit.importance:Corrected", "credit": {"class": at + "credit.grpo:GRPO"}, "rules": copy.deepcopy(rules)}
    assert Plugin.model_validate(credit).build().rules == [Truncated(3), GeometricRejection()]
