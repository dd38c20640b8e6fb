"""ADWIN's credit: what trains, and a window whose gradient points where that of whole episodes does."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch
from forests import VOCABULARY, add_turn, random_model
from hypothesis import given
from hypothesis import strategies as st
from windowed import ADDS, Given, Teaches, credited, play, probes

from agentgym import AgentGymError, Task
from agentgym.pack import pack
from agentgym.rollout import episode
from agentgym.trainers.credit import adwin
from agentgym.trainers.credit.adwin import next_window
from agentgym.trainers.credit.buckets import bucket_gradients, cosines
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.expanders.adwin import ADWIN
from agentgym.trainers.expanders.windows import Tokens, Turns, places
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import TurnTree, path

WORKED = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.8, 0.1], [0, 0.6, 0.3], [0, 0.4, 0.9]])
CANDIDATES = (64, 128, 256, 512)


# Cosines and the next window


def test_worked_cosines_from_inner_products_and_directly() -> None:
    expected = [0.541116, 0.744857, 0.892914, 0.959586]
    found = cosines(WORKED @ WORKED.T)
    assert found == pytest.approx(expected, abs=1e-6)
    full = WORKED.sum(0)
    assert full.tolist() == pytest.approx([1.7, 2.3, 1.3])
    direct = [float(one @ full / np.linalg.norm(one) / np.linalg.norm(full)) for one in np.cumsum(WORKED, 0)[:-1]]
    assert found == pytest.approx(direct, abs=1e-12)


@pytest.mark.parametrize(("rho", "window"), [(0.5, 64), (0.5**0.5, 128), (0.9, 512), (0.99, 512)])
def test_the_shortest_window_that_points_well_enough_comes_next(rho: float, window: int) -> None:
    assert next_window(CANDIDATES, cosines(WORKED @ WORKED.T), rho) == window


numbers = st.floats(-5, 5).map(lambda x: round(x, 3))


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=7))
def test_cosines_are_those_of_the_sums(buckets: list[list[float]]) -> None:
    vectors = np.array(buckets)
    full = vectors.sum(0)
    for found, own in zip(cosines(vectors @ vectors.T), np.cumsum(vectors, 0)[:-1], strict=True):
        norms = np.linalg.norm(own) * np.linalg.norm(full)
        assert -1 - 1e-9 <= found <= 1 + 1e-9
        if min(np.linalg.norm(own), np.linalg.norm(full)) > 1e-3:
            assert found == pytest.approx(float(own @ full / norms), abs=1e-6)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(1, 3))
def test_a_window_that_covers_everything_points_exactly_there(buckets: list[list[float]], empty: int) -> None:
    vectors = np.array(buckets + [[0.0] * 3] * empty)
    full = np.linalg.norm(vectors.sum(0))
    if full > 1e-3:
        assert cosines(vectors @ vectors.T)[-empty:] == pytest.approx([1.0] * empty, abs=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_windows_grow_with_rho(found: list[float], one: float, other: float) -> None:
    candidates = [2**place for place in range(len(found))]
    low, high = sorted((one, other))
    assert next_window(candidates, found, low) <= next_window(candidates, found, high)


def test_a_gradient_of_nothing_points_nowhere() -> None:
    assert cosines(np.zeros((3, 3))) == [0.0, 0.0]
    cancelled = np.array([[1.0, 0.3], [-1.0, -0.3], [2.0, 1.0]])
    assert cosines(cancelled @ cancelled.T) == pytest.approx([0.985212, 0.0], abs=1e-6)
    cancelled[2] = 0.0
    assert cosines(cancelled @ cancelled.T) == [0.0, 0.0]


# What trains


def test_the_place_of_a_token_is_the_least_window_that_holds_it() -> None:
    (tree,) = play(ADWIN(Tokens((ADDS + 3,)), probes=1), [3])
    found = np.concatenate([places(tree, turn) for turn in tree.turns])
    sampled = np.concatenate([turn.sampled for turn in tree.turns])
    assert found.tolist() == np.cumsum(sampled).tolist()  # one episode: its turns follow each other
    (tree,) = play(ADWIN(Turns((1,)), probes=1), [3])
    assert [set(places(tree, turn).tolist()) for turn in tree.turns] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize(("windows", "length"), [(Turns((1, 2, 3)), 1), (Turns((2, 3)), 2), (Tokens((7, 30)), 7), (Tokens((30, 99)), 30)])
def test_nothing_beyond_the_window_trains_and_everything_within_does(windows: Any, length: int) -> None:
    forest = play(ADWIN(windows, size=2, probes=3), [1, 2, 3, 4])
    gradients = [[1.0]] * (len(windows.candidates) + 1)
    metrics = credited(forest, Given(gradients)).metrics()
    beyond = 0
    for tree in forest:
        for leaf in tree.leaves():
            seen = 0
            for number, turn in enumerate(path(leaf)):
                for place, sampled in enumerate(turn.sampled):
                    seen += sampled
                    within = sampled and (seen if isinstance(windows, Tokens) else number) <= length
                    assert turn.streams["trained"][place] == float(within)
                    assert (turn.streams["advantage"][place] != 0) == within
                    beyond += sampled and not within
    assert metrics["probe_tokens"] == beyond > 0
    assert metrics["taught"] == 1.0


def test_buckets_hold_the_trained_tokens_of_the_probes_alone_each_once() -> None:
    forest = play(ADWIN(Turns((1, 2, 4)), size=2, probes=2), [1, 2, 5, 5])
    learner = Given([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    metrics = credited(forest, learner).metrics()
    probed = {turn for tree in forest for leaf in tree.leaves() if len(episode(leaf)) > 1 for turn in episode(leaf)}
    sizes = [sum(turn.sampled_tokens for turn in probed if low < turn.depth <= high) for low, high in ((0, 1), (1, 2), (2, 4), (4, 9))]
    marks = np.array(learner.weights) > 0
    assert marks.sum(1).tolist() == sizes
    assert set(marks.sum(0).tolist()) == {0, 1}
    assert np.array(learner.weights)[marks] == pytest.approx(1 / sum(sizes))  # one divisor for all, never one for each episode
    assert (metrics["cosine_1"], metrics["cosine_2"], metrics["cosine_4"]) == pytest.approx((0.894427, 0.948683, 1.0), abs=1e-6)
    assert [tree.tags["window"].get("next") for tree in forest] == [1 if tree.tags["window"]["probes"] else None for tree in forest]
    assert len(probes(forest)) == 2


def _lines(windows: Any, seed: int = 0) -> list[TurnTree]:
    """Trees of two episodes each, the first of which is a probe, as the expander would leave them."""
    rng = random.Random(seed)
    forest = []
    for number in range(3):
        tree = TurnTree(f"tree {number}", Task(str(number), ""))
        root = add_turn(tree, None, [rng.randrange(VOCABULARY) for _ in range(4)])
        for turns in (rng.randint(2, 5), 1):
            turn = root
            for _ in range(turns):
                size = rng.randint(2, 6)
                turn = add_turn(tree, turn, [rng.randrange(VOCABULARY) for _ in range(size)], rng.randint(1, size))
                turn.logprobs = [-3.5 + rng.uniform(-0.6, 0.6) for _ in turn.logprobs]
            turn.end = "done"
        counts = [windows.count(turn) for turn in tree.turns]
        tree.tags["window"] = {"candidates": list(windows.candidates), "length": windows.candidates[0], "probes": [1], "counts": counts}
        forest.append(tree)
    asyncio.run(Teaches().assign(forest, {}))
    return forest


def _probed(forest: list[TurnTree]) -> dict[TurnTree, set[Any]]:
    return {tree: set(path(tree.leaves()[0])) for tree in forest}


def _gradient(learner: TorchLearner, forest: list[TurnTree], objective: Any, window: float) -> Any:
    """Of the probes' tokens within a window, in one pass."""
    total = sum(turn.streams["trained"].sum() for turns in _probed(forest).values() for turn in turns)
    for tree, turns in _probed(forest).items():
        for turn in tree.turns:
            turn.streams["weight"] = turn.streams["trained"] * (places(tree, turn) <= window) * (turn in turns) / total
    return learner.gradient(pack(forest, 10**6), objective)


