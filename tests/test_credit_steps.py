"""Credits that compare actions: the worked numbers, trees with forks and segments, and what holds for all."""

from __future__ import annotations

import random

import numpy as np
import pytest
from credits import advantage, assigned, credited, group, line, near
from forests import add_turn, random_tree
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.contrasts import contrasts
from agentgym.trainers.credit.discounted import Discounted
from agentgym.trainers.credit.gigpo import GiGPO, episode_advantages
from agentgym.trainers.credit.hgpo import HGPO
from agentgym.trainers.credit.keys import Exact, Normalised, Similar
from agentgym.trainers.credit.states import states_of
from agentgym.trainers.credit.steps import steps_of
from agentgym.turn import TurnTree, path, total_reward

EVERY = {
    "GiGPO": GiGPO,
    "GiGPO std": lambda: GiGPO(scale="std"),
    "GiGPO by episode": lambda: GiGPO(by_step=False, scale="std"),
    "HGPO": HGPO,
    "HGPO paper": lambda: HGPO(history=4, scale="std", weights="paper"),
    "HGPO base": lambda: HGPO(base_group=True, alpha=2.0),
    "Discounted": Discounted,
    "Discounted none": lambda: Discounted(discount=0.9, scale="none"),
}
WORLDS = ("A", "B", "C", "D")
episodes = st.lists(st.tuples(st.lists(st.sampled_from(WORLDS), min_size=1, max_size=5), st.integers(0, 4)), min_size=1, max_size=6)


def ending(states, reward, **names):
    return line(states, [0.0] * (len(states) - 1) + [reward], **names)


def worked():
    return [ending("ABC", 10.0), ending("ABD", 0.0), ending("ACB", 10.0)]


def each(credit, *trees):
    """The advantages of all turns below the roots."""
    assigned(credit, *trees)
    return [advantage(turn) for tree in trees for turn in tree.turns[1:]]


# The worked numbers.


GIGPO = [6.341667, 6.333333, 3.583333, -12.683333, -13.166667, -6.666667, 6.341667, 3.083333, 6.833333]
GIGPO_STD = [1.244017, 1.199080, 1.373771, -2.488033, -2.486896, -1.333333, 1.244017, -0.040438, 1.287816]
PAPER = [3.008333, 4.166667, 0.25, -6.016667, -5.333333, 0, 3.008333, -0.25, 3.5]
RELEASED = [3.008332, 4.049999, 0.25, -6.016664, -5.449999, 0, 3.008332, -0.25, 3.499998]
PAPER_STD = [0.707107, 0.884024, 0.999996, -1.414213, -1.137607, 0, 0.707107, -0.999996, 0.760750]
RELEASED_STD = [0.707106, 0.860828, 0.999996, -1.414213, -1.165128, 0, 0.707106, -0.999996, 0.760749]
WITH_BASE = [3.116666, 3.930555, 1.277777, -6.233331, -5.652777, -6.666660, 3.116666, 0.944444, 3.444443]


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (GiGPO(), GIGPO),
        (GiGPO(scale="std"), GIGPO_STD),
        (HGPO(1, weights="paper"), PAPER),
        (HGPO(1), RELEASED),
        (HGPO(2), RELEASED),
        (HGPO(2, weights="paper"), PAPER),
        (HGPO(1, scale="std", weights="paper"), PAPER_STD),
        (HGPO(1, scale="std"), RELEASED_STD),
        (HGPO(1, base_group=True), WITH_BASE),
    ],
)
def test_the_worked_example(credit, expected):
    assert each(credit, *worked()) == near(expected)


def test_alpha_moves_weight_to_longer_histories():
    assert each(HGPO(1, weights="paper", alpha=0.0), *worked())[1] == near(3.875)
    assert each(HGPO(1, weights="paper", alpha=2.0), *worked())[1] == near(4.4)


def test_the_longest_history_is_compared_as_a_whole():
    trees = [ending("XAB", 1.0), ending("XAB", 0.0), ending("YAB", 0.0)]
    # the last action against all three for one and for two states, and against the second one for three
    assert each(HGPO(2, weights="paper"), *trees)[2] == near((1 * 2 / 3 + 2 * 2 / 3 + 3 * 1 / 2) / 6)


