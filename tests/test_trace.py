"""TRACE: the worked numbers, allocations against all others, and the trees that the rollout engine grows for it."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import multiprocessing
import random
import re
import signal
import time

import numpy as np
import pytest
import torch
from forests import add_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentEnv, InfrastructureError, Lineage, Reply, Rollout, Start, Task
from agentgym.errors import AgentGymError
from agentgym.policy import Generation, Prompt
from agentgym.rollout import episode
from agentgym.store import RunStore, turn_record
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.trace import TRACE as TraceCredit  # noqa: N811
from agentgym.trainers.expanders.allocation import (
    allocate_prefixes,
    allocate_roots,
    block_greedy,
    dynamic_programme,
    flip_probability,
    prefix_contrast,
    root_contrasts,
)
from agentgym.trainers.expanders.gps import GPS
from agentgym.trainers.expanders.growth import Bet, Calibration
from agentgym.trainers.expanders.shared import SharedPredictor, hashed_words
from agentgym.trainers.expanders.trace import TRACE
from agentgym.trainers.expanders.value import Belief, TaskPosterior, bare_rewards, first_rewards, prefixes, rewards_through
from agentgym.trainers.recipe import Plugin
from agentgym.turn import TurnTree

VALUES = [0.5, 0.9, 0.2, 0.98]
WIN, LOSE = {True}, {False}
chance = st.floats(0.0, 1.0)


def near(expected):
    return pytest.approx(expected, abs=1e-4)


def objective(contrasts, counts):
    return float(sum(contrasts[i, n] for i, n in enumerate(counts)))


def purchases(allocate, first, last):
    """What each unit of budget more is spent on."""
    counts = [np.asarray(allocate(budget)) for budget in range(first, last + 1)]
    return [int(np.flatnonzero(after - before)[0]) for before, after in itertools.pairwise(counts)]


# The worked numbers of the reference.


@pytest.mark.parametrize(
    ("value", "most", "expected"),
    [
        (0.5, 5, [0, 0, 0.5, 0.75, 0.875, 0.9375]),
        (0.9, 4, [0, 0, 0.18, 0.27, 0.3438]),
        (0.2, 5, [0, 0, 0.32, 0.48, 0.5888, 0.672]),
        (0.98, 2, [0, 0, 0.0392]),
    ],
)
def test_the_chance_that_rollouts_are_mixed(value, most, expected):
    assert root_contrasts([value], most)[0] == near(expected)


def test_with_one_rollout_each_the_largest_gains_are_bought_one_by_one():
    contrasts = root_contrasts(VALUES, 8)
    counts = allocate_roots(contrasts, 12, least=1)
    assert counts.tolist() == [4, 3, 4, 1]
    assert objective(contrasts, counts) == near(1.7338)
    assert objective(contrasts, [3, 3, 3, 3]) == near(1.5588)
    assert purchases(lambda budget: block_greedy(contrasts, budget, 1), 4, 12) == [0, 2, 0, 1, 2, 0, 2, 1]


@pytest.mark.parametrize("solve", [allocate_roots, dynamic_programme])
@pytest.mark.parametrize(("budget", "expected", "worth"), [(12, [4, 3, 5, 0], 1.817), (8, [4, 0, 4, 0], 1.4638)])
def test_a_prompt_that_is_as_good_as_solved_gets_nothing(solve, budget, expected, worth):
    contrasts = root_contrasts(VALUES, 8)
    assert solve(contrasts, budget).tolist() == expected
    assert objective(contrasts, expected) == near(worth)


def test_a_small_budget_is_worth_more_where_prompts_may_get_nothing():
    contrasts = root_contrasts(VALUES, 8)
    assert objective(contrasts, [2, 2, 2, 2]) == near(1.0392)
    assert allocate_roots(contrasts, 8, least=1).tolist() == [3, 2, 2, 1]
    assert objective(contrasts, [3, 2, 2, 1]) == near(1.25)


def test_continuations_go_where_the_outcome_may_flip():
    values, seen = [0.5, 0.8, 0.95, 0.3, 0.1], [WIN, WIN, WIN, LOSE, LOSE]
    counts = allocate_prefixes(values, seen, 6)
    assert counts.tolist() == [2, 2, 0, 2, 0]
    assert purchases(lambda budget: allocate_prefixes(values, seen, budget), 0, 6) == [0, 3, 0, 3, 1, 1]
    flips = [flip_probability(value, outcome) for value, outcome in zip(values, seen, strict=True)]
    gains = [[prefix_contrast(flip, n + 1) - prefix_contrast(flip, n) for n in (0, 1)] for flip in flips]
    assert [gains[0], gains[3], gains[1]] == [near([0.5, 0.25]), near([0.3, 0.21]), near([0.2, 0.16])]
    assert sum(prefix_contrast(flip, n) for flip, n in zip(flips, counts.tolist(), strict=True)) == near(1.62)
    assert prefix_contrast(flip_probability(0.3, LOSE), 3) == near(0.657)


def worked_tree():
    """a1 → a2 → a3 won, b1 → b2 lost, and after a1 also c2 → c3 lost and d2 won."""
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, [1])
    turns = {}
    for parent, name, reward in (
        (None, "a1", None),
        ("a1", "a2", None),
        ("a2", "a3", 1.0),
        (None, "b1", None),
        ("b1", "b2", 0.0),
        ("a1", "c2", None),
        ("c2", "c3", 0.0),
        ("a1", "d2", 1.0),
    ):
        end = {} if reward is None else {"end": "done", "reward": reward}
        turns[name] = add_turn(tree, turns[parent] if parent else tree.root, [2, 3], 1, **end)
    return tree, turns


def given_credit(credit, *trees):
    asyncio.run(credit.assign(trees, {}))
    return credit.metrics()


def advantage(turn):
    sampled = np.asarray(turn.sampled, dtype=bool)
    assert not turn.streams["advantage"][~sampled].any()
    (value,) = set(turn.streams["advantage"][sampled].tolist()) or {0.0}
    return value


def test_targets_are_the_mean_rewards_below():
    tree, turns = worked_tree()
    through = rewards_through(tree)
    assert (np.mean(through[turns["a1"]]), len(through[turns["a1"]])) == (near(2 / 3), 3)
    assert np.mean(through[tree.root]) == near(0.5)
    assert bare_rewards(tree) == [1.0, 0.0]


def test_advantages_add_the_contrast_at_the_root_and_at_the_last_fork():
    tree, turns = worked_tree()
    metrics = given_credit(TraceCredit(), tree)
    expected = {"a1": 0.3333, "b1": -1.0, "b2": -1.0, "c2": -2.4142, "c3": -2.4142} | dict.fromkeys(("a2", "a3", "d2"), 1.7071)
    assert {name: advantage(turn) for name, turn in turns.items()} == {name: near(value) for name, value in expected.items()}
    assert (metrics["groups_with_signal"], metrics["effective_ratio"], metrics["reward"]) == (1.0, 1.0, 0.5)
    assert metrics["contrasts_per_kilotoken"] == 1000 * 2 / 8  # at the root and at a1, for eight sampled tokens
    assert given_credit(GRPO(), tree, a_group(1, 1))["contrasts_per_kilotoken"] == 1000 * 1 / 10
    given_credit(TraceCredit(weight=0.0), tree)
    assert advantage(turns["a3"]) == near(1.0)


def a_group(*rewards, id="tree"):
    """A tree of one-turn episodes; a reward of None is a fault."""
    tree = TurnTree(id, Task(id, ""))
    root = add_turn(tree, None, [1])
    for reward in rewards:
        add_turn(tree, root, [2], 1, end="error" if reward is None else "done", reward=reward)
    return tree


def test_the_effective_ratio_counts_trees_with_both_outcomes():
    trees = [a_group(1, 1, 1), a_group(1, 0), a_group(0, 0, 0, 0), a_group(0, 1, 0)]
    assert given_credit(TraceCredit(), *trees)["effective_ratio"] == 0.5


def test_the_posterior_of_a_task_expects_less_contrast_than_its_mean_promises():
    posterior = TaskPosterior()
    seen, unseen = a_group(1, 1, 1, 0, id="seen"), a_group(id="unseen")
    posterior.learn([seen])
    belief = posterior.predict([Prompt(tree, tree.root) for tree in (seen, unseen)])
    contrasts = root_contrasts(belief.value, 4, belief.confidence)
    assert contrasts[:, [2, 4]] == near(np.array([[0.380952, 0.68254], [0.333333, 0.6]]))
    assert root_contrasts(belief.value, 4)[0, [2, 4]] == near([0.444444, 0.790123])


# Allocations, against all others.


@given(st.lists(chance, min_size=1, max_size=6), st.floats(0.5, 50) | st.just(math.inf))
def test_contrasts_are_chances_that_grow_ever_more_slowly(values, confidence):
    contrasts = root_contrasts(values, 9, confidence)
    assert (contrasts >= 0).all()
    assert (contrasts <= 1).all()
    gains = np.diff(contrasts[:, 1:])
    assert (gains >= -1e-12).all()
    assert (np.diff(gains) <= 1e-12).all()
    assert (contrasts[:, :2] == 0).all()
    assert root_contrasts(1 - np.array(values), 9, confidence) == pytest.approx(contrasts, abs=1e-9)


def test_the_guard_is_the_mean_contrast_under_the_posterior():
    drawn = np.random.default_rng(0).beta(4 * 0.3, 4 * 0.7, size=200_000)
    expected = root_contrasts(drawn, 6).mean(axis=0)
    assert root_contrasts([0.3], 6, 4.0)[0] == pytest.approx(expected, abs=0.004)
    assert (root_contrasts([0.3], 6, 4.0)[0, 2:] < root_contrasts([0.3], 6)[0, 2:]).all()


@settings(max_examples=60)
@given(st.lists(chance, min_size=1, max_size=6), st.integers(0, 14), st.integers(1, 2), st.sampled_from([2.0, math.inf]))
def test_greedy_is_exact_where_each_prompt_has_a_rollout(values, more, least, confidence):
    contrasts = root_contrasts(values, 8, confidence)
    budget = min(least * len(values) + more, 8 * len(values))
    best = objective(contrasts, dynamic_programme(contrasts, budget, least))
    assert objective(contrasts, block_greedy(contrasts, budget, least)) == pytest.approx(best, abs=1e-7)


@settings(max_examples=60)
@given(st.lists(chance, min_size=1, max_size=4), st.integers(0, 9), st.sampled_from([2.0, math.inf]))
def test_no_split_of_the_budget_is_better_than_the_dynamic_programme(values, budget, confidence):
    contrasts = root_contrasts(values, 5, confidence)
    splits = (split for split in itertools.product(range(6), repeat=len(values)) if sum(split) <= budget)
    best = max(objective(contrasts, split) for split in splits)
    counts = dynamic_programme(contrasts, budget)
    assert counts.sum() <= budget
    assert objective(contrasts, counts) == pytest.approx(best, abs=1e-7)  # what gains nothing is not bought
    assert objective(contrasts, block_greedy(contrasts, budget)) <= best + 1e-9


@settings(max_examples=60)
@given(
    st.lists(st.tuples(chance, st.sampled_from([WIN, LOSE, WIN | LOSE]), st.integers(1, 5)), min_size=1, max_size=4),
    st.integers(0, 6),
    st.sampled_from([2.0, math.inf]),
)
def test_no_other_continuations_are_better(anchors, budget, confidence):
    values, seen, agreed = zip(*anchors, strict=True)
    flips = [flip_probability(value, outcome) for value, outcome in zip(values, seen, strict=True)]

    def worth(counts):
        return sum(prefix_contrast(flip, n, m, confidence) for flip, n, m in zip(flips, counts, agreed, strict=True))

    best = max(worth(split) for split in itertools.product(range(budget + 1), repeat=len(values)) if sum(split) <= budget)
    counts = allocate_prefixes(values, seen, budget, agreed, confidence)
    assert counts.sum() <= budget
    assert worth(counts.tolist()) == pytest.approx(best, abs=1e-6)
    assert all(n == 0 for n, outcome in zip(counts, seen, strict=True) if len(outcome) == 2)


@given(st.lists(st.integers(1, 49), min_size=1, max_size=6, unique=True), st.integers(0, 30), st.integers(0, 1), st.randoms())
def test_the_order_of_the_prompts_does_not_matter(percents, budget, least, rng):
    order = list(range(len(percents)))
    rng.shuffle(order)
    values = np.array(percents) / 100  # below one half: no two of them have equal contrast

    def allocated(values, visits):
        return allocate_roots(root_contrasts(values, 8), budget, least, visits)

    visits = np.arange(len(percents)) * 100  # so that what is left over is not shared out by place either
    assert allocated(values[order], visits[order]).tolist() == allocated(values, visits)[order].tolist()


@given(st.lists(chance, min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 3))
def test_the_whole_budget_is_spent_as_far_as_prompts_may_take_it(values, budget, least):
    counts = allocate_roots(root_contrasts(values, 5), budget, least)
    assert counts.sum() == min(budget, 5 * len(values))
    assert counts.max() <= 5


def test_what_gains_nothing_goes_to_those_seen_least():
    contrasts = root_contrasts([1.0, 0.0, 1.0], 8)
    assert allocate_roots(contrasts, 4, visits=[5, 0, 3]).tolist() == [0, 4, 0]
    assert allocate_roots(contrasts, 4, visits=[1, 1, 1]).tolist() == [2, 1, 1]


def test_a_budget_below_one_rollout_each_is_refused_by_the_solvers():
    for solve in (block_greedy, dynamic_programme):
        with pytest.raises(AgentGymError, match="more than the budget of 3"):
            solve(root_contrasts(VALUES, 8), 3, 1)


def test_episodes_that_agreed_are_evidence_against_a_flip():
    drawn = np.random.default_rng(0).beta(4 * 0.3, 4 * 0.7, size=400_000)  # chances to end otherwise
    weights = (1 - drawn) ** 2  # two episodes ended alike
    expected = np.average(1 - (1 - drawn) ** 3, weights=weights)
    assert prefix_contrast(0.3, 3, agreed=2, confidence=4.0) == pytest.approx(expected, abs=0.003)
    assert allocate_prefixes([0.5, 0.6], [LOSE, LOSE], 1, agreed=[1, 5], confidence=4.0).tolist() == [1, 0]


# Credit.


@given(st.lists(st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=5), min_size=1, max_size=4))
def test_without_forks_it_is_grpo_with_another_deviation(groups):
    trees = [a_group(*rewards) for rewards in groups]
    given_credit(TraceCredit(), *trees)
    ours = [turn.streams["advantage"] for tree in trees for turn in tree.leaves()]
    given_credit(GRPO(), *trees)
    theirs = [turn.streams["advantage"] for tree in trees for turn in tree.leaves()]
    wider = [math.sqrt(len(rewards) / max(1, len(rewards) - 1)) for rewards in groups for _ in rewards]
    for mine, grpo, factor in zip(ours, theirs, wider, strict=True):
        assert mine == pytest.approx(grpo * factor, abs=1e-4)
        assert (mine == 0).all() == (grpo == 0).all()


@pytest.mark.parametrize("reward", [0.0, 1.0, 9.025, 7.737809, 0.1 + 0.2])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_rewards_that_are_all_alike_give_exactly_zero(reward, size):
    tree = a_group(*[reward] * size)
    metrics = given_credit(TraceCredit(), tree)
    assert [advantage(leaf) for leaf in tree.leaves()] == [0.0] * size
    assert metrics["groups_with_signal"] == 0.0


def test_a_fault_is_in_no_mean_and_gets_no_advantage():
    tree, whole = a_group(1, None, 0), a_group(1, 0)
    given_credit(TraceCredit(), tree, whole)
    assert [advantage(leaf) for leaf in tree.leaves()] == [advantage(whole.leaves()[0]), 0.0, advantage(whole.leaves()[1])]
    assert given_credit(TraceCredit(), a_group(None), a_group(0, 1))["filtered"] == 0.5
    with pytest.raises(AgentGymError, match="finite"):
        given_credit(TraceCredit(), a_group(math.nan, 1.0))


# The trees that the rollout engine grows.


class Letters(AgentEnv):
    """Three letters make a word; a task's answer lists the words that win. An x is a fault of the machine."""

    max_turns = 3
    snapshots = "value"

    def begin(self, task):
        if task.answer is None:
            raise InfrastructureError("the machine did not start")
        self.state = ""

    def act(self, action):
        if action.text == "x":
            raise InfrastructureError("the network is down")
        self.state += action.text
        return Reply(f"So far: {self.state}", ends=len(self.state) == self.task.data.get("turns", 3))

    def score(self):
        return float(self.state in self.task.answer)


