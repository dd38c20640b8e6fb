"""Discounted returns over a tree: two ways to the same sums."""

from __future__ import annotations

import random

import numpy as np
import pytest
from forests import add_turn
from hypothesis import given
from hypothesis import strategies as st

from agentgym.task import Task
from agentgym.trainers.credit.gae import estimated
from agentgym.trainers.credit.returns import to_go
from agentgym.turn import TurnTree


def grown(seed: int) -> TurnTree:
    """All tokens are sampled, and every turn has a reward."""
    rng = random.Random(seed)
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, [], reward=0.0)
    for _ in range(rng.randint(1, 8)):
        n = rng.randint(1, 3)
        turn = add_turn(tree, rng.choice(tree.turns), [1] * n, n)
        turn.reward = rng.uniform(-1, 1)
    for turn in tree.turns:
        turn.end = None if turn.children else "done"
    return tree


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_where_no_value_is_expected_gae_sums_discounted_returns(seed: int, discount: float) -> None:
    tree = grown(seed)
    rewards = {turn: np.zeros(len(turn.ids)) for turn in tree.turns}
    for turn in tree.turns[1:]:
        rewards[turn][-1] = turn.reward
    found = to_go(tree, rewards, discount, turn_discount=1.0)
    zeros = {turn: np.zeros(turn.sampled_tokens) for turn in tree.turns}
    expected = estimated(tree, zeros, discount, 1.0)
    assert set(expected) == set(tree.turns[1:])
    for turn, advantages in expected.items():
        assert found[turn] == pytest.approx(advantages, abs=1e-12)


def test_a_turn_that_ends_is_discounted_once_more() -> None:
    tree = TurnTree("tree", Task("task", ""))
    turn = add_turn(tree, add_turn(tree, None, []), [1, 1], 2)
    last = add_turn(tree, turn, [1, 9], 1, end="done")  # an observation takes a place without a reward
    rewards = {tree.root: np.zeros(0), turn: np.array([1.0, 2.0]), last: np.array([8.0, 0.0])}
    found = to_go(tree, rewards, 0.5, 0.25)
    assert [found[turn].tolist(), found[last].tolist()] == [[2.5, 3.0], [8.0, 0.0]]