def test_the_returns_and_the_episode_statistics_of_the_worked_example():
    steps = steps_of(worked(), 0.95)
    assert steps.returns.tolist() == near([9.025, 9.5, 10, 0, 0, 0, 9.025, 9.5, 10])
    assert (steps.score.mean(), steps.score.std(ddof=1)) == (near(6.666667), near(5.0))
    assert steps.rewards.std(ddof=1) == near(5.773503)
    by_episode = episode_advantages(steps, "std", by_step=False)
    assert by_episode[[0, 3]].tolist() == near([(10 - 6.666667) / 5.773503, -6.666667 / 5.773503])


def test_episodes_of_unequal_length_count_by_their_actions_or_once():
    trees = [ending("ABAB", 1.0), ending("C", 0.0)]
    assert episode_advantages(steps_of(trees, 1.0)).tolist() == near([0.2] * 4 + [-0.8])
    assert episode_advantages(steps_of(trees, 1.0), by_step=False).tolist() == near([0.5] * 4 + [-0.5])


def test_one_tree_of_three_episodes_and_three_trees_of_one_are_the_same_group():
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1], key="A")
    for states, reward in (("BC", 10.0), ("BD", 0.0), ("CB", 10.0)):
        turn = root
        for key, earned in ((states[0], 0.0), (states[1], 0.0), ("end", reward)):
            turn = add_turn(tree, turn, [2, 3], 1, key=key, reward=earned)
        turn.end = "done"
    assert each(HGPO(1), tree) == near(RELEASED)


def test_rewards_to_go_against_the_others_at_the_same_turn():
    trees = [line("AB", [1.0, 0.0]), line("AC", [0.0, 1.0]), line("ABD", [0.0, 0.0, 2.0])]
    # returns: (1, 0), (0.5, 1), (0.5, 1, 2); the mean of the first actions 2/3, of the second ones 2/3
    assert each(Discounted(0.5, "none"), *trees) == near([1 / 3, -2 / 3, -1 / 6, 1 / 3, -1 / 6, 1 / 3, 0])
    first, second = 0.288675, 0.577350
    scaled = [1 / 3 / first, -2 / 3 / second, -1 / 6 / first, 1 / 3 / second, -1 / 6 / first, 1 / 3 / second, 0]
    assert each(Discounted(0.5), *trees) == near(scaled)


# States.


def test_exact_keys_number_equal_texts():
    assert Exact()(["a", "b", "a", "A"]) == [0, 1, 0, 2]


def test_normalised_keys_do_not_see_case_space_clocks_and_counters():
    clocks = ["You are at  12:03 in the Kitchen.", "you are at 9:41:07 in the kitchen."]
    keys = [*clocks, "Step 4: kitchen", "step 11:  kitchen", "5 eggs", "6 eggs"]
    assert Normalised()(keys) == [0, 0, 1, 1, 2, 3]
    eggs = Normalised(r"\d+")(keys)[-2:]
    assert eggs[0] == eggs[1]
    assert Normalised(match=Similar(0.7))(["kitchens", "KITCHEN 1:2", "hall"]) == [0, 0, 1]


def test_similar_keys_join_the_first_cluster_whose_first_key_they_are_like():
    base = "x" * 19
    assert Similar(0.95)([base + "a", base + "b", base + "a"]) == [0, 0, 0]  # ratio 0.95, which is enough
    assert Similar(0.96)([base + "a", base + "b", base + "a"]) == [0, 1, 0]
    chain = ["aaaaaaaaab", "aaaaaaaabb", "aaaaaaabbb"]  # each is like the next, 0.9, but the last is not like the first
    assert Similar(0.9)(chain) == [0, 0, 1]
    assert Similar(0.9)([chain[0], chain[2], chain[1]]) == [0, 1, 0]


