import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.statistics import (
    clustered_interval,
    compare,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    success_at_k,
    t_quantile,
)


def by_task(rows):
    return {f"task-{i}": list(map(float, row)) for i, row in enumerate(rows)}


def coverage(truth, intervals):
    return np.mean([i.low <= truth <= i.high for i in intervals])


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_and_pass_hat_k_count_the_subsets_of_k_trials(case):
    n, c, k = case
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    assert pass_hat_k(n, c, k) == pytest.approx(np.mean([all(s) for s in subsets]))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 2), (4, -1, 2), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    for estimator in (pass_at_k, pass_hat_k):
        with pytest.raises(AgentGymError, match=r"k = |impossible"):
            estimator(n, c, k)


def test_success_at_k_averages_over_tasks():
    result = success_at_k({"a": [True, True, False, False], "b": [True, False, False, False], "c": [False] * 4}, 2)
    assert result.average.estimate == pytest.approx(0.25)
    assert result.any_of_k.estimate == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert result.all_of_k.estimate == pytest.approx((1 / 6 + 0 + 0) / 3)


@pytest.mark.parametrize(
    ("probability", "degrees", "table"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.3026527),
        (0.975, 3, 3.1824463),
        (0.975, 4, 2.7764451),
        (0.975, 9, 2.2621572),
        (0.975, 30, 2.0422725),
        (0.975, 120, 1.9799304),
        (0.95, 7, 1.8945786),
        (0.995, 2, 9.9248432),
        (0.9995, 15, 4.0727652),
        (0.025, 10, -2.2281389),
    ],
)
def test_students_quantiles_are_those_of_the_tables(probability, degrees, table):
    assert t_quantile(probability, degrees) == pytest.approx(table, abs=2e-7)


def test_students_quantile_tends_to_the_normal_one():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=5e-5)
    with pytest.raises(AgentGymError):
        t_quantile(1.0, 3)


@pytest.mark.parametrize("successes", [0, 1])
def test_all_alike_still_has_a_width(successes):
    interval = clustered_interval(by_task([[successes] * 4] * 20))
    z2 = t_quantile(0.975, 19) ** 2
    width = z2 / (20 + z2)  # of Wilson's interval at 0 or 1; 20 tasks, not 80 trials
    assert interval.estimate == successes
    assert interval.high - interval.low == pytest.approx(width)
    assert 0 <= interval.low <= interval.high <= 1


def test_repeats_that_agree_add_no_information():
    once, often = by_task([[1], [0], [1], [1], [0]]), by_task([[1] * 8, [0] * 8, [1] * 8, [1] * 8, [0] * 8])
    assert clustered_interval(once).low == pytest.approx(clustered_interval(often).low)
    assert clustered_interval(often).high < 1


def test_every_task_weighs_the_same():
    assert clustered_interval({"a": [1.0] * 10, "b": [0.0]}).estimate == 0.5


def test_other_values_take_students_interval():
    values = np.array([-1.0, 0.5, 2.0, 3.5])
    interval = clustered_interval(by_task(values[:, None]))
    half = t_quantile(0.975, 3) * values.std(ddof=1) / 2
    assert (interval.low, interval.high) == (pytest.approx(1.25 - half), pytest.approx(1.25 + half))


def test_one_task_bounds_nothing():
    one = clustered_interval({"a": [1.0, 0.0]})
    assert (one.estimate, one.low, one.high) == (0.5, 0.0, 1.0)
    assert clustered_interval({"a": [-2.0, 0.0]}).high == math.inf
    assert paired_difference({"a": [0.0]}, {"a": [1.0]}).minimal_detectable_difference == math.inf


def test_missing_values_are_refused_not_averaged():
    for values in ({}, {"a": []}, {"a": [1.0, math.nan]}, {"a": [None]}):
        with pytest.raises(AgentGymError, match=r"task"):
            clustered_interval(values)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=1, max_size=12))
def test_an_interval_of_unit_values_stays_within_the_unit_interval(rows):
    interval = clustered_interval(by_task(rows))
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1


@pytest.mark.parametrize("tasks", [20, 60])
@pytest.mark.parametrize(("repeats", "correlation"), [(1, 0.0), (4, 0.0), (4, 0.3), (8, 0.6)])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.75, 0.9])
def test_intervals_cover_the_truth(tasks, repeats, correlation, p):
    rng = np.random.default_rng([tasks, repeats, int(100 * p)])
    size = (500, tasks)
    if correlation:  # beta-binomial: the tasks differ in difficulty
        spread = 1 / correlation - 1
        rates = rng.beta(p * spread, (1 - p) * spread, size)
    else:
        rates = np.full(size, p)
    trials = rng.random((*size, repeats)) < rates[..., None]
    assert coverage(p, [clustered_interval(by_task(rows)) for rows in trials]) >= 0.93


