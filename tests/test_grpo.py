"""Group-relative advantages: the published numbers, and what must not change them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest
from forests import add_turn
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.grpo import GRPO, group_advantages
from agentgym.trainers.divisors import token_mean
from agentgym.turn import Turn, TurnTree

groups = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0]) | st.floats(-10, 10), min_size=2, max_size=12)


def _group(rewards: Sequence[float | None]) -> tuple[TurnTree, list[Turn]]:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1, 2])
    return tree, [add_turn(tree, root, [3, 4, 5], 2, reward=reward, end="done") for reward in rewards]


def _assign(*trees: TurnTree) -> GRPO:
    credit = GRPO()
    asyncio.run(credit.assign(trees, {}))
    return credit


def test_the_worked_example_of_the_reference() -> None:
    assert group_advantages(np.array([1.0, 0, 0, 0])) == pytest.approx([1.499997, *[-0.499999] * 3], abs=1e-6)


def test_one_group_by_hand() -> None:
    # mean 0.5, sample variance (0.25 + 0 + 0.25) / 2, so the deviation is 0.5
    assert group_advantages(np.array([0.0, 0.5, 1.0])) == pytest.approx([-0.5 / 0.500001, 0, 0.5 / 0.500001], abs=1e-12)


@given(groups, st.randoms())
def test_permuted_members_have_permuted_advantages(rewards: list[float], rng: random.Random) -> None:
    order = list(range(len(rewards)))
    rng.shuffle(order)
    permuted = group_advantages(np.array([rewards[i] for i in order]))
    assert permuted == pytest.approx(group_advantages(np.array(rewards))[order], abs=1e-9)


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=12), st.integers(-100, 100))
def test_a_constant_on_all_rewards_changes_nothing(rewards: list[int], constant: int) -> None:
    quarters = np.array(rewards) / 4
    assert group_advantages(quarters + constant) == pytest.approx(group_advantages(quarters), abs=1e-9)


@given(groups)
def test_advantages_sum_to_zero_and_follow_the_rewards(rewards: list[float]) -> None:
    advantages = group_advantages(np.array(rewards))
    assert abs(advantages.sum()) < 1e-6
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 16))
def test_equal_rewards_give_exactly_nothing(reward: float, size: int) -> None:
    assert group_advantages(np.full(size, reward, dtype=np.float32)).tolist() == [0.0] * size


def test_six_equal_rewards_whose_float32_deviation_is_not_zero_give_exactly_nothing() -> None:
    rewards = np.full(6, 9.025, dtype=np.float32)
    assert group_advantages(rewards).tolist() == [0.0] * 6
    summed = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]
    assert group_advantages(np.array(summed)).tolist() == [0.0] * 4


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(broken: float) -> None:
    with pytest.raises(AgentGymError, match="finite"):
        group_advantages(np.array([0.0, broken]))
    with pytest.raises(AgentGymError, match="finite"):
        _assign(_group([0.0, broken])[0])


def test_a_group_of_one_has_no_advantage() -> None:
    tree, (leaf,) = _group([1.0])
    _assign(tree)
    assert leaf.streams["advantage"].tolist() == [0, 0, 0]


def test_an_episode_without_a_verdict_is_in_no_mean_and_has_no_weight() -> None:
    judged, leaves = _group([1.0, 0.0, 0.0, 0.0])
    lost, others = _group([1.0, 0.0, None, 0.0, 0.0])
    _assign(judged, lost)
    token_mean([lost])
    verdicts = [leaf for leaf in others if leaf.reward is not None]
    assert [leaf.streams["advantage"].tolist() for leaf in verdicts] == [leaf.streams["advantage"].tolist() for leaf in leaves]
    assert not others[2].streams["advantage"].any()
    assert not others[2].streams["weight"].any()
    assert all(leaf.streams["weight"].tolist() == [1 / 8, 1 / 8, 0] for leaf in verdicts)


def test_a_fault_above_takes_the_verdict_from_every_episode_below() -> None:
    tree, (first, second) = _group([1.0, 0.0])
    first.end = first.reward = None
    add_turn(tree, first, [6], 1, reward=1.0, end="done")
    _assign(tree)
    token_mean([tree])
    assert not any(turn.streams["advantage"].any() for turn in tree.turns)
    assert [turn for turn in tree.turns if turn.streams["weight"].any()] == [second]


def test_only_sampled_tokens_have_an_advantage_and_a_shared_turn_has_the_mean() -> None:
    tree = TurnTree("tree", Task("task", ""))
    shared = add_turn(tree, add_turn(tree, None, [1, 2]), [3, 4, 5], 2)
    leaves = [add_turn(tree, shared, [6, 7], 1, reward=reward, end="done") for reward in (1.0, 0.0)]
    leaves.append(add_turn(tree, tree.root, [8], 1, reward=0.0, end="done"))
    _assign(tree)
    high, low = group_advantages(np.array([1.0, 0.0, 0.0]))[:2]
    assert leaves[0].streams["advantage"].tolist() == [high, 0]
    assert leaves[1].streams["advantage"].tolist() == [low, 0]
    assert shared.streams["advantage"] == pytest.approx([(high + low) / 2] * 2 + [0])
    assert tree.root.streams["advantage"].tolist() == [0, 0]


def test_labels_are_no_episodes() -> None:
    tree, leaves = _group([1.0, 0.0])
    label = add_turn(tree, tree.root, [9], 1, reward=5.0, end="done", executed=False)
    _assign(tree)
    assert leaves[0].streams["advantage"][0] == group_advantages(np.array([1.0, 0.0]))[0]
    assert not label.streams["advantage"].any()


def test_the_report_counts_rewards_and_groups_with_contrast() -> None:
    credit = _assign(_group([1.0, 0.0])[0], _group([1.0, 1.0])[0], _group([None, None])[0])
    metrics = credit.metrics()
    assert metrics.pop("contrasts_per_kilotoken") > 0
    assert metrics == {"reward": 0.75, "groups_with_signal": pytest.approx(1 / 3)}


def test_groups_know_nothing_of_one_another() -> None:
    alone, expected = _group([1.0, 0.0, 0.0])
    _assign(alone)
    together, found = _group([1.0, 0.0, 0.0])
    _assign(_group([100.0, -100.0])[0], together)
    assert [leaf.streams["advantage"].tolist() for leaf in found] == [leaf.streams["advantage"].tolist() for leaf in expected]
