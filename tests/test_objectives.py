"""Losses and their divisors: the worked numbers of the literature, exact gradients, and no ratio without a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from forests import add_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.divisors import Constant, Divisor, sequence_mean, token_mean, turn_mean
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import Turn, TurnTree


@dataclass
class Given:
    """Heads with log-probabilities that a test chose."""

    logprobs: Tensor
    entropy: Any = None


def _chain(sampled: int, unsampled: int = 0, advantage: Any = 1.0, weight: Any = 1.0) -> Packed:
    """One episode of one turn after a prompt of one token; the behaviour policy gave every token -3."""
    tree = TurnTree("tree", Task("task", ""))
    n = sampled + unsampled
    turn = add_turn(tree, add_turn(tree, None, [0]), [1] * n, sampled, end="done")
    turn.streams = {"advantage": np.ones(n) * advantage, "weight": np.ones(n) * weight}
    return pack([tree], 100)[0]


def _heads(ratios: list[float]) -> Given:
    logprobs = torch.tensor([0.0, *np.log(ratios) - 3.0], dtype=torch.float64)
    return Given(logprobs.requires_grad_())


def _loss(ratio: float, advantage: float, objective: ClippedSurrogate) -> float:
    return float(objective(_heads([ratio]), _chain(1, advantage=advantage))[0].detach())


# The clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.5, 1, -1.28), (1.25, 1, -1.25), (0.5, 1, -0.5), (0.5, -1, 0.8), (1.5, -1, 1.5), (4, -1, 3.0)],
)
def test_the_worked_examples_of_the_reference(ratio: float, advantage: float, loss: float) -> None:
    assert _loss(ratio, advantage, ClippedSurrogate(0.2, 0.28, dual=3.0)) == pytest.approx(loss, abs=1e-12)


def test_without_the_dual_clip_a_bad_token_that_grew_likely_has_no_bound() -> None:
    assert _loss(4, -1, ClippedSurrogate()) == pytest.approx(4.0)
    assert _loss(4, 1, ClippedSurrogate(dual=3.0)) == pytest.approx(-1.28)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0.3, 4), st.floats(-2, 2), st.floats(0.1, 1)), min_size=1, max_size=6), st.sampled_from([None, 3.0]))
def test_the_gradient_is_that_of_finite_differences(tokens: list[tuple[float, float, float]], dual: float | None) -> None:
    ratios, advantages, weights = (np.array(values) for values in zip(*tokens, strict=True))
    kinks = [0.8, 1.28, 3.0]
    ratios = np.where(np.abs(ratios[:, None] - kinks).min(1) < 1e-3, 1.0, ratios)
    packed = _chain(len(tokens), advantage=advantages, weight=weights)
    objective = ClippedSurrogate(dual=dual)
    heads = _heads(list(ratios))
    objective(heads, packed)[0].backward()
    assert heads.logprobs.grad is not None
    step = 1e-6
    for place in range(1, len(tokens) + 1):
        losses = []
        for sign in (1, -1):
            moved = heads.logprobs.detach().clone()
            moved[place] += sign * step
            losses.append(float(objective(Given(moved), packed)[0]))
        assert float(heads.logprobs.grad[place]) == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-7)


@given(
    st.integers(1, 4),
    st.lists(st.floats(-20, 0), min_size=1, max_size=4),
    st.lists(st.floats(-20, 0), min_size=4, max_size=4),
)
def test_tokens_that_were_not_sampled_never_enter_a_ratio(sampled: int, one: list[float], two: list[float]) -> None:
    n = len(one)
    packed = _chain(sampled, unsampled=n)  # weight and advantage stand on all tokens, by mistake
    policy = torch.full((1 + sampled,), -2.9, dtype=torch.float64)
    losses, metrics = [], []
    for others in (one, two[:n]):
        logprobs = torch.cat([policy, torch.tensor(others, dtype=torch.float64)]).requires_grad_()
        loss, found = ClippedSurrogate()(Given(logprobs), packed)
        loss.backward()
        assert logprobs.grad is not None
        assert not logprobs.grad[1 + sampled :].any()
        losses.append(float(loss.detach()))
        metrics.append(found)
    assert losses[0] == losses[1]
    assert metrics[0] == metrics[1]
    assert losses[0] == pytest.approx(-sampled * np.exp(0.1))


def test_a_ratio_beyond_all_bounds_stays_finite() -> None:
    loss, metrics = ClippedSurrogate()(Given(torch.tensor([0.0, 500.0]).requires_grad_()), _chain(1, advantage=-1.0))
    assert torch.isfinite(loss)
    assert np.isfinite(list(metrics.values())).all()


def test_metrics_say_how_much_was_clipped_and_how_far_the_policy_went() -> None:
    metrics = ClippedSurrogate()(_heads([1.5, 1.0, 1.0, 1.0]), _chain(4))[1]
    assert metrics["clip_fraction"] == pytest.approx(0.25)
    assert metrics["kl"] == pytest.approx((1.5 - 1 - np.log(1.5)) / 4)


def test_cross_entropy_reads_every_token_that_has_weight() -> None:
    loss = CrossEntropy()(Given(torch.tensor([0.0, -1.0, -2.0, -4.0])), _chain(1, unsampled=2, weight=[0.5, 0.25, 0.0]))[0]
    assert float(loss) == 1.0


# Divisors


def _episodes(sizes: list[list[int]]) -> tuple[TurnTree, list[list[Turn]]]:
    """One tree; for each episode the sampled tokens of its turns. After each turn come two tokens of the environment."""
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [0])
    episodes = []
    for turns in sizes:
        line = [root]
        for size in turns:
            line.append(add_turn(tree, line[-1], [1] * (size + 2), size))
        line[-1].end = "done"
        episodes.append(line[1:])
    return tree, episodes


def _divided(tree: TurnTree, episodes: list[list[Turn]], losses: list[list[float]], divisor: Divisor) -> float:
    divisor([tree])
    total = 0.0
    for turns, values in zip(episodes, losses, strict=True):
        weights = [w for turn in turns for w in turn.streams["weight"][turn.sampled]]
        total += float(np.dot(weights, values))
    assert all(not turn.streams["weight"][~turn.sampled].any() for turn in tree.turns)
    return total


@pytest.mark.parametrize(
    ("divisor", "loss"),
    [(token_mean, 2.0), (sequence_mean, 2.0), (Constant(2), 6.0), (Constant(2 * 4), 1.5), (turn_mean, 2.0)],
)
def test_the_worked_example_of_each_divisor(divisor: Divisor, loss: float) -> None:
    assert _divided(*_episodes([[2], [4]]), [[1, 3], [2, 2, 2, 2]], divisor) == pytest.approx(loss, abs=1e-12)


def test_divisors_differ_where_lengths_do() -> None:
    losses = [[1.0, 1.0, 1.0, 7.0], [3.0]]  # two turns of 3 and 1 tokens, and one turn of 1
    found = {d: _divided(*_episodes([[3, 1], [1]]), losses, d) for d in (token_mean, turn_mean, sequence_mean)}
    assert found[token_mean] == pytest.approx(13 / 5)
    assert found[turn_mean] == pytest.approx((1 + 7 + 3) / 3)
    assert found[sequence_mean] == pytest.approx((10 / 4 + 3) / 2)


def test_a_shared_turn_counts_once_for_tokens_and_turns_and_for_each_episode_in_the_sequence_mean() -> None:
    tree = TurnTree("tree", Task("task", ""))
    shared = add_turn(tree, add_turn(tree, None, [0]), [1], 1)
    ends = [add_turn(tree, shared, [1] * n, n, end="done") for n in (1, 3)]
    expected = {token_mean: [1 / 5] * 3, turn_mean: [1 / 3, 1 / 3, 1 / 9], sequence_mean: [1 / 4 + 1 / 8, 1 / 4, 1 / 8]}
    for divisor, weights in expected.items():
        divisor([tree])
        assert [turn.streams["weight"][0] for turn in (shared, *ends)] == pytest.approx(weights)


@pytest.mark.parametrize("divisor", [0.0, -64.0, float("nan"), float("inf")])
def test_a_divisor_that_divides_nothing_is_refused(divisor: float) -> None:
    with pytest.raises(AgentGymError, match="divisor is"):
        Constant(divisor)


@pytest.mark.parametrize("divisor", [token_mean, turn_mean, sequence_mean, Constant(7)])
def test_labels_have_no_weight(divisor: Divisor) -> None:
    tree, _ = _episodes([[2]])
    label = add_turn(tree, tree.root, [1, 1], 2, end="done", executed=False)
    divisor([tree])
    assert not label.streams["weight"].any()


@pytest.mark.parametrize("divisor", [token_mean, turn_mean, sequence_mean])
def test_weights_sum_to_one_over_the_batch(divisor: Divisor) -> None:
    trees = [_episodes(sizes)[0] for sizes in ([[2, 3], [1]], [[5]], [[0, 2], [0]])]
    trees[0].leaves()[0].reward = None
    divisor(trees)
    assert sum(turn.streams["weight"].sum() for tree in trees for turn in tree.turns) == pytest.approx(1.0)


@pytest.mark.parametrize("divisor", [token_mean, turn_mean, sequence_mean, Constant(7)])
def test_a_batch_without_any_verdict_has_no_weight(divisor: Divisor) -> None:
    tree, episodes = _episodes([[2], [3]])
    for turns in episodes:
        turns[-1].reward = None
    divisor([tree])
    assert not any(turn.streams["weight"].any() for turn in tree.turns)
