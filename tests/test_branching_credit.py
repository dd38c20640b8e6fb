"""Credit for trees that branch within episodes: the published numbers, and what must not change them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from forests import add_turn
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.pack import pack
from agentgym.task import Task
from agentgym.trainers.credit import aepo, appo, treepo
from agentgym.trainers.credit.grpo import GRPO, group_advantages
from agentgym.trainers.objectives.aepo import KeptGradient
from agentgym.turn import Turn, TurnTree

CREDITS = {"TreePO": treepo.TreePO, "AEPO": aepo.AEPO, "APPO": appo.APPO}
every_credit = pytest.mark.parametrize("make", CREDITS.values(), ids=CREDITS)
rewards_of = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0]), min_size=2, max_size=10)


def node(tree: TurnTree, parent: Turn | None, tokens: int = 1, **fields: object) -> Turn:
    return add_turn(tree, parent, [3] * tokens, tokens if parent else 0, entropies=[1.0] * (tokens if parent else 0), **fields)


def flat(rewards: Sequence[float | None]) -> tuple[TurnTree, list[Turn]]:
    tree = TurnTree("tree", Task("task", ""))
    root = node(tree, None)
    return tree, [node(tree, root, 2, reward=reward, end="done") for reward in rewards]


def assign(credit: object, *trees: TurnTree) -> list[list[float]]:
    """The advantage of each leaf's first token, tree by tree."""
    asyncio.run(credit.assign(trees, {}))  # type: ignore[attr-defined]
    assert all(np.isfinite(turn.streams["advantage"]).all() for tree in trees for turn in tree.turns)
    return [[float(leaf.streams["advantage"][0]) for leaf in tree.leaves()] for tree in trees]


# What every credit owes.


@every_credit
@given(rewards=rewards_of, rng=st.randoms())
def test_permuted_members_have_permuted_advantages(make, rewards: list[float], rng: random.Random) -> None:
    order = list(range(len(rewards)))
    rng.shuffle(order)
    (found,), (permuted,) = (assign(make(), flat(some)[0]) for some in (rewards, [rewards[i] for i in order]))
    assert permuted == pytest.approx([found[i] for i in order], abs=1e-9)


@every_credit
@pytest.mark.parametrize("rewards", [[1.0] * 4, [0.0] * 4, [0.1 + 0.2, 0.3, 0.3], [9.025] * 6, [1.0], [], [None, None], [1.0, None]])
def test_without_contrast_there_is_exactly_nothing(make, rewards) -> None:
    mixed, _ = flat([1.0, 0.0])
    (found, with_signal) = assign(make(), flat(rewards)[0], mixed)
    assert found == [0.0] * len(rewards)
    assert with_signal[0] > 0 > with_signal[1]


@every_credit
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_refused(make, broken) -> None:
    with pytest.raises(AgentGymError, match="finite"):
        assign(make(), flat([0.0, broken])[0])


@every_credit
def test_a_cancelled_episode_is_in_no_mean_and_has_no_advantage(make) -> None:
    whole, cut = flat([1.0, 0.0, 0.0])[0], flat([1.0, 0.0, 0.0])[0]
    node(cut, cut.root, 2, reward=None, end="truncated", outcome=Outcome.CANCELLED)
    ((expected,), (found,)) = assign(make(), whole), assign(make(), cut)
    assert found == [*expected, 0.0]


@every_credit
def test_a_batch_of_nothing_is_nothing(make) -> None:
    assert assign(make()) == []


# TreePO


def five_leaves() -> tuple[TurnTree, list[Turn]]:
    """Leaves a1, a2, b1, b2 and c1, each with one sampled token of its own, and none above."""
    tree = TurnTree("q", Task("q", ""))
    root = node(tree, None)
    rewards = {"a": (1.0, 0.0), "b": (1.0, 1.0), "c": (0.0,)}
    inner = {name: add_turn(tree, root, [2]) for name in rewards}
    return tree, [node(tree, inner[name], reward=r, end="done") for name, found in rewards.items() for r in found]


@pytest.mark.parametrize(
    ("by_size", "expected"),
    [(False, [0.45, -0.55, 0.2, 0.2, -0.6]), (True, [0.428571, -0.571429, 0.285714, 0.285714, -0.6])],
)
def test_treepo_advantages_of_the_worked_example(by_size: bool, expected: list[float]) -> None:
    _, leaves = five_leaves()
    found = treepo.subgroup_advantages({leaf: leaf.reward or 0.0 for leaf in leaves}, by_size=by_size)
    assert [found[leaf] for leaf in leaves] == pytest.approx(expected, abs=1e-6)