@given(st.lists(st.text("ab", max_size=6), max_size=12), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_similar_keys_are_those_of_the_plain_loop(keys, threshold):
    from difflib import SequenceMatcher

    firsts: list[str] = []
    expected = []
    for key in keys:
        fits = [n for n, first in enumerate(firsts) if SequenceMatcher(None, first, key).ratio() >= threshold]
        if not fits:
            firsts.append(key)
        expected.append(fits[0] if fits else len(firsts) - 1)
    assert Similar(threshold)(keys) == expected


def test_the_credit_sees_states_as_its_match_does():
    trees = [ending(["It is 12:01. Hall"], 1.0), ending(["It is 12:09. Hall"], 0.0)]
    assert each(HGPO(), *trees) == [0, 0]
    assert each(HGPO(match=Normalised()), *trees) == [0.5, -0.5]
    assert each(HGPO(match=Similar(0.9)), *trees) == [0.5, -0.5]


def test_equal_states_of_two_tasks_are_not_compared():
    assert each(HGPO(), ending("A", 1.0), ending("A", 0.0, task="other")) == [0, 0]
    assert each(GiGPO(), ending("A", 1.0), ending("A", 0.0, task="other"), ending("A", 0.0)) == [1.0, 0, -1.0]
    assert each(Discounted(), ending("A", 1.0), ending("A", 0.0, task="other")) == [0, 0]


@pytest.mark.parametrize("credit", [GiGPO(), HGPO()])
def test_an_environment_without_keys_is_refused_by_task_and_turn(credit):
    tree = line(["A", None, "C"], [0.0, 0.0, 1.0], task="zebra")
    with pytest.raises(AgentGymError, match=r"task zebra: there is no state key after turn 1, .* let AgentEnv.key\(\) give one"):
        assigned(credit, tree)
    assert each(Discounted(), tree) == [0, 0, 0]


# Trees.


def forked():
    """A -> B (shared), then two actions from B: 4 and 0; beside it one from A: 1. Discount 0.5."""
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1], key="A")
    shared = add_turn(tree, root, [2, 3], 1, key="B")
    add_turn(tree, shared, [2, 3], 1, key="end", reward=4.0, end="done")
    add_turn(tree, shared, [2, 3], 1, key="end", reward=0.0, end="done")
    add_turn(tree, root, [2, 3], 1, key="end", reward=1.0, end="done")
    return tree


def test_a_shared_action_counts_once_with_the_mean_of_its_episodes():
    steps = steps_of([forked()], 0.5)
    assert steps.returns.tolist() == [1.0, 4.0, 0.0, 1.0]
    assert steps.score.tolist() == [2.0, 4.0, 0.0, 1.0]
    assert steps.episodes.tolist() == [2, 1, 1, 1]
    assert steps.previous.tolist() == [-1, 0, 0, -1]
    assert each(GiGPO(discount=0.5), forked()) == near([0.25, 2.25 + 2, -1.75 - 2, -0.75])
    assert each(HGPO(discount=0.5), forked()) == near([0, 2, -2, 0])
    assert each(GiGPO(discount=0.5, by_step=False), forked()) == near([2 - 5 / 3, 4 - 5 / 3 + 2, -5 / 3 - 2, 1 - 5 / 3])


def test_an_action_in_segments_is_one_step_and_a_shared_segment_has_the_mean():
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1], key="A")
    begun = add_turn(tree, root, [2, 2], 2, partial=True, executed=False)
    ends = [add_turn(tree, begun, [3, 9], 1, key="B", reward=r, end="done") for r in (1.0, 0.0)]
    other = add_turn(tree, root, [4], 1, key="C", reward=0.0)
    last = add_turn(tree, other, [4], 1, key="D", reward=0.0, end="done")
    steps = steps_of([tree], 0.5)
    assert steps.turns == [*ends, other, last]
    assert steps.number.tolist() == [0, 0, 0, 1]
    assert steps.returns.tolist() == [1.0, 0.0, 0.0, 0.0]
    assigned(HGPO(discount=0.5), tree)
    assert [advantage(turn) for turn in (*ends, other, last)] == near([2 / 3, -1 / 3, -1 / 3, 0])
    assert begun.streams["advantage"].tolist() == near([1 / 6, 1 / 6])


def test_segments_of_one_action_are_not_discounted_and_count_by_their_episodes():
    tree = TurnTree("tree", Task("task", ""))
    first = add_turn(tree, add_turn(tree, None, [1], key="A"), [2], 1, key="B")
    begun = add_turn(tree, first, [2], 1, partial=True, executed=False)
    forked = add_turn(tree, begun, [3], 1, key="C")
    for reward in (1.0, 0.0):
        add_turn(tree, forked, [4], 1, key="D", reward=reward, end="done")
    ended = add_turn(tree, begun, [5], 1, key="E", reward=1.0, end="done")
    steps = steps_of([tree], 0.5)
    assert steps.returns.tolist() == pytest.approx([(0.25 + 0 + 0.5) / 3, 0.25, 1.0, 0.0, 1.0])
    assigned(HGPO(0, discount=0.5), tree)
    assert [advantage(turn) for turn in (forked, ended, begun)] == near([-0.375, 0.375, (2 * -0.375 + 0.375) / 3])