def word(turn):
    return "".join(turn.action for turn in episode(turn))


class Writer:
    """Writes what ``letter(task, written, branch)`` says, the branch counted among the siblings."""

    def __init__(self, letter):
        self.letter = letter

    async def generate(self, prompt, sampling):
        seeds = (Lineage.of(prompt.turn.seed, "branch", branch).seed() for branch in itertools.count())
        branch = next(branch for branch, seed in enumerate(seeds) if seed == sampling.seed)
        return Generation(text=self.letter(prompt.tree.task.id, word(prompt.turn), branch))


class Coin:
    """Writes a or b, by the turn's own seed."""

    async def generate(self, prompt, sampling):
        return Generation(text=random.Random(sampling.seed).choice("ab"))


class Told:
    """A predictor that was told the values, by task and what is written; it remembers what it was taught."""

    cold = False

    def __init__(self, values, cold=False):
        self.values, self.cold, self.taught = values, cold, []

    def predict(self, anchors):
        values = [self.values.get((anchor.tree.task.id, word(anchor.turn)), 0.5) for anchor in anchors]
        return Belief(np.array(values), np.full(len(values), np.inf))

    def learn(self, trees):
        self.taught.append([tree.id for tree in trees])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def metrics(self):
        return {}


def play(expander, tasks, actor=None, step=0, committed=None):
    rollout = Rollout(Letters, expander, {"policy": actor or Coin()}, None, Lineage.of(0, "train", step), committed=committed)
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def a_task(id="t", wins=("aaa",), turns=3):
    return Task(id, f"Write a word for {id}.", list(wins), data={"turns": turns})