def test_treepo_whitens_over_the_batch() -> None:
    ((*found,),) = assign(treepo.TreePO(), five_leaves()[0])
    assert found == pytest.approx([1.059401, -1.017856, 0.540087, 0.540087, -1.121718], abs=1e-4)


def test_treepo_whitens_over_the_tokens_of_every_episode() -> None:
    tree, (long, short) = flat([1.0, 0.0])
    add_turn(tree, tree.root, [5])
    other, (third, fourth) = flat([1.0, 0.0])
    long.ids, long.sampled_tokens, long.logprobs = [3] * 6, 6, [-1.0] * 6
    assign(treepo.TreePO(), tree, other)
    rows = [0.5] * 6 + [-0.5] * 2 + [0.5] * 2 + [-0.5] * 2
    expected = (np.array(rows) - np.mean(rows)) / np.std(rows, ddof=1)
    assert long.streams["advantage"][0] == pytest.approx(expected[0], abs=1e-6)
    assert short.streams["advantage"][0] == pytest.approx(expected[-1], abs=1e-6)
    assert fourth.streams["advantage"][0] == pytest.approx(expected[-1], abs=1e-6)
    assert third.streams["advantage"][0] == long.streams["advantage"][0]


def test_treepo_looks_no_deeper_than_its_depth() -> None:
    _, leaves = five_leaves()
    found = treepo.subgroup_advantages({leaf: leaf.reward or 0.0 for leaf in leaves}, depth=1)
    assert [found[leaf] for leaf in leaves] == pytest.approx([0.4, -0.6, 0.4, 0.4, -0.6])


def test_a_context_that_the_template_began_anew_is_no_second_subgroup() -> None:
    _, leaves = five_leaves()
    rewards = {leaf: leaf.reward or 0.0 for leaf in leaves}
    plain = list(treepo.subgroup_advantages(rewards).values())
    anew = TurnTree("q", Task("q", ""))
    root = node(anew, None)
    inner = [add_turn(anew, add_turn(anew, root, [2]), [7], restarts=True) for _ in range(3)]
    again = {node(anew, inner[i], reward=leaf.reward, end="done"): r for i, (leaf, r) in zip((0, 0, 1, 1, 2), rewards.items(), strict=True)}
    assert list(treepo.subgroup_advantages(again).values()) == pytest.approx(plain)


# ARPO: its credit is GRPO on the tree.


def test_a_turn_that_branches_share_has_the_mean_of_their_advantages() -> None:
    tree, _ = flat([1.0, 0.0])
    shared = node(tree, tree.root)
    for reward in (1.0, 1.0, 0.0):
        node(tree, shared, reward=reward, end="done")
    assign(GRPO(), tree)
    high, low = group_advantages(np.array([1.0, 0.0, 1.0, 1.0, 0.0]))[:2]
    assert shared.streams["advantage"] == pytest.approx([(2 * high + low) / 3])


def test_the_report_counts_the_groups_with_contrast() -> None:
    for make in (treepo.TreePO, aepo.AEPO, appo.APPO):
        credit = make()
        assign(credit, flat([1.0, 0.0])[0], flat([1.0, 1.0])[0], flat([None, None])[0])
        assert credit.metrics() == {
            "reward": 0.75,
            "groups_with_signal": pytest.approx(1 / 3),
            "contrasts_per_kilotoken": pytest.approx(1000 / 12),
        }


# AEPO


def test_aepo_factors_of_the_worked_example() -> None:
    assert aepo.entropy_factors(np.array([0.2, 0.8, 0.5, 0.5])) == pytest.approx([0.7172, 1.2828, 1, 1], abs=1e-4)
    assert (aepo.entropy_factors(np.array([0.2, 0.8, 0.5, 0.5])) - 1) / 0.2 == pytest.approx([-1.4142, 1.4142, 0, 0], abs=1e-4)


def test_aepo_scales_grpo_token_by_token_and_turns_no_sign() -> None:
    tree, (good, bad) = flat([1.0, 0.0])
    good.entropies, bad.entropies = [0.2, 0.8], [0.5, 0.5]
    assign(aepo.AEPO(), tree)
    high = group_advantages(np.array([1.0, 0.0]))[0]
    assert good.streams["advantage"] == pytest.approx([0.7172 * high, 1.2828 * high], abs=1e-4)
    assert bad.streams["advantage"] == pytest.approx([-high, -high], abs=1e-4)
    assign(aepo.AEPO(weight=5.0), tree)
    assert good.streams["advantage"].tolist()[0] == 0.0
    assert bad.streams["advantage"] == pytest.approx([-high, -high], abs=1e-4)


