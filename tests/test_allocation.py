"""Where rollouts are spent: the worked numbers, and allocations against all others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from credits import near
from hypothesis import given, settings
from hypothesis import strategies as st
from words import VALUES, chance

from agentgym.errors import AgentGymError
from agentgym.trainers.expanders.allocation import allocate_roots, block_greedy, dynamic_programme, root_contrasts
from agentgym.trainers.expanders.continuations import allocate_prefixes, flip_probability, prefix_contrast

WIN, LOSE = {True}, {False}


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


# Against all others.


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