def grown(tree):
    return [(word(turn), len(turn.children)) for turn in tree.turns if len(turn.children) > 1]


AAA_OR_BBB = Writer(lambda task, written, branch: written[0] if written and branch == 0 else "ab"[branch % 2])


def two_chains(expander):
    """aaa, which wins, and bbb, which loses; then what the expander chooses."""
    (tree,) = play(expander, [a_task()], AAA_OR_BBB)
    assert [word(leaf) for leaf in tree.leaves()][:2] == ["aaa", "bbb"]
    assert tree.closed
    return tree


def test_the_prefixes_that_may_flip_are_forked():
    predictor = Told({("t", "a"): 0.5, ("t", "aa"): 0.8, ("t", "b"): 0.3, ("t", "bb"): 0.1})
    expander = TRACE(roots=2, prefixes=3, predictor=predictor)
    tree = two_chains(expander)
    assert grown(tree) == [("", 2), ("a", 3), ("b", 2)]
    assert len(tree.leaves()) == 2 + 3
    predicted = [1 - 0.5**2, 0.3]
    assert expander.metrics()["prefix_contrast_predicted"] == near(np.mean(predicted))


def test_among_equals_the_deeper_prefix_is_forked():
    assert grown(two_chains(TRACE(2, 2, Told({})))) == [("", 2), ("aa", 2), ("bb", 2)]
    assert grown(two_chains(TRACE(2, 1, Told({})))) == [("", 2), ("aa", 2)]