def test_aepo_needs_entropies() -> None:
    tree, leaves = flat([1.0, 0.0])
    leaves[0].entropies = []
    with pytest.raises(AgentGymError, match=r"Generation\.entropies"):
        assign(aepo.AEPO(), tree)


class _Heads:
    def __init__(self, logprobs: torch.Tensor) -> None:
        self.logprobs = logprobs


@pytest.mark.parametrize(
    ("ratio", "advantage", "factor", "value"),
    [
        (1.5, 1.0, 1.28, 1.28),
        (1.1, 1.0, 1.1, 1.1),
        (0.7, -1.0, 0.0, 0.8),
        (0.9, -1.0, 0.9, 0.9),
        (1.5, -1.0, 1.5, 1.5),
        (0.7, 1.0, 0.7, 0.7),
        (4.0, -1.0, 0.0, 3.0),
    ],
)
def test_aepo_holds_a_token_at_the_bound_and_keeps_its_gradient(ratio: float, advantage: float, factor: float, value: float) -> None:
    tree, (leaf,) = flat([1.0])
    leaf.logprobs = [0.0, 0.0]
    leaf.streams = {"advantage": np.array([advantage, advantage]), "weight": np.array([1.0, 0.0])}
    (packed,) = pack([tree], 10)
    logprobs = torch.full((len(packed),), float(np.log(ratio)), dtype=torch.float64, requires_grad=True)
    loss, metrics = KeptGradient()(_Heads(logprobs), packed)
    loss.backward()
    assert logprobs.grad is not None
    assert -logprobs.grad[1].item() == pytest.approx(factor * advantage, abs=1e-9)
    assert loss.item() == pytest.approx(-value * advantage, abs=1e-9)
    assert logprobs.grad[[0, 2]].tolist() == [0, 0]
    assert metrics["clip_fraction"] == float(factor in (1.28, 0.0) and ratio != 4.0)


# APPO


def test_appo_advantages_of_the_worked_example() -> None:
    """Two episodes of five tokens, each token a node; branches leave row 0 at tokens 1 and 3, and row 1 at token 0."""
    tree = TurnTree("tree", Task("task", ""))
    root = node(tree, None)
    rows = []
    for reward in (1.0, 0.0):
        row = [root]
        for place in range(5):
            row.append(node(tree, row[-1], **({"reward": reward, "end": "done"} if place == 4 else {})))
        rows.append(row[1:])
    left = [(rows[0][1], 1.0), (rows[0][3], 0.0), (rows[1][0], 0.0)]
    branches = [node(tree, node(tree, place), reward=reward, end="done") for place, reward in left]
    assign(appo.APPO(), tree)
    first, second = ([float(turn.streams["advantage"][0]) for turn in row] for row in rows)
    assert first == pytest.approx([1.353551, 1.353551, 0.292893, 0.292893, 1], abs=1e-4)
    assert second == pytest.approx([-1.707103, -1, -1, -1, -1], abs=1e-4)
    assert not any(turn.streams["advantage"].any() for leaf in branches for turn in (leaf, leaf.parent))


def test_appo_normalises_first_episodes_and_branches_apart() -> None:
    tree, (first, _) = flat([1.0, 0.0])
    shared = node(tree, tree.root)
    last = node(tree, shared, reward=1.0, end="done")
    for reward in (100.0, 300.0):
        node(tree, shared, reward=reward, end="done")
    assign(appo.APPO(), tree)
    own = (1 - 2 / 3) / (np.std([1, 0, 1]) + 1e-6)
    assert last.streams["advantage"].tolist() == pytest.approx([own])
    assert first.streams["advantage"].tolist() == pytest.approx([own] * 2)
    assert shared.streams["advantage"].tolist() == pytest.approx([own])  # its branches' advantages are -1 and 1


def test_appo_teaches_nothing_on_an_episode_that_was_lost_though_its_branches_were_judged() -> None:
    tree, _ = flat([1.0, 0.0])
    shared = node(tree, tree.root)
    inner = node(tree, shared)
    node(tree, inner, reward=None, end="error", outcome=Outcome.JUDGE)
    for place, reward in ((shared, 0.0), (inner, 1.0)):
        node(tree, place, reward=reward, end="done")
    found = assign(appo.APPO(), tree)[0]
    assert found[:2] == pytest.approx([1, -1], abs=1e-4)
    assert found[2:] == [0, 0, 0]
    assert [turn.streams["advantage"].tolist() for turn in (shared, inner)] == [[0], [0]]