@pytest.mark.parametrize(("rates", "shared"), [((0.3, 0.6), 0.5), ((0.1, 0.9), 0.0)])
def test_intervals_of_differences_cover_the_truth(rates, shared):
    rng = np.random.default_rng(7)
    difficulty = rng.random((400, 30, 1))
    a, b = (rng.random((400, 30, 2)) < (1 - shared) * rate + shared * (difficulty < rate) for rate in rates)
    found = [paired_difference(by_task(x), by_task(y)).difference for x, y in zip(a, b, strict=True)]
    assert coverage(rates[1] - rates[0], found) >= 0.93


def test_the_interval_of_a_difference_is_nearly_students_for_many_tasks():
    rng = np.random.default_rng(2)
    difficulty = rng.random((600, 1))
    a, b = (rng.random((600, 4)) < 0.5 * rate + 0.5 * (difficulty < rate) for rate in (0.4, 0.6))
    differences = b.mean(axis=1) - a.mean(axis=1)
    student = 2 * t_quantile(0.975, 599) * differences.std(ddof=1) / math.sqrt(600)
    found = paired_difference(by_task(a), by_task(b)).difference
    assert found.estimate == pytest.approx(differences.mean())
    assert found.high - found.low == pytest.approx(student, rel=0.02)


def test_a_difference_between_none_and_all_has_a_width():
    result = paired_difference(by_task([[0.0]] * 20), by_task([[1.0]] * 20))
    assert result.difference.estimate == result.difference.high == 1
    assert 0.6 < result.difference.low < 0.9
    assert result.p_value < 1e-4


def test_exact_p_value_enumerates_all_signs():
    differences = [0.3, 0.1, 0.4, -0.2, 0.25]
    result = paired_difference(by_task([[0.0]] * 5), by_task([[d] for d in differences]))
    observed = abs(sum(differences))
    flips = itertools.product([-1, 1], repeat=5)
    exact = np.mean([abs(np.dot(signs, differences)) >= observed - 1e-12 for signs in flips])
    assert result.p_value == exact


def test_sampled_p_value_agrees_with_the_binomial_test():
    differences = [1.0] * 20 + [-1.0] * 10
    result = paired_difference(by_task([[0.0]] * 30), by_task([[d] for d in differences]))
    exact = 2 * sum(math.comb(30, i) for i in range(20, 31)) / 2**30
    assert result.p_value == pytest.approx(exact, abs=0.008)
    assert result == paired_difference(by_task([[0.0]] * 30), by_task([[d] for d in differences]))


def test_equal_results_give_no_evidence():
    same = by_task([[1.0], [0.0], [1.0]])
    result = paired_difference(same, same)
    assert result.p_value == 1.0
    assert result.difference.low < 0 < result.difference.high


def test_pairing_removes_the_difficulty_of_the_tasks():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, 50)
    result = paired_difference(by_task(level[:, None]), by_task((level + 1 + rng.normal(0, 0.1, 50))[:, None]))
    assert result.difference.low > 0.9
    assert result.minimal_detectable_difference < 0.1


def test_the_detectable_difference_is_found_in_four_of_five_experiments():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (150, 30))
    zero = by_task(np.zeros((30, 1)))
    sizes = [paired_difference(zero, by_task(row[:, None])).minimal_detectable_difference for row in noise[:20]]
    found = [paired_difference(zero, by_task((row + np.mean(sizes))[:, None])).p_value <= 0.05 for row in noise]
    assert 0.72 <= np.mean(found) <= 0.88


def test_a_comparison_reads_the_common_tasks_alone():
    a, b = {"x": [0.0], "y": [1.0], "only a": [1.0]}, {"x": [1.0], "y": [1.0], "only b": [0.0], "more": [0.0]}
    result = compare(a, b)
    assert (result.a.estimate, result.b.estimate, result.paired.difference.estimate) == (0.5, 1.0, 0.5)
    assert (result.paired.difference.n, result.left_out) == (2, 3)


def test_nothing_in_common_is_refused():
    with pytest.raises(AgentGymError, match="no task in common"):
        compare({"a": [1.0]}, {"b": [1.0]})