@pytest.fixture
def _norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models' own norms round to float32 inside."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    for norm in (LlamaRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


exactly = pytest.mark.usefixtures("_norms_in_float64")
every_objective = pytest.mark.parametrize("objective", [ClippedSurrogate(), CrossEntropy()])
every_unit = pytest.mark.parametrize("windows", [Turns((1, 2, 4)), Tokens((3, 5, 9))])


@exactly
@every_unit
@every_objective
@pytest.mark.parametrize("cut", [10**6, 12])
def test_the_gradients_of_the_buckets_add_up_to_those_of_windows_and_of_whole_episodes(windows: Any, objective: Any, cut: int) -> None:
    learner = TorchLearner(random_model("Qwen3").double(), 0.1)
    forest = _lines(windows)
    found, _ = bucket_gradients(_probed(forest), windows.candidates, learner, objective, cut)
    for number, window in enumerate((*windows.candidates, np.inf), 1):
        expected = _gradient(learner, forest, objective, window)
        assert torch.allclose(sum(found[:number]), expected, rtol=1e-10, atol=1e-13)
        assert expected.abs().max() > 1e-4


@exactly
@every_unit
def test_an_audit_says_the_cosines_of_the_learners_own_gradients(windows: Any) -> None:
    learner = TorchLearner(random_model("Llama").double(), 0.1)
    forest = _lines(windows, seed=2)
    full, *prefixes = (_gradient(learner, forest, ClippedSurrogate(), window) for window in (np.inf, *windows.candidates))
    expected = [float(torch.cosine_similarity(one, full, dim=0)) for one in prefixes]
    before = [weight.clone() for weight in learner.model.parameters()]
    metrics = credited(forest, learner, rho=0.9).metrics()
    assert [metrics[f"cosine_{window}"] for window in windows.candidates] == pytest.approx(expected, abs=1e-9)
    assert metrics["window_next"] == next_window(windows.candidates, expected, 0.9)
    sampled = [turn.streams["bucket"][: turn.sampled_tokens] for turns in _probed(forest).values() for turn in turns]
    buckets = set(np.concatenate(sampled))
    assert len(buckets) > 2
    assert metrics["audit_tokens"] == len(buckets) * sum(len(turn.ids) for tree in forest for turn in tree.turns)  # in one pack
    assert all(weight.grad is None and torch.equal(weight, old) for weight, old in zip(learner.model.parameters(), before, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AgentGymError, match="GRPO does not say which tokens train"):
        adwin.ADWIN(GRPO())
    tree = TurnTree("tree", Task("zebra", ""))
    add_turn(tree, None, [1])
    with pytest.raises(AgentGymError, match="task zebra: tree tree was not played in a window"):
        credited([tree])
    with pytest.raises(AgentGymError, match="size, stale and start >= 1 and probes >= 0, not 1, 0, None and 8"):
        ADWIN(Turns(), stale=0)


def test_it_says_what_its_credit_writes_and_asks_for() -> None:
    class Wrapped(Teaches):
        writes = frozenset({"advantage", "trained", "teacher"})
        models = {"teacher": len}  # noqa: RUF012

        def state_dict(self) -> Any:
            return {"n": 1}

    credit = adwin.ADWIN(Wrapped())
    assert credit.writes == Wrapped.writes
    assert dict(credit.models) == {"teacher": len}
    assert credit.state_dict() == {"n": 1}
