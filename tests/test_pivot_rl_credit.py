"""PivotRL's credit: which turns are pivots, and what the tries at them are worth."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from credits import advantage, assigned, near
from doors import a_tree, tries_at
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.pack import pack
from agentgym.trainers.credit.equivalence import Exact
from agentgym.trainers.credit.pivot_rl import PivotRL as Credit
from agentgym.trainers.credit.pivot_rl import leave_one_out_advantages
from agentgym.trainers.credit.tries import equivalents
from agentgym.trainers.demonstrations import demonstrated
from agentgym.trainers.divisors import token_mean

# Advantages


def test_advantages_as_in_the_worked_examples() -> None:
    found = leave_one_out_advantages(np.array([1.0, 0, 0, 1, 0, 0, 0, 0]))
    assert found == near([2.26777 if i in (0, 3) else -0.58554 for i in range(8)])
    assert leave_one_out_advantages(np.array([1.0, 0, 0, 0])) == near([1.0, -0.57735, -0.57735, -0.57735])
    assert leave_one_out_advantages(np.array([1.0, 0.0])) == near([1.0, -1.0])


@pytest.mark.parametrize("rewards", [[], [1.0], [0.1] * 3, [9.025] * 6])
def test_nothing_to_compare_with_gives_exactly_zero(rewards: list[float]) -> None:
    assert leave_one_out_advantages(np.array(rewards)).tolist() == [0.0] * len(rewards)


def test_equal_others_do_not_blow_a_graded_reward_up() -> None:
    assert abs(leave_one_out_advantages(np.array([0.3, 0.3, 0.3, 0.7]))[3] - 0.4) < 1e-9


@given(st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 1.0]), min_size=2, max_size=9), st.randoms())
def test_permuting_tries_permutes_advantages(rewards: list[float], rng: Any) -> None:
    order = list(range(len(rewards)))
    rng.shuffle(order)
    straight = leave_one_out_advantages(np.array(rewards))
    assert leave_one_out_advantages(np.array(rewards)[order]) == pytest.approx(straight[order], abs=1e-9)


# Credit


def successes(n: int, of: int = 8) -> list[int]:
    return [int(i < n) for i in range(of)]


def test_the_filter_as_in_the_worked_examples() -> None:
    tree = a_tree(*(successes(n) for n in (8, 0, 3, 6, 4)))
    metrics = assigned(Credit(Exact()), tree)
    assert [turn.metrics["pivot"] for turn in demonstrated(tree)] == [0, 0, 1, 0, 1]
    assert [float(equivalents(turn).std()) for turn in demonstrated(tree)] == near([0, 0, 0.484123, 0.433013, 0.5])
    assert (metrics["pivots_seen"], metrics["pivots_kept"], metrics["groups_with_signal"]) == (5, 2, 0.4)
    assert (metrics["zero_variance"], metrics["reward"], metrics["pivot_success"]) == (0.4, near(21 / 40), near(7 / 16))
    assert (metrics["demonstrations_failed"], metrics["turns_rejected"]) == (0, 0)


def test_only_tries_at_pivots_are_trained_with_their_advantages() -> None:
    tree = a_tree(successes(8), [1, 0, 0, 1, 0, 0, 0, 0], successes(0))
    assigned(Credit(Exact()), tree)
    first, second, third = demonstrated(tree)
    assert [advantage(one) for one in tries_at(second)] == near([2.26777 if i in (0, 3) else -0.58554 for i in range(8)])
    assert all(one.streams["trained"].tolist() == [1, 1, 0] for one in tries_at(second))
    for one in (*demonstrated(tree), *tries_at(first), *tries_at(third), tree.root):
        assert not one.streams["trained"].any()
        assert not one.streams["advantage"].any()
    token_mean([tree])
    (packed,) = pack([tree], 10**6)
    assert packed.streams["weight"].sum() == pytest.approx(1.0)
    assert (packed.streams["weight"] > 0).sum() == 16


def test_a_mean_of_just_the_bound_is_too_easy() -> None:
    at, below = a_tree(successes(6, 10)), a_tree(successes(5, 10), task="other")
    assigned(Credit(Exact()), at, below)
    assert [demonstrated(tree)[0].metrics["pivot"] for tree in (at, below)] == [0, 1]
    assigned(Credit(Exact(), hardest=0.61), at)
    assert demonstrated(at)[0].metrics["pivot"] == 1


def test_what_is_known_as_a_pivot_is_trained_until_it_is_solved() -> None:
    tree = a_tree(successes(7), successes(8), successes(0))
    tree.tags = {"pivots": [0, 1, 2]}
    metrics = assigned(Credit(Exact()), tree)
    assert [turn.metrics["pivot"] for turn in demonstrated(tree)] == [1, 0, 0]
    assert (metrics["pivots_kept"], metrics["zero_variance"]) == (1, near(2 / 3))
    assert all(advantage(one) for one in tries_at(demonstrated(tree)[0]))


def test_the_deviation_of_the_whole_group() -> None:
    tree = a_tree([1, 0, 0, 0])
    assigned(Credit(Exact(), std="group"), tree)
    assert [advantage(one) for one in tries_at(demonstrated(tree)[0])] == near([1.5, -0.5, -0.5, -0.5])


def test_faults_are_no_samples() -> None:
    tree, whole = a_tree([1, None, 0, 0, None, 0]), a_tree([1, 0, 0, 0])
    metrics = assigned(Credit(Exact()), tree)
    found = [advantage(one) for one in tries_at(demonstrated(tree)[0])]
    assert found == near([1.0, 0.0, -0.57735, -0.57735, 0.0, -0.57735])
    assert metrics["reward"] == assigned(Credit(Exact()), whole)["reward"] == 0.25
    assert "equivalent" not in tries_at(demonstrated(tree)[0])[1].metrics
    assert assigned(Credit(Exact()), a_tree([None, None]))["pivots_seen"] == 0
    assert assigned(Credit(Exact()), a_tree([1, None]))["pivots_kept"] == 0


def test_of_turns_in_the_same_context_the_first_counts() -> None:
    first, again, other = a_tree([1, 0, 0], [1, 0]), a_tree([1, 0, 0], [0, 1], name="again"), a_tree([1, 0, 0], task="other")
    metrics = assigned(Credit(Exact()), first, again, other)
    assert metrics["pivots_seen"] == 3
    assert any(advantage(one) for one in tries_at(demonstrated(first)[0]))
    assert not any(one.streams["trained"].any() for one in again.turns)
    assert all("pivot" not in one.metrics for one in demonstrated(again))


def test_a_demonstrated_turn_that_is_not_equivalent_to_itself_is_rejected() -> None:
    tree = a_tree([1, 0, 0], action="<tool_call>{")
    metrics = assigned(Credit(Exact()), tree)
    assert (metrics["turns_rejected"], metrics["pivots_seen"]) == (1, 0)
    assert not any(one.streams["trained"].any() for one in tree.turns)


@pytest.mark.parametrize("reward", [0.5, None])
def test_a_demonstration_without_full_reward_is_counted(reward: Any) -> None:
    assert assigned(Credit(Exact()), a_tree([], reward=reward), a_tree([1, 0, 0], task="other"))["demonstrations_failed"] == 1


def test_a_try_that_was_cut_off_has_no_reward() -> None:
    tree = a_tree([1, 1, 0, 0], [1, 0], action="A message.")
    for one in tree.turns:
        one.action = one.action if one.author == "demonstration" else "Another message."
    tries_at(demonstrated(tree)[0])[1].ids[1] = 8

    class StopsAt6:
        stop_ids = frozenset({6})

    credit = Credit(Exact(), hardest=1.0)
    asyncio.run(credit.assign([tree], {"chat": StopsAt6()}))
    assert [equivalents(turn).tolist() for turn in demonstrated(tree)] == [[1, 0, 1, 1], [1, 1]]
    asyncio.run(credit.assign([tree], {}))
    assert [equivalents(turn).tolist() for turn in demonstrated(tree)] == [[1, 1, 1, 1], [1, 1]]


def test_nothing_to_learn_from_is_no_error() -> None:
    for metrics in (assigned(Credit(Exact())), assigned(Credit(Exact()), a_tree([], []))):
        assert np.isnan(metrics["reward"])
        assert (metrics["pivots_seen"], metrics["groups_with_signal"], metrics["zero_variance"]) == (0, 0, 0)


@given(st.lists(st.lists(st.sampled_from([0, 1, None]), max_size=6), min_size=1, max_size=4), st.sampled_from(["leave_one_out", "group"]))
def test_tokens_that_were_not_sampled_are_never_trained(groups: Any, std: Any) -> None:
    tree = a_tree(*groups)
    assigned(Credit(Exact(), std=std), tree)
    for one in tree.turns:
        for name in ("advantage", "trained"):
            assert not one.streams[name][~one.sampled].any()
        assert one.streams["trained"].any() or not one.streams["advantage"].any()


@pytest.mark.parametrize("wrong", [{"hardest": 0.0}, {"hardest": 1.5}, {"std": "population"}])
def test_credits_that_cannot_be_are_refused(wrong: Any) -> None:
    with pytest.raises(AgentGymError, match=r"hardest is|std is"):
        Credit(Exact(), **wrong)