def test_the_root_and_the_end_are_never_continued_and_one_certain_is_left_alone():
    certain = Told({("t", prefix): float(prefix[0] == "a") for prefix in ("a", "aa", "b", "bb")})
    assert grown(two_chains(TRACE(2, 8, certain))) == [("", 2)]


def test_a_later_wave_leaves_what_is_mixed_already():
    values = Told({("t", "a"): 0.9, ("t", "aa"): 0.5, ("t", "b"): 0.05, ("t", "bb"): 0.05})
    assert grown(two_chains(TRACE(2, 2, values, waves=1))) == [("", 2), ("aa", 3)]
    # aab loses, so after a and aa both outcomes are seen; the second continuation goes to the best of the others.
    assert grown(two_chains(TRACE(2, 2, values, waves=2))) == [("", 2), ("aa", 2), ("bb", 2)]


def test_the_roots_are_shared_out_over_the_forest_as_in_the_worked_numbers():
    values = {(f"t{i}", ""): value for i, value in enumerate(VALUES)}
    tasks = [a_task(f"t{i}") for i in range(4)]
    predictor = Told(values)
    forest = play(TRACE(12, 0, predictor), tasks)
    assert [len(tree.leaves()) for tree in forest] == [4, 3, 5, 0]
    assert all(tree.closed for tree in forest)
    assert predictor.taught == [[tree.id for tree in forest[:3]]]
    forest = play(TRACE(12, 0, Told(values, cold=True)), tasks)
    assert [len(tree.leaves()) for tree in forest] == [4, 3, 4, 1]