def test_an_action_that_was_cut_off_within_is_a_step_too():
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1], key="A")
    begun = add_turn(tree, root, [2], 1, partial=True, executed=False)
    cut = add_turn(tree, begun, [2], 1, partial=True, executed=False, end="budget", reward=0.0)
    whole = add_turn(tree, root, [3], 1, key="B", reward=1.0, end="done")
    assigned(HGPO(), tree)
    assert [advantage(turn) for turn in (begun, cut, whole)] == [-0.5, -0.5, 0.5]


def test_a_new_context_is_no_action_and_its_reward_is_that_of_the_action_before():
    tree = TurnTree("tree", Task("task", ""))
    first = add_turn(tree, add_turn(tree, None, [1], key="A"), [2], 1, key="B", reward=0.25)
    fresh = add_turn(tree, first, [1, 2], restarts=True, key="B")
    add_turn(tree, fresh, [3], 1, key="C", reward=1.0, end="done")
    stopped = add_turn(tree, add_turn(tree, tree.root, [2], 1, key="B"), [1, 2], restarts=True, key="B", reward=3.0, end="budget")
    steps = steps_of([tree], 0.5)
    assert [turn.index for turn in steps.turns] == [1, 3, 4]
    assert steps.returns.tolist() == [0.75, 1.0, 3.0]
    assert states_of(steps, Exact()).tolist() == [0, 1, 0]
    assert not each(HGPO(), tree)[stopped.index - 1]


def test_labels_and_episodes_without_a_verdict_have_nothing_and_change_nothing():
    trees = worked()
    lost = ending("ABC", 5.0)
    lost.turns[-1].reward = None
    add_turn(trees[0], trees[0].turns[1], [7], 1, executed=False, end="done", reward=100.0, key="X")
    for credit, expected in ((GiGPO(), GIGPO), (HGPO(1), RELEASED)):
        assigned(credit, *trees, lost)
        acted = [turn for tree in trees for turn in tree.turns[1:] if turn.executed]
        assert [advantage(turn) for turn in acted] == near(expected)
        assert not any(turn.streams["advantage"].any() for turn in lost.turns)
        assert not trees[0].turns[-1].streams["advantage"].any()
        assert credit.metrics()["reward"] == near(20 / 3)


@given(st.integers(0, 10**6))
def test_returns_are_those_of_each_episode_played_alone(seed):
    tree = random_tree(random.Random(seed), turns=12, restarts=0.0)
    for turn in tree.turns[1:]:
        turn.reward = turn.reward + random.Random(seed + turn.index).choice([0.0, 0.5])
    steps = steps_of([tree], 0.9)
    alone: dict[int, list[float]] = {}
    for leaf in tree.leaves():
        to_go = 0.0
        for turn in reversed(path(leaf)[1:]):
            to_go = turn.reward + 0.9 * to_go
            alone.setdefault(turn.index, []).append(to_go)
    found = dict(zip([turn.index for turn in steps.turns], steps.returns, strict=True))
    assert found == pytest.approx({index: np.mean(returns) for index, returns in alone.items()})
    assert steps.rewards.tolist() == [total_reward(leaf) for leaf in tree.leaves()]


# What holds for all.


@pytest.mark.parametrize("name", EVERY)
@given(played=episodes, rng=st.randoms(use_true_random=False))
def test_permuted_episodes_have_permuted_advantages(name, played, rng):
    trees = [ending(states, reward / 4) for states, reward in played]
    order = list(range(len(trees)))
    assigned(EVERY[name](), *trees)
    expected = [[advantage(turn) for turn in tree.turns] for tree in trees]
    rng.shuffle(order)
    assigned(EVERY[name](), *[trees[i] for i in order])
    for tree, before in zip(trees, expected, strict=True):
        assert [advantage(turn) for turn in tree.turns] == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("name", ["GiGPO", "GiGPO std", "GiGPO by episode", "HGPO", "HGPO paper", "HGPO base", "Discounted"])
