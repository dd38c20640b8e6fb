"""Credits that compare whole episodes: the worked numbers of each, and what holds for all."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from credits import advantage, assigned, credited, group, near
from forests import add_turn
from hypothesis import given
from hypothesis import strategies as st
from steps import one_step

from agentgym.action import call
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.rollout import Limits
from agentgym.task import Task
from agentgym.trainers.credit.answers import FinalCall, FinalState
from agentgym.trainers.credit.dagrpo import DaGRPO
from agentgym.trainers.credit.dapo import DAPO, overlong
from agentgym.trainers.credit.distinctness import ByEdits
from agentgym.trainers.credit.dr_grpo import DrGRPO, mean_centred
from agentgym.trainers.credit.drpo import DRPO, coefficients
from agentgym.trainers.credit.fapo import FAPO, outcomes, verifier_reward
from agentgym.trainers.credit.grpo import GRPO, group_advantages
from agentgym.trainers.credit.mc_grpo import MCGRPO, lower_median, median_centred
from agentgym.trainers.credit.olr import OLR, is_refined, mode, trend
from agentgym.trainers.credit.pow3r import POW3R, aware_weights
from agentgym.trainers.credit.rloo import RLOO, leave_one_out
from agentgym.trainers.credit.streams import check_streams
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.turn import TurnTree

RUBRIC = {"content": {"right": 3.0, "cited": 1.0}, "style": {"short": 2.0}}
EVERY = {
    "GRPO": GRPO,
    "RLOO": RLOO,
    "DrGRPO": DrGRPO,
    "DAPO": lambda: DAPO(longest=100, cache=10),
    "MCGRPO": MCGRPO,
    "MCGRPO mad": lambda: MCGRPO("mad", reweigh=True),
    "MCGRPO std": lambda: MCGRPO("std"),
    "MCGRPO none": lambda: MCGRPO("none"),
    "FAPO": FAPO,
    "DRPO": lambda: DRPO(longest=100),
    "DaGRPO": lambda: DaGRPO(ByEdits()),
    "OLR": OLR,
}
OF_ANY_REWARD = ("GRPO", "RLOO", "DrGRPO", "DAPO", "MCGRPO", "MCGRPO mad", "MCGRPO std", "MCGRPO none", "OLR")  # and of no constant
binary = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9)


# The worked numbers.


def test_rloo_and_dr_grpo():
    assert credited(RLOO(), group(1, 0, 0, 0)) == near([1, -1 / 3, -1 / 3, -1 / 3])
    assert credited(DrGRPO(), group(1, 0, 0, 0)) == near([0.75, -0.25, -0.25, -0.25])


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=9))
def test_rloo_is_the_reward_less_the_mean_of_the_others(rewards):
    values = np.array(rewards) / 4
    others = [(values.sum() - value) / (len(values) - 1) for value in values]
    assert leave_one_out(values) == pytest.approx(values - others, abs=1e-12)


def test_the_overlong_penalty():
    assert overlong(np.array([16384, 18432, 20480, 20481]), 20480, 4096).tolist() == near([0, -0.5, -1, -1])


def test_dapo_counts_the_sampled_tokens_of_the_whole_episode():
    tree = TurnTree("tree", Task("task", ""))
    first = add_turn(tree, add_turn(tree, None, [1]), [2] * 6, 4)
    add_turn(tree, first, [3] * 4, 4, end="done", reward=1.0)
    add_turn(tree, tree.root, [3] * 5, 5, end="done", reward=1.0)
    credited(DAPO(longest=10, cache=4), tree)  # 8 tokens cost 0.5, 5 cost nothing
    assert [advantage(leaf) for leaf in tree.leaves()] == pytest.approx(group_advantages(np.array([0.5, 1.0])))


@pytest.mark.parametrize(
    ("rewards", "plain", "reweighed"),
    [
        ([1, 0.2, 0.5], [1.661130, -0.996678, 0], [2.491694, -1.495017, 0]),
        ([1, 0.8, 0.5, 0.1, 0], [1.246883, 0.748130, 0, -0.997506, -1.246883], [1.558603, 0.935162, 0, -1.246883, -1.558603]),
        ([1, 0, 0], [1000, 0, 0], [3000, 0, 0]),
        ([1, 1, 1], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_mc_grpo_as_its_reference_scales(rewards, plain, reweighed):
    assert credited(MCGRPO("mad"), group(*rewards)) == near(plain)
    assert credited(MCGRPO("mad", reweigh=True), group(*rewards)) == near(reweighed)


def test_mc_grpo_is_guarded_where_most_rewards_are_alike_and_as_its_reference_elsewhere():
    assert credited(MCGRPO(), group(1, 0, 0)) == near([3**0.5, 0, 0])
    assert credited(MCGRPO(), group(1, 0.2, 0.5)) == near([1.661130, -0.996678, 0])
    assert credited(MCGRPO("none"), group(1, 0, 0)) == [1, 0, 0]
    assert credited(MCGRPO("std"), group(1, 0.2, 0.5)) == near([0.5 / 0.404145, -0.3 / 0.404145, 0])
    assert credited(MCGRPO(), group(1, 0)) == credited(GRPO(), group(1, 0))


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=9))
def test_mc_grpo_stays_within_bounds_for_binary_rewards(rewards):
    assert np.abs(median_centred(np.array(rewards))).max() <= len(rewards) ** 0.5 + 1e-9


def test_the_lower_median_of_an_even_number():
    assert lower_median(np.array([4.0, 1.0, 3.0, 2.0])) == 2.0


def test_fapo():
    flawed = [{}, {"first_error": 3.0}, {"first_error": -1.0}, {"first_error": 2.0}]
    assert credited(FAPO(), group(1, 1, 0, 0, metrics=flawed)) == near([1.305581, 0.261116, -0.783349, -0.783349])
    mostly_clean = [{"first_error": -1.0}, {"first_error": float("nan")}, {"first_error": 0.0}, {}]
    assert credited(FAPO(), group(1, 1, 1, 0, metrics=mostly_clean)) == near([0.783349, 0.783349, -0.261116, -1.305581])
    assert verifier_reward(3, 5, 10) == near(0.8)
    said = [(-1, -1), (-1, 2), (2, -1), (2, None)]
    assert [verifier_reward(true, found, 4) for true, found in said] == [1, -1, -1, -1]
    assert outcomes(np.array([True, True]), np.array([True, True])).tolist() == [0, 0]


@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5))
def test_fapo_encourages_a_flawed_success_exactly_while_fewer_are_clean_than_wrong(clean, flawed, wrong):
    right = np.array([True] * (clean + flawed) + [False] * wrong)
    found = group_advantages(outcomes(right, np.array([False] * clean + [True] * flawed + [False] * wrong)))[clean]
    assert np.sign(found) == np.sign(wrong - clean)


def test_drpo():
    scores, share = np.array([-1, -1.2, -0.8, -1.5]), np.array([0.25, 0.75, 0.5, 0.9])
    right = np.array([True, True, False, False])
    found = coefficients(scores, right, share)
    assert found == near([0.993307, 0.006693, -0.517493, -0.482507])
    assert coefficients(scores, right, share, sharpness=1.0)[:2] == near([0.622459, 0.377541])

    def objective(s):
        return found[:2] @ s[:2] - 10 * np.log(np.mean(np.exp(s[2:] / 10)))

    assert objective(scores) == near(0.142538)
    step = 1e-6 * np.eye(4)
    assert found == pytest.approx([(objective(scores + d) - objective(scores - d)) / 2e-6 for d in step], abs=1e-6)


def test_drpo_reads_lengths_and_log_probabilities_from_the_tree():
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1])
    leaves = [add_turn(tree, root, [2] * n, n, end="done", reward=r) for n, r in ((2, 1.0), (6, 1.0), (4, 0.0), (5, 0.0))]
    for leaf, mean in zip(leaves, (-1, -1.2, -0.8, -1.5), strict=True):
        leaf.logprobs = [mean] * len(leaf.ids)
    assert credited(DRPO(longest=8), tree) == near([4 * 0.993307, 4 * 0.006693, -4 * 0.517493, -4 * 0.482507])
    tree.root.children[0].logprobs = []
    with pytest.raises(AgentGymError, match="task task: the episode that ends in turn 1 has no sampled token"):
        credited(DRPO(longest=8), tree)


def test_pow3r():
    found = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]])
    assert aware_weights(found, np.array([3.0, 1, 2]), [0, 0, 1]) == near([0.857143, 3.142857, 2])
    metrics = [dict(zip(("right", "cited", "short"), row, strict=True)) for row in found.tolist()]
    tree = group(0, 0, 0, 0, metrics=metrics)
    assert credited(POW3R(RUBRIC), tree) == near([0.423924, -0.819587, 1.215249, -0.819587])
    static = found @ [3, 1, 2] / 6
    assert static == near([0.666667, 0.5, 1, 0.5])
    assert (group_advantages(static), static.std(ddof=1)) == (near([0, -0.707104, 1.414208, -0.707104]), near(0.235702))
    assert (found @ [0.857143, 3.142857, 2] / 6).std(ddof=1) == near(0.421233)


def test_pow3r_leaves_a_saturated_rubric_as_it_is_and_keeps_signs():
    weights = np.array([3.0, -1, 2])
    assert aware_weights(np.array([[1, 0, 1], [1, 0, 1]]), weights, [0, 0, 1]) == near(weights)
    moved = aware_weights(np.array([[1, 0, 1], [1, 1, 1]]), weights, [0, 0, 1])
    assert (np.sign(moved) == np.sign(weights)).all()
    assert np.abs(moved[:2]).sum() == near(4)
    with pytest.raises(AgentGymError, match="weighs nothing"):
        POW3R({"style": {}})


def test_pow3r_refuses_scores_that_are_missing_or_out_of_range():
    whole = {"right": 1.0, "cited": 0.0, "short": 1.0}
    with pytest.raises(AgentGymError, match="task task: the episode that ends in turn 2 has no finite metric 'short'"):
        credited(POW3R(RUBRIC), group(0, 0, metrics=[whole, {"right": 1.0, "cited": 0.0}]))
    with pytest.raises(AgentGymError, match="task task: a criterion's score in turn 2 lies outside"):
        credited(POW3R(RUBRIC), group(0, 0, metrics=[whole, {**whole, "cited": 1.5}]))


def test_dagrpo():
    fine = [{"score": score} for score in (0.9, 0.55, 0.5, 0.1)]
    assert credited(DaGRPO(), group(1, 1, 0, 0, metrics=fine)) == near([0.866024, 0.433012, -0.433012, -0.866024])
    assert group_advantages(np.array([0.0, 0, 0, 0, 1])) == near([*[-0.447213] * 4, 1.788850])


def test_dagrpo_counts_a_difference_of_exactly_delta_and_masks_pairs_that_are_closer():
    def scored(*values):
        return credited(DaGRPO(), group(1, 0, metrics=[{"score": value} for value in values]))

    assert scored(0.9, 0.7) == near([0.707106, -0.707106])
    assert scored(0.9, 0.71) == [0, 0]
    assert scored(0.1, 0.9) == [0, 0]


def test_dagrpo_by_edits_masks_episodes_that_differ_in_few_tokens():
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1])
    add_turn(tree, root, [2] * 10, 10, end="done", reward=1.0)
    add_turn(tree, root, [2] * 9 + [3], 10, end="done", reward=0.0)
    assert credited(DaGRPO(ByEdits()), tree) == [0, 0]
    tree.turns[2].ids[:2] = [3, 3]
    assert credited(DaGRPO(ByEdits()), tree) == near([0.707106, -0.707106])


@pytest.mark.parametrize(
    ("shares", "slope"),
    [([0.25, 0.375, 0.5, 0.625], 0.125), ([0.25, 0.25, 0.375, 0.25], 0.0125), ([0.5], 0), ([0.2, 0.25, 0.3, 0.35], 0.05)],
)
def test_the_trend_of_a_share(shares, slope):
    assert trend(shares) == near(slope)


def test_olr_refines_a_label_to_a_majority_that_is_stable_and_grows():
    rising = [0.25, 0.375, 0.5, 0.625]
    assert is_refined(rising, ["7", "9", "9", "9"], "9")
    assert not is_refined(rising, ["7", "9", "9", "9"], "7")
    assert not is_refined(rising, ["7", "9", "9", "9"], None)
    assert not is_refined([0.25, 0.25, 0.375, 0.25], ["9"] * 4, "9")
    assert is_refined([0.2, 0.25, 0.3, 0.35], ["9"] * 4, "9"), "0.04999999999999998 is 0.05"
    assert (mode(["7", "9", "9", None]), mode(["7", "9"]), mode([])) == ("9", None, None)


def answering(*answers, rewards, task="task"):
    tree = group(*rewards, task=task)
    for leaf, answer in zip(tree.leaves(), answers, strict=True):
        leaf.action = call("answer", Text=answer) if answer else "no call"
    return tree


def visited(credit, visits):
    for right in visits:
        wrong_label = [0.0] * right + [1.0] + [0.0] * (7 - right)
        others = ["x", "y", "z", None, "v", "w", "u"][: 7 - right]
        found = credited(credit, answering(*["nine"] * right, "seven", *others, rewards=wrong_label))
        yield found, credit.metrics()["refined"]


def test_olr_teaches_its_refined_label_after_the_first_visits():
    seen = list(visited(OLR(), [2, 3, 4, 5, 6]))
    assert [refined for _, refined in seen] == [0, 0, 0, 0, 1]
    assert seen[3][0][0] < 0 < seen[3][0][5]  # by the label as given, nine is wrong
    assert seen[4][0] == near([*group_advantages(np.array([1.0] * 6 + [0, 0]))])


def test_olr_goes_on_where_it_was_saved():
    first, second = OLR(), OLR()
    list(visited(first, [2, 3, 4]))
    second.load_state_dict(first.state_dict())
    assert list(visited(second, [5, 6])) == list(visited(first, [5, 6]))


def test_answers_are_compared_in_one_form():
    tree = group(1, 0, 0)
    for leaf, text in zip(tree.leaves(), (call("a", x="Two", y=1), call("a", y=1, x="two"), call("a", y=2, x="two")), strict=True):
        leaf.action = text
    one, other, third = map(FinalCall(), tree.leaves())
    assert one == other != third
    assert FinalState()(tree.leaves()[0]) == "end"


# What holds for all.


@pytest.mark.parametrize("name", EVERY)
@given(rewards=binary, rng=st.randoms(use_true_random=False))
def test_permuted_episodes_have_permuted_advantages(name, rewards, rng):
    order = list(range(len(rewards)))
    rng.shuffle(order)
    straight, permuted = group(*rewards), TurnTree("tree", Task("task", ""))
    root = add_turn(permuted, None, [1], key="start")
    for i in order:
        leaf = straight.leaves()[i]
        add_turn(permuted, root, leaf.ids, 2, end="done", reward=leaf.reward)
    expected = credited(EVERY[name](), straight)
    assert credited(EVERY[name](), permuted) == pytest.approx([expected[i] for i in order], abs=1e-9)


@pytest.mark.parametrize("name", OF_ANY_REWARD)
@given(rewards=st.lists(st.integers(-8, 8), min_size=1, max_size=9), constant=st.integers(-100, 100))
def test_a_constant_on_all_rewards_changes_nothing(name, rewards, constant):
    quarters = [reward / 4 for reward in rewards]
    moved = [reward + constant for reward in quarters]
    assert credited(EVERY[name](), group(*moved)) == pytest.approx(credited(EVERY[name](), group(*quarters)), abs=1e-9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_all_right_all_wrong_and_a_group_of_one_teach_nothing(name, n, reward):
    assert credited(EVERY[name](), group(*[reward] * n)) == [0.0] * n


@pytest.mark.parametrize("function", [group_advantages, leave_one_out, mean_centred, median_centred])
@pytest.mark.parametrize(("n", "reward"), [(6, 9.025), (3, 7.737809), (1, 0.3), (16, 1 / 3)])
def test_equal_rewards_in_float32_give_exactly_zero(function, n, reward):
    assert function(np.full(n, reward, dtype=np.float32)).tolist() == [0.0] * n


@pytest.mark.parametrize("function", [group_advantages, leave_one_out, mean_centred, median_centred])
def test_rewards_that_are_equal_but_for_rounding_give_exactly_zero(function):
    assert function(np.array([0.1 + 0.2, 0.3, 0.3])).tolist() == [0.0] * 3


@pytest.mark.parametrize("function", [group_advantages, leave_one_out, mean_centred, median_centred])
def test_statistics_are_in_float64_whatever_comes_in(function):
    rewards = np.array([0.1, 0.7, 0.7, 0.3, 0.2], dtype=np.float32)
    assert function(rewards).dtype == np.float64
    assert function(rewards).tolist() == function(rewards.astype(np.float64)).tolist()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused_by_task_and_turn(name, broken):
    with pytest.raises(AgentGymError, match=r"task zebra: the reward of the episode that ends in turn 2 .* must be finite"):
        credited(EVERY[name](), group(1.0, broken, task="zebra"))


@pytest.mark.parametrize("name", EVERY)
def test_an_episode_without_a_verdict_is_in_no_statistics(name):
    broken = group(1, None, 0, 0)
    whole = TurnTree("tree", Task("task", ""))
    root = add_turn(whole, None, [1])
    for leaf in broken.leaves():
        if leaf.reward is not None:
            add_turn(whole, root, leaf.ids, 2, end="done", reward=leaf.reward)
    found, expected = credited(EVERY[name](), broken), credited(EVERY[name](), whole)
    assert [found[0], *found[2:]] == expected
    assert found[1] == 0
    assert credited(EVERY[name](), group(None)) == [0]
    assert EVERY[name]().metrics() == {}


@pytest.mark.parametrize("name", [name for name in EVERY if name != "GRPO"])
def test_all_trees_of_a_task_are_one_group_and_those_of_others_are_in_none_of_it(name):
    one = credited(EVERY[name](), group(1, 0, 0, 0, 1))
    found = credited(EVERY[name](), group(1, 0), group(0, 1, 0, task="other"), group(0, 0, 1, first=2))
    assert [*found[:2], *found[5:]] == pytest.approx(one)


def test_unlike_tasks_of_one_id_are_refused():
    with pytest.raises(AgentGymError, match="task zebra: turn 0 of tree second has another prompt"):
        credited(RLOO(), group(1, 0, task="zebra", prompt="a"), group(1, 0, task="zebra", prompt="b", name="second"))


def test_a_shared_turn_has_the_mean_of_its_episodes_and_labels_have_nothing():
    tree = TurnTree("tree", Task("task", ""))
    shared = add_turn(tree, add_turn(tree, None, [1]), [2, 5], 1)
    ends = [add_turn(tree, parent, [3, 4], 1, end="done", reward=r) for parent, r in ((shared, 1.0), (shared, 0.0), (tree.root, 0.0))]
    label = add_turn(tree, shared, [6], 1, executed=False, end="done", reward=1.0)
    assigned(RLOO(), tree)
    assert [advantage(end) for end in ends] == near([1, -0.5, -0.5])
    assert advantage(shared) == near(0.25)
    assert not label.streams["advantage"].any()
    assert shared.streams["advantage"][1] == 0


def test_metrics_say_how_many_groups_teach():
    metrics = assigned(RLOO(), group(1, 0), group(1, 1, task="other"))
    assert metrics == {"reward": 0.75, "groups_with_signal": 0.5, "contrasts_per_kilotoken": 125.0}
    assert np.isnan(assigned(RLOO(), group(None))["reward"])
    asyncio.run(RLOO().assign([], {}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: DAPO(10, 0), "cache is 0"),
        (lambda: MCGRPO("median"), "scale is 'median': choose one of guarded, mad, std, none"),
        (lambda: DRPO(0), "must lie above 0"),
    ],
)
def test_options_that_cannot_be_are_refused_at_construction(wrong, message):
    with pytest.raises(AgentGymError, match=message):
        wrong()


def test_drpo_takes_no_rewards_between_right_and_wrong():
    with pytest.raises(AgentGymError, match=r"task task: the episode that ends in turn 2 has reward 0\.5"):
        credited(DRPO(100), group(1, 0.5))


# What every credit must keep to.


def test_an_advantage_on_a_token_that_nobody_sampled_is_refused_by_task_and_turn():
    tree = group(1, 0, task="zebra")
    assigned(RLOO(), tree)
    tree.turns[2].streams["advantage"][2] = 0.1
    with pytest.raises(AgentGymError, match=r"task zebra, turn 2 of tree tree: .* a token that nobody sampled"):
        check_streams([tree])


def test_an_advantage_that_is_missing_of_another_shape_or_not_finite_is_refused():
    tree = group(1, 0)
    with pytest.raises(AgentGymError, match="turn 0 of tree tree: the credit wrote none"):
        check_streams([tree])
    assigned(RLOO(), tree)
    tree.turns[1].streams["advantage"] = np.zeros(1)
    with pytest.raises(AgentGymError, match=r"turn 1 .* shape \(1,\) as advantage of its 3 tokens"):
        check_streams([tree])
    tree.turns[1].streams["advantage"] = np.array([np.nan, 0, 0])
    with pytest.raises(AgentGymError, match=r"turn 1 .* not finite"):
        check_streams([tree])


class Careless(RLOO):
    """Writes on every token."""

    async def assign(self, trees, models):
        for turn in trees[0].turns:
            turn.streams["advantage"] = np.ones(len(turn.ids))


class Ready(Synchronous):
    """Has a batch that was played before."""

    def select(self, ready, version):
        return [group(1, 0, task="zebra")]


class NoTasks:
    def draw(self, n):
        return []

    def observe(self, trees):
        pass


def test_the_loop_does_not_learn_from_an_advantage_on_a_token_that_nobody_sampled():
    learner = SimpleNamespace(version=0, discard=lambda: None)
    given = {"make_env": None, "actor": None, "chat": None, "models": {}, "limits": Limits(), "batch": 0, "seed": 0}
    run = SimpleNamespace(schedule=Ready(), source=NoTasks(), expander=Groups(1), credit=Careless(), learner=learner, **given)
    with pytest.raises(AgentGymError, match=r"task zebra, turn 0 of tree tree: .* a token that nobody sampled"):
        one_step(run)