@settings(max_examples=25, deadline=None)
@given(st.lists(chance, min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 4), st.integers(1, 3), st.booleans())
def test_no_forest_has_more_episodes_than_the_budget(values, roots, local, waves, cold):
    predictor = Told({(f"t{i}", ""): value for i, value in enumerate(values)}, cold)
    forest = play(TRACE(roots, local, predictor, waves), [a_task(f"t{i}") for i in range(len(values))])
    bare = [len(tree.root.children) for tree in forest]
    assert roots - sum(bare) <= max(0, roots - len(values) * max(2, round(8 * roots / len(values))))
    for tree, n in zip(forest, bare, strict=True):
        assert n <= len(tree.leaves()) <= n + local
        assert tree.closed


def test_a_fault_fills_its_place_and_is_no_zero():
    fails_once = Writer(lambda task, written, branch: "x" if (written, branch) in (("", 1), ("aa", 1)) else "a")
    expander = TRACE(3, 2, SharedPredictor(hidden=4, words=8))
    play(expander, [a_task()], fails_once)
    predictor = expander.predictor
    assert predictor.records == {"t": (2.0, 2)}
    (tree,) = play(TRACE(3, 2, Told({("t", "aa"): 0.1})), [a_task()], fails_once)
    assert [word(leaf) for leaf in tree.leaves() if leaf.reward is None] == ["x", "aax", "aax"]
    assert len(tree.leaves()) == 3 + 2
    through = rewards_through(tree)
    assert through[tree.root] == [1.0] * 2
    assert prefixes(through)[0].depth == 2
    assert all(turn.reward is not None for turn in prefixes(through))
    metrics = given_credit(TraceCredit(), tree)
    assert (metrics["reward"], metrics["groups_with_signal"], metrics["filtered"]) == (1.0, 0.0, 0.0)