@given(rewards=st.lists(st.integers(0, 8), min_size=1, max_size=6), constant=st.integers(-50, 50))
def test_a_constant_on_the_rewards_of_episodes_as_long_as_one_another_changes_nothing(name, rewards, constant):
    plain = each(EVERY[name](), *[ending("AB", reward / 4) for reward in rewards])
    moved = each(EVERY[name](), *[ending("AB", reward / 4 + constant) for reward in rewards])
    assert moved == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("reward", [0.0, 1.0, 9.025])
def test_all_right_all_wrong_and_an_episode_alone_teach_nothing(name, n, reward):
    assert each(EVERY[name](), *[ending("ABC", reward) for _ in range(n)]) == [0.0] * (3 * n)


def test_gigpo_without_repeated_states_is_the_mean_centred_reward():
    assert each(GiGPO(by_step=False), ending("A", 1.0), ending("B", 0.0)) == [0.5, -0.5]


def test_to_come_back_to_a_state_costs_what_the_discount_says():
    # returns 0.9025, 0.95 and 1; A is left twice, the later time nearer to the end
    assert each(HGPO(0), ending("ABA", 1.0)) == near([-0.04875, 0, 0.04875])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_reward_that_is_not_finite_is_refused_by_task_and_turn(name, broken):
    with pytest.raises(AgentGymError, match=r"task zebra: the reward of the episode that ends in turn 2 .* must be finite"):
        assigned(EVERY[name](), ending("AB", broken, task="zebra"))


@pytest.mark.parametrize("name", EVERY)
def test_unlike_tasks_of_one_id_are_refused(name):
    with pytest.raises(AgentGymError, match="task zebra: turn 0 of tree second has another prompt"):
        assigned(EVERY[name](), group(1, task="zebra", prompt="a"), group(1, task="zebra", prompt="b", name="second"))


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_without_a_verdict_teaches_nothing(name):
    metrics = assigned(EVERY[name]())
    assert np.isnan(metrics.pop("reward"))
    assert set(metrics.values()) == {0.0}
    assert credited(EVERY[name](), group(None, None)) == [0, 0]


def test_metrics_say_how_much_teaches():
    metrics = assigned(HGPO(1), *worked(), ending("A", 0.0, task="other"))
    assert metrics == {"reward": 5.0, "groups_with_signal": 0.5, "steps_with_signal": 0.8, "contrasts_per_kilotoken": 100.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: GiGPO(discount=1.5), "discount is 1.5"),
        (lambda: HGPO(scale="mean"), "scale is 'mean': choose one of none, std"),
        (lambda: HGPO(weights="code"), "weights is 'code': give .* released or paper"),
        (lambda: HGPO(history=-1), "history is -1"),
        (lambda: Similar(95), "threshold is 95"),
    ],
)
def test_options_that_cannot_be_are_refused_at_construction(wrong, message):
    with pytest.raises(AgentGymError, match=message):
        wrong()


# Statistics.


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 3)), min_size=1, max_size=20), st.sampled_from([0, 1]))
def test_group_statistics_are_those_of_each_group_alone(pairs, ddof):
    values, groups = np.array([value / 4 for value, _ in pairs]), np.array([number for _, number in pairs])
    expected = np.zeros(len(values))
    for number in set(groups.tolist()):
        own = values[groups == number]
        if len(own) > 1 and np.ptp(own):
            expected[groups == number] = (own - own.mean()) / (own.std(ddof=ddof) + 1e-6)
    assert contrasts(values, groups, "std", ddof) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize(("n", "value"), [(6, 9.025), (3, 7.737809), (5, 1 / 3)])
def test_equal_values_in_float32_give_exactly_zero(scale, n, value):
    assert contrasts(np.full(n, value, dtype=np.float32), np.zeros(n, dtype=np.int64), scale).tolist() == [0.0] * n


def test_values_that_are_equal_or_the_mean_but_for_rounding_are_exactly_zero():
    assert contrasts(np.array([0.1 + 0.2, 0.3, 0.3]), np.zeros(3, dtype=np.int64), "std").tolist() == [0.0] * 3
    assert contrasts(np.array([0.1, 0.2, 0.3]), np.zeros(3, dtype=np.int64))[1] == 0.0
    in_float32 = np.array([0.3, np.float32(0.3)], dtype=np.float64)  # apart by 1e-8, which a float32 reward cannot say
    assert contrasts(in_float32, np.zeros(2, dtype=np.int64), "std").tolist() == [0.0] * 2