def test_a_task_that_cannot_start_or_only_fails_ends_no_other():
    tasks = [Task("broken", "", None), a_task("fails"), a_task("plays")]
    expander = TRACE(8, 2, SharedPredictor(hidden=4, words=8, warm_up=1))
    for step in range(2):
        forest = play(expander, tasks, Writer(lambda task, written, branch: "x" if task == "fails" else "ab"[branch % 2]), step)
        assert all(tree.closed for tree in forest)
        assert {leaf.reward for leaf in forest[1].leaves()} <= {None}
    assert expander.predictor.records["plays"][1] > 0
    assert expander.predictor.records["fails"] == (0.0, 0)
    assert "broken" not in expander.predictor.records
    assert math.isfinite(given_credit(TraceCredit(), *forest)["reward"])


def test_a_forest_in_which_nothing_starts_ends():
    expander = TRACE(4, 2, Told({}))
    (tree,) = play(expander, [Task("broken", "", None)])
    assert tree.closed
    assert given_credit(TraceCredit(), tree)["filtered"] == 1.0


def test_a_task_without_prefixes_gives_its_local_budget_to_the_roots():
    expander = TRACE(4, 3, Told({}))
    tasks = [a_task("one", turns=1), a_task("three")]
    for step, bare in enumerate((4, 4 + 3)):
        forest = play(expander, tasks, step=step)
        assert sum(len(tree.root.children) for tree in forest) == bare
    assert expander.one_turn == {"one"}


@pytest.mark.parametrize("wrong", [{"roots": 0}, {"roots": 4, "prefixes": -1}, {"roots": 4, "waves": 0}])
def test_a_budget_smaller_than_one_rollout_is_refused_at_the_start(wrong):
    with pytest.raises(AgentGymError, match="TRACE needs roots >= 1"):
        TRACE(**wrong)


def test_predictors_refuse_what_cannot_be():
    for wrong in ({"hidden": 0}, {"words": 0}, {"warm_up": 0}, {"confidence": 0.0}, {"prefix_confidence": 0.0}):
        with pytest.raises(AgentGymError, match="SharedPredictor needs"):
            SharedPredictor(**wrong)
    for decay in (0.0, 1.5):
        with pytest.raises(AgentGymError, match="decay"):
            TaskPosterior(decay)


def test_a_recipe_names_the_predictor_within_the_expander():
    here = "agentgym.trainers.expanders"
    predictor = {"class": f"{here}.shared:SharedPredictor", "hidden": 8, "warm_up": 3}
    expander = Plugin.model_validate({"class": f"{here}.trace:TRACE", "roots": 4, "predictor": predictor}).build()
    assert isinstance(expander.predictor, SharedPredictor)
    assert expander.predictor.warm_up == 3


# Resuming.


def forest_record(forest):
    return [(tree.id, tree.closed, [turn_record(turn) for turn in tree.turns]) for tree in forest]


def small_trace(predictor=None):
    return TRACE(10, 3, predictor or SharedPredictor(hidden=8, words=16, warm_up=2), waves=2)


TASKS = [a_task(f"t{i}", wins) for i, wins in enumerate([("aaa",), ("aaa", "aab", "bbb"), (), ("aba", "abb", "aaa", "baa", "bab")])]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "predictor",
    [
        lambda: SharedPredictor(hidden=8, words=16, warm_up=2),
        lambda: GPS(hidden=8, latent=2, words=16, warm_up=2),
        lambda: TaskPosterior(0.9),
    ],
)
def test_a_saved_trace_goes_on_as_if_it_had_never_stopped(predictor):
    whole, again = small_trace(predictor()), small_trace(predictor())
    for step in range(3):
        play(whole, TASKS, step=step)
    again.load_state_dict(through_a_file(whole.state_dict()))
    for step in range(3, 6):
        assert forest_record(play(whole, TASKS, step=step)) == forest_record(play(again, TASKS, step=step))
        assert whole.metrics() == again.metrics()
    assert repr(whole.state_dict()) == repr(again.state_dict())


@pytest.mark.parametrize("deadly", [1, 5, 17, 30, 38, 44])
def test_a_half_grown_forest_that_is_killed_grows_again_just_so(deadly):
    """At the roots, among the rollouts, and in both waves of continuations."""
    first = small_trace()
    play(first, TASKS)
    saved = through_a_file(first.state_dict())
    expected = forest_record(play(first, TASKS, step=1))
    assert sum(len(turns) for _, _, turns in expected) > 44
    after = small_trace()
    after.load_state_dict(saved)
    commits = itertools.count()

    def kill(tree, turn):
        if next(commits) == deadly:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        play(after, TASKS, step=1, committed=kill)
    for expander in (after, small_trace()):  # in the same process, and in a new one
        expander.load_state_dict(saved)
        assert forest_record(play(expander, TASKS, step=1)) == expected
        assert expander.metrics() == first.metrics()


def test_what_a_broken_off_rollout_left_is_forgotten():
    expander = TRACE(4, 1, Told({}))

    def kill(tree, turn):
        if turn.depth == 2:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        play(expander, [a_task()], step=1, committed=kill)
    assert expander._growing
    play(expander, [a_task()], step=2)
    assert expander._growing == {}


def test_tasks_of_one_turn_are_still_known_after_resuming():
    one, other = (TRACE(4, 3, Told({})) for _ in range(2))
    tasks = [a_task("one", turns=1), a_task("three")]
    play(one, tasks)
    other.load_state_dict(through_a_file(one.state_dict()))
    assert [len(tree.root.children) for tree in play(other, tasks, step=1)] == [4, 3]


HEAVY = ["torch", "transformers", "accelerate", "agentgym.policies.transformers", "agentgym.trainers.loop"]
STEPS = 5


def start(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    from resumable_run import main_with_trace

    run = context.Process(target=main_with_trace, args=(folder, STEPS))
    run.start()
    return run


def test_training_with_trace_that_is_killed_in_mid_expansion_ends_like_one_that_was_not(tmp_path):
    pytest.importorskip("accelerate")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = start(whole)
    run.join(timeout=200)
    assert run.exitcode == 0
    forks = [turn for tree in RunStore.open(whole).trees() for turn in tree.turns if turn.parent and len(turn.children) > 1]
    assert forks, "nothing was expanded, so nothing was compared"
    log, run = killed / "turns.jsonl", start(killed)
    while run.is_alive() and not (log.exists() and log.stat().st_size > 0.7 * (whole / "turns.jsonl").stat().st_size):
        time.sleep(0.002)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    assert any(not turn.children and turn.end is None for tree in RunStore.open(killed).trees() for turn in tree.turns)
    run = start(killed)
    run.join(timeout=200)
    assert run.exitcode == 0
    for name in ("weights", "metrics.jsonl", "turns.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


# The shared predictor.


class Skill:
    """Wins easy tasks nine times out of ten, hard ones once; a first letter b is always a mistake."""

    async def generate(self, prompt, sampling):
        rng = random.Random(sampling.seed)
        wins = rng.random() < (0.9 if "easy" in prompt.tree.task.prompt else 0.1)
        return Generation(text="a" if wins else "b")


def some_tasks(step):
    rng = random.Random(step)
    return [
        Task(f"{kind}{step}-{i}", f"An {kind} word, please, number {rng.randrange(99)}.", ["a", "aa"], data={"turns": 2})
        for i in range(6)
        for kind in ("easy", "hard")
    ]


def taught(forests):
    predictor = SharedPredictor(warm_up=3)
    for step in range(forests):
        forest = play(TRACE(48, 2, Told({})), some_tasks(step), Skill(), step)
        predictor.learn(forest)
    return predictor


def test_the_shared_predictor_tells_easy_tasks_from_hard_ones_that_it_never_saw():
    predictor = taught(8)
    trees = play(TRACE(12, 0, Told({}, cold=True)), some_tasks(99), Skill())
    roots = predictor.predict([Prompt(tree, tree.root) for tree in trees])
    easy, hard = roots.value[::2], roots.value[1::2]
    assert easy.min() > hard.max() + 0.3
    assert (easy.mean(), hard.mean()) == (pytest.approx(0.9, abs=0.15), pytest.approx(0.1, abs=0.15))
    begun = [turn for tree in trees for turn in prefixes(rewards_through(tree))]
    assert begun
    values = predictor.predict([Prompt(tree, turn) for tree in trees for turn in prefixes(rewards_through(tree))]).value
    lost = [value for value, turn in zip(values, begun, strict=True) if turn.action == "b"]
    won = [value for value, turn in zip(values, begun, strict=True) if turn.action == "a"]
    assert max(lost) < np.mean(won)  # a mistake is seen in the prefix, on any task
    assert {"predictor_loss", "predictor_updates"} <= predictor.metrics().keys()


def test_a_predictor_that_knows_nothing_says_one_half_and_a_young_one_leans_on_the_mean():
    predictor = SharedPredictor(warm_up=4)
    tree = a_group(id="new")
    anchor = [Prompt(tree, tree.root)]
    assert predictor.predict(anchor).value.tolist() == [0.5]
    predictor.learn([a_group(1, 1, 1, 0, id="other")])
    with torch.no_grad():
        own = float(predictor._forward(predictor._features(anchor)))
    assert predictor.cold
    assert predictor.predict(anchor).value == near([0.75 * 0.75 + 0.25 * own])
    assert len(predictor.predict([]).value) == 0


def test_predictions_stay_away_from_certainty():
    predictor = SharedPredictor(hidden=4, words=8, warm_up=1)
    tree = a_group(1)
    predictor.learn([tree])
    for certain, limit in ((30.0, 0.995), (-30.0, 0.005)):
        predictor.model[-1].bias.data.fill_(certain)
        assert predictor.predict([Prompt(tree, tree.root)]).value.tolist() == [limit]


def test_the_shared_predictor_is_saved_to_the_last_bit():
    one = taught(3)
    other = SharedPredictor(warm_up=3)
    other.load_state_dict(through_a_file(one.state_dict()))
    for step in (3, 4):
        forest = play(TRACE(48, 2, Told({})), some_tasks(step), Skill(), step)
        anchors = [Prompt(tree, tree.root) for tree in forest]
        assert one.predict(anchors).value.tolist() == other.predict(anchors).value.tolist()
        one.learn(forest)
        other.learn(forest)
        assert one.metrics() == other.metrics()


def test_the_predictor_leaves_the_random_numbers_of_others_alone():
    before = torch.get_rng_state()
    taught(1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.text())
def test_a_bag_of_words_has_mean_square_one_or_is_nothing(text):
    square = np.mean(hashed_words(text, 16) ** 2)
    assert square == (pytest.approx(1.0) if re.search(r"\w", text) else 0.0)
    assert hashed_words(text, 16).tolist() == hashed_words(text.lower(), 16).tolist()


# Calibration.


def test_predicted_and_realised_contrast_are_logged_side_by_side():
    calibration = Calibration()
    calibration.root(0.5, math.inf, [1.0, 0.0])
    calibration.root(0.9, math.inf, [1.0, 1.0, 1.0])
    calibration.root(0.9, math.inf, [1.0])  # one rollout cannot be mixed
    calibration.prefix(Bet(add_turn(TurnTree("", Task("", "")), None, []), 0, 2, 0.3, True, 1, math.inf), [1.0, 0.0])
    calibration.prefix(Bet(add_turn(TurnTree("", Task("", "")), None, []), 0, 2, 0.9, False, 1, math.inf), [])  # lost
    metrics = calibration.metrics()
    assert metrics["root_contrast_predicted"] == near((0.5 + 0.27) / 2)
    assert metrics["root_contrast_realised"] == 0.5
    assert metrics["root_contrast_brier"] == near((0.5**2 + 0.27**2) / 2)
    assert (metrics["prefix_contrast_predicted"], metrics["prefix_contrast_realised"]) == (near(0.51), 1.0)


def test_a_forest_logs_its_calibration():
    expander = TRACE(2, 1, Told({("t", "aa"): 0.4}))
    two_chains(expander)
    metrics = expander.metrics()
    assert (metrics["root_contrast_predicted"], metrics["root_contrast_realised"]) == (near(0.5), 1.0)
    assert (metrics["prefix_contrast_predicted"], metrics["prefix_contrast_realised"]) == (near(0.6), 1.0)
    play(expander, [Task("broken", "", None)], step=1)
    assert "root_contrast_predicted" not in expander.metrics()  # nothing of an earlier forest


def test_a_branch_is_judged_by_the_episode_that_it_began_with():
    tree, turns = worked_tree()
    assert first_rewards([turns["a1"], turns["c2"], turns["d2"]]) == [1.0, 0.0, 1.0]
    lost = add_turn(tree, tree.root, [2], 1, end="error", reward=None)
    assert first_rewards([lost, turns["b1"]]) == [0.0]
