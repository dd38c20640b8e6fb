"""Plans that branch within episodes: where they branch, what they spend, and that nothing but the trees and seeds decides."""

import asyncio
import json
import math

import numpy as np
import orjson
import pytest
from forests import add_turn
from hypothesis import given
from hypothesis import strategies as st
from test_rollout import Counter, tiny_chat
from token_actors import Babbles, Writes

from agentgym import AgentGymError, Limits, Lineage, Outcome, Rollout, Start, Task, call
from agentgym.policies.scripted import Scripted
from agentgym.store import RunStore, turn_record
from agentgym.trainers.expanders.aepo import AEPO, likelihood, whole_episodes
from agentgym.trainers.expanders.appo import APPO, branching_scores
from agentgym.trainers.expanders.arpo import ARPO, chance
from agentgym.trainers.expanders.entropy import entropy_rise, opening_entropy
from agentgym.trainers.expanders.latr import LATR
from agentgym.trainers.expanders.lookahead import edit_distance, uncertain
from agentgym.trainers.expanders.treepo import TreePO, round_budget
from agentgym.turn import TurnTree, path, total_reward

ACTIONS = [call("add", n=3), call("add", n=4), call("add", n=5), call("stop_here")]
TASKS = [Task("t", "Count!"), Task("u", "Count again!")]
PLANS = {
    "TreePO": lambda: TreePO(episodes=8, segment=4),
    "ARPO": lambda: ARPO(rollouts=8, initial=4, vocabulary=16),
    "AEPO": lambda: AEPO(rollouts=8, vocabulary=16),
    "APPO": lambda: APPO(rollouts=8, initial=4, segment=4),
    "LATR": lambda: LATR(rollouts=8, segment=5, lookahead=(10, 15)),
}
every_plan = pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)


def play(expander, actor=None, tasks=TASKS[:1], chat=True, make_env=Counter, limits=None, **more):
    actors = {"policy": actor or Writes(ACTIONS)}
    rollout = Rollout(make_env, expander, actors, tiny_chat() if chat else None, Lineage.of(0), limits=limits, **more)
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def noise(turn, place):
    return (turn * 31 + place * 17) % 7 / 3


def judged(tree):
    return [leaf for leaf in tree.leaves() if leaf.outcome is not Outcome.CANCELLED]


def shape(tree):
    """A tree, whatever the order in which its turns came."""
    return sorted((turn.seed, turn.parent.seed if turn.parent else 0, tuple(turn.ids), turn.end, turn.reward) for turn in tree.turns)


# What every plan owes.


@every_plan
def test_it_spends_its_budget_and_closes_every_tree(make):
    for tree in play(make(), Writes(ACTIONS, noise), TASKS):
        assert tree.closed
        assert [total_reward(leaf) for leaf in judged(tree)] == [0.12] * 8


@pytest.mark.parametrize("name", ["TreePO", "LATR"])
def test_a_plan_without_entropies_also_works_on_actions_that_come_whole_and_have_no_tokens(name):
    (tree,) = play(PLANS[name](), Scripted(lambda prompt: ACTIONS[prompt.turn.depth]), chat=False)
    assert not any(turn.partial for turn in tree.turns)
    assert [total_reward(leaf) for leaf in tree.leaves()] == [0.12] * 8


@pytest.mark.parametrize("name", ["ARPO", "AEPO", "APPO"])
def test_an_actor_that_gives_no_entropies_is_named(name):
    with pytest.raises(AgentGymError, match=r"actor 'policy' gave 0 entropies .* fills Generation\.entropies"):
        play(PLANS[name](), Scripted(lambda prompt: ACTIONS[prompt.turn.depth]))


@every_plan
def test_no_clock_decides_where_a_tree_grows(make):
    found = [[shape(tree) for tree in play(make(), Writes(ACTIONS, noise, late), TASKS)] for late in (None, 1, 2)]
    assert found[0] == found[1] == found[2]


class Rebuilt:
    """Another plan that at every event is a new object, made from what the last one saved as JSON."""

    forks = True

    def __init__(self, make):
        self.make, self.saved = make, None

    def plan(self, forest, event):
        inner = self.make()
        if self.saved is not None:
            inner.load_state_dict(json.loads(self.saved))
        commands = list(inner.plan(forest, event))
        self.saved = json.dumps(inner.state_dict())
        return commands


@every_plan
def test_a_plan_rebuilt_from_its_state_at_every_event_grows_the_same_forest(make):
    whole, rebuilt = (play(plan, Writes(ACTIONS, noise), TASKS) for plan in (make(), Rebuilt(make)))
    assert [shape(tree) for tree in rebuilt] == [shape(tree) for tree in whole]
    assert sum(len(turn.children) > 1 for tree in whole for turn in tree.turns) >= 2


@every_plan
def test_episodes_that_are_lost_end_no_tree_early(make):
    forest = play(make(), Writes([ACTIONS[0], *ACTIONS], noise), [Task("bad", "Count.", "judge"), TASKS[0]])
    assert {total_reward(leaf) for leaf in forest[0].leaves()} == {None}
    assert [total_reward(leaf) for leaf in judged(forest[1])] == [0.15] * 8
    assert all(tree.closed for tree in forest)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TreePO(episodes=0),
        lambda: TreePO(divergence=3, first=2),
        lambda: ARPO(rollouts=4, initial=5),
        lambda: AEPO(rollouts=1),
        lambda: APPO(rollouts=4, initial=5),
        lambda: LATR(rollouts=0),
        lambda: LATR(schedule=((5, 1.0),)),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused_at_once(make):
    with pytest.raises(AgentGymError, match="needs"):
        make()


def test_entropies_are_stored_and_read_back(tmp_path):
    store = RunStore.create(tmp_path / "run", {})
    (tree,) = play(ARPO(2, 1), Writes(ACTIONS, noise), committed=store.turn)
    (read,) = store.trees()
    assert [list(turn.entropies) for turn in read.turns] == [list(turn.entropies) for turn in tree.turns]
    assert list(tree.turns[1].entropies[:3]) == [0.0, 17 % 7 / 3, 34 % 7 / 3]


# TreePO


@pytest.mark.parametrize(
    ("live", "now", "finished", "episodes", "budget"), [(2, 2, 3, 16, 8), (1, 2, 3, 16, 6), (1, 2, 5, 8, 3), (4, 0, 15, 16, 4)]
)
def test_treepo_shares_out_what_is_missing_and_starves_no_line(live, now, finished, episodes, budget):
    assert round_budget(live, now, finished, episodes, 2) == budget


def test_treepo_forks_every_line_after_a_segment_until_all_have_begun():
    (tree,) = play(TreePO(episodes=8, first=2, segment=3))
    first = tree.root.children
    assert [len(first), *(len(turn.children) for turn in first)] == [2, 2, 2]
    assert [len(child.children) for turn in first for child in turn.children] == [2] * 4
    assert all(len(turn.children) < 2 for turn in tree.turns if turn.depth > 1)
    assert all(turn.action_tokens <= 3 for turn in tree.turns)


def test_treepo_gives_what_does_not_divide_to_the_last_line():
    (tree,) = play(TreePO(episodes=5, first=2, segment=3))
    assert sorted(len(turn.children) for turn in tree.root.children) == [2, 2]
    assert sorted(len(turn.children) for first in tree.root.children for turn in first.children) == [1, 1, 1, 2]


def test_treepo_falls_back_to_boundaries_of_finished_episodes_the_root_among_them():
    (tree,) = play(TreePO(episodes=40, divergence=1, first=1, segment=6))
    line = path(tree.leaves()[0])
    begun_at = [turn for turn in tree.turns if len(turn.children) > 1]
    assert len(tree.leaves()) == 40
    assert len(begun_at) > 5
    assert set(begun_at) <= set(line[:-1])
    assert tree.root in begun_at


def test_treepo_begins_no_more_lines_than_it_may_have_episodes():
    (tree,) = play(TreePO(episodes=3, divergence=5, first=5))
    assert len(tree.leaves()) == len(tree.root.children) == 3


def test_treepo_begins_anew_where_an_episode_has_one_turn():
    (tree,) = play(TreePO(episodes=6, first=2), Writes([call("stop_here")]))
    assert len(tree.root.children) == 6


def test_treepo_falls_back_to_episodes_first_that_came_to_their_own_end():
    expander = TreePO(episodes=3, divergence=2, first=2)
    tree = TurnTree("tree", Task("t", ""))
    root = add_turn(tree, None, [1])
    came = []
    for end in ("truncated", "done", "truncated"):
        turn = add_turn(tree, root, [2], 1)
        came.append(add_turn(tree, turn, [3], 1, end=end))
    chosen = expander._fall_back(tree, 1)[0].turn
    assert chosen in (root, came[1].parent)


# ARPO


@pytest.mark.parametrize(
    ("drawn", "rise", "compared", "branches"),
    [(0.52, 0.3, 0.46, True), (0.49, -0.1, 0.51, False), (0.5, 0.0, 0.5, True), (0.02, 0.4, 0.0, True)],
)
def test_arpo_compares_a_draw_less_the_rise(drawn, rise, compared, branches):
    assert chance(drawn, rise) == pytest.approx(compared, abs=1e-9)
    assert (chance(drawn, rise) <= 0.5) is branches


def with_entropies(*of_turns):
    tree = TurnTree("tree", Task("t", ""))
    turn = add_turn(tree, None, [1])
    for entropies in of_turns:
        turn = add_turn(tree, turn, [2] * len(entropies), len(entropies), entropies=entropies)
    return turn


def test_the_opening_entropy_of_the_worked_example():
    nats = -sum(p * math.log(p) for p in (0.6, 0.2, 0.1))
    assert opening_entropy(with_entropies([nats]), 1000) == pytest.approx(0.124301, abs=1e-6)


def test_an_entropy_rise_is_against_the_first_action_over_twenty_tokens():
    turn = with_entropies([1.0] * 20 + [50.0], [9.0], [2.0] * 10 + [4.0] * 10 + [70.0] * 9)
    assert entropy_rise(turn, 16) == pytest.approx((3 - 1) / math.log(16))
    assert entropy_rise(path(turn)[1], 16) == 0.0


def rises_at(*turns):
    return lambda turn, place: 2.0 if turn in turns else 1.0


def branched(tree):
    return [turn.depth for turn in tree.turns if turn.parent is not None and len(turn.children) > 1]


@pytest.mark.parametrize(("at", "beam", "children"), [(1, 2, 2), (2, 2, 2), (2, 4, 4)])
def test_arpo_branches_after_the_turn_whose_entropy_rose(at, beam, children):
    (tree,) = play(ARPO(rollouts=8, initial=2, beam=beam, threshold=0.0, weight=1e6), Writes(ACTIONS, rises_at(at)))
    forked = [turn for turn in tree.turns if turn.parent is not None and len(turn.children) > 1]
    assert {turn.depth for turn in forked} == {at + 1}
    assert {len(turn.children) for turn in forked} == {children}


def test_arpo_begins_one_more_at_the_root_where_nothing_branches():
    (tree,) = play(ARPO(rollouts=5, initial=2, threshold=-1.0))
    assert branched(tree) == []
    assert len(tree.root.children) == 5


def test_arpo_never_exceeds_its_budget():
    (tree,) = play(ARPO(rollouts=5, initial=4, beam=9, threshold=1.0))
    assert len(tree.leaves()) == 5
    assert len(tree.root.children) == 4


# AEPO


@pytest.mark.parametrize(("gap", "episodes"), [(0.4, 9), (-0.4, 6), (0.0, 8), (1000.0, 15), (-500.0, 1)])
def test_aepo_gives_more_to_whole_episodes_the_surer_tools_leave_the_policy(gap, episodes):
    assert whole_episodes(gap, 0.0, 16, 1.0) == episodes


def test_aepo_lowers_the_chance_of_a_branch_after_branches():
    found = [likelihood(0.5, 0.12, consecutive, 0.1) for consecutive in range(4)]
    assert found == pytest.approx([0.62, 0.558, 0.496, 0.434], abs=1e-9)
    assert [value > 0.5 for value in found] == [True, True, False, False]
    assert likelihood(0.5, 0.12, 30, 0.1) == 0.0


@pytest.mark.parametrize(("entropies", "episodes"), [((0, 2, 2, 2), 1), ((2, 0, 0, 0), 7), ((1, 1, 1, 1), 4)])
def test_aepo_splits_its_budget_by_an_episode_played_beforehand(entropies, episodes):
    plan = AEPO(rollouts=8, gap=1e4, threshold=-1e9, slope=0.0)
    (tree,) = play(plan, Writes(ACTIONS, lambda turn, place: float(entropies[turn])))
    assert len(tree.root.children) == max(2, episodes)  # a second one, from which the branches come
    assert len(tree.leaves()) == 8


def test_aepo_compares_the_first_turn_with_the_mean_of_the_later_ones():
    plan = AEPO(rollouts=8, gap=1.2 * math.log(16), threshold=-1e9, vocabulary=16)  # 8 sigmoid(1.2) is 6.15
    (tree,) = play(plan, Writes(ACTIONS, lambda turn, place: float(turn == 0)))
    assert len(tree.root.children) == 6


@pytest.mark.parametrize(("slope", "runs"), [(1.0, False), (0.0, True)])
def test_aepo_does_not_branch_twice_in_a_row_at_the_full_penalty(slope, runs):
    plan = AEPO(rollouts=16, weight=1e6, slope=slope, gap=1e4)
    (tree,) = play(plan, Writes(ACTIONS, rises_at(1, 2)))
    forked = [turn for turn in tree.turns if turn.parent not in (None, tree.root) and len(turn.children) > 1]
    assert forked
    assert any(len(turn.parent.children) > 1 for turn in forked if turn.parent is not tree.root) is runs


# APPO


def test_appo_scores_of_the_worked_example():
    scores, candidates = branching_scores(np.array([0.1, 1.2, 0.2, 0.9, 0.1]), np.array([0, 0.1, 0.1, 0.05, -0.2]))
    assert scores == pytest.approx([-0.951149, 1.664512, -0.031277, -0.7812, 1.162801], abs=1e-4)
    assert candidates.tolist() == [False, True, False, False, False]


def test_appo_bounds_what_the_future_adds():
    entropies = np.array([1.0, 2.0, 0.0])
    far, near = (branching_scores(entropies, np.array(ratios))[0] for ratios in ([-9.0, 1, 4], [-0.9, 0.1, 0.4]))
    assert far == pytest.approx(near)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_appo_without_ratios_scores_by_entropy(entropies):
    scores, candidates = branching_scores(np.array(entropies), np.zeros(len(entropies)))
    assert np.isfinite(scores).all()
    assert (np.array(entropies)[candidates] > np.mean(entropies)).all()
    assert candidates.any() == (np.ptp(entropies) > 1e-9 * max(1, max(entropies)))


def test_appo_branches_from_the_segments_that_hold_the_most_uncertain_tokens():
    (tree,) = play(APPO(rollouts=8, initial=4, segment=4), Writes(ACTIONS, lambda turn, place: 5.0 if (turn, place) == (1, 2) else 1.0))
    forked = [turn for turn in tree.turns if turn.parent is not None and len(turn.children) > 1]
    assert len(forked) == 4
    assert all(turn.partial and turn.depth == 2 for turn in forked)
    assert all(5.0 in turn.entropies for turn in forked)
    assert len(tree.root.children) == 4


def test_appo_branches_where_the_present_policy_prefers_what_followed():
    def later(turn):
        return [{1: -0.3, 2: 0.1}.get(turn.depth, 0.0)] * turn.sampled_tokens

    actor = Writes(ACTIONS, lambda turn, place: 5.0 if place == 2 else 1.0)
    (tree,) = play(APPO(rollouts=6, initial=4, segment=4, log_ratios=later), actor)
    forked = [turn for turn in tree.turns if turn.parent is not None and len(turn.children) > 1]
    assert len(forked) == 2
    assert all(turn.depth == 2 and 5.0 in turn.entropies for turn in forked)


def test_appo_takes_the_rest_and_then_the_best_again_where_there_are_too_few_nodes():
    actor = Writes([ACTIONS[0], ACTIONS[3]], lambda turn, place: float(turn == 0))
    (tree,) = play(APPO(rollouts=12, initial=2, segment=1000), actor)
    assert sorted(len(turn.children) for turn in tree.root.children) == [6, 6]


def test_appo_closes_a_tree_in_which_nothing_can_branch():
    (tree,) = play(APPO(rollouts=8, initial=2, segment=1000), Writes([ACTIONS[3]]))
    assert tree.closed
    assert len(tree.leaves()) == 2


# LATR


@pytest.mark.parametrize(("ways", "fork"), [((0.5, 0.4), True), ((0.6, 0.3), False), ((0.55, 0.24), False), ((0.45, 0.31), True)])
def test_latr_forks_between_two_likely_ways(ways, fork):
    assert uncertain(*ways) is fork
    assert uncertain(*reversed(ways)) is fork


def test_the_edit_distance_of_the_worked_example():
    line = list(range(20))
    assert edit_distance(line, [-1, *line[1:10], -1, *line[11:]]) / 20 == pytest.approx(0.1)
    assert edit_distance(line, [-1] * 9 + line[9:]) / 20 == pytest.approx(0.45)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_the_edit_distance_is_one(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, a[1:]) == min(1, len(a))


def test_latr_grows_fewer_episodes_with_lookahead_as_training_goes_on():
    expander = LATR()
    found = []
    for step in (0, 10, 20, 80, 200):
        expander.steps = step
        found.append(expander.places)
    assert found == [8, 6, 4, 2, 0]
    expander = LATR(rollouts=2, segment=4, schedule=((0, 1.0), (1, 0.5), (2, 0.0)))
    forests = [play(expander) for _ in range(3)]
    assert expander.steps == 3
    assert [any(turn.partial for turn in tree.turns) for (tree,) in forests] == [True, True, False]


CONFIDENT, EVEN = 0.0, math.log(0.45)


def babble(token, **more):
    expander = LATR(**{"rollouts": 4, "segment": 5, "lookahead": (10, 20), **more})
    return play(expander, Babbles(token), limits=Limits(tokens=700, turn_tokens=40))[0]


def test_latr_never_forks_a_policy_that_is_sure_and_samples_the_rest():
    tree = babble(lambda rng, place: (30 + place % 7, CONFIDENT))
    assert len(tree.root.children) == 4
    assert not any(len(turn.children) > 1 for turn in tree.turns if turn is not tree.root)
    assert {leaf.outcome for leaf in tree.leaves()} == {Outcome.OK} or all(leaf.reward is not None for leaf in tree.leaves())


def test_latr_keeps_forks_that_go_their_own_way():
    tree = babble(lambda rng, place: (rng.randrange(30, 90), EVEN))
    assert len(tree.leaves()) == 4
    assert not any(leaf.outcome is Outcome.CANCELLED for leaf in tree.leaves())
    assert any(len(turn.children) > 1 for turn in tree.turns)
    assert all(turn.partial or turn.end or turn.depth for turn in tree.turns[1:])


def test_latr_gives_up_a_fork_that_comes_back_and_gives_it_no_reward():
    tree = babble(lambda rng, place: (rng.randrange(30, 90) if place == 2 else 30 + place % 7, EVEN if place == 2 else CONFIDENT))
    given_up = [leaf for leaf in tree.leaves() if leaf.outcome is Outcome.CANCELLED]
    assert len(given_up) == 1
    assert (given_up[0].end, total_reward(given_up[0])) == ("truncated", None)
    assert sum(turn.sampled_tokens for turn in path(given_up[0])) == 10
    assert sum(total_reward(leaf) is not None for leaf in tree.leaves()) == 4


def test_latr_looks_ahead_though_all_places_are_taken():
    tree = babble(lambda rng, place: (rng.randrange(30, 90) if place == 2 else 30, EVEN if place == 2 else CONFIDENT), rollouts=2)
    assert [leaf.outcome is Outcome.CANCELLED for leaf in tree.leaves()].count(True) == 1
    assert sum(total_reward(leaf) is not None for leaf in tree.leaves()) == 2


def test_latr_gives_up_a_fork_at_once_where_one_of_its_ways_was_unlikely():
    tree = babble(lambda rng, place: (rng.randrange(30, 90), math.log(0.1)))
    given_up = [leaf for leaf in tree.leaves() if leaf.outcome is Outcome.CANCELLED]
    assert given_up
    assert {leaf.sampled_tokens for leaf in given_up} == {5}
    assert all(leaf.parent.children[0] is not leaf for leaf in given_up)


def test_latr_counts_what_it_gave_up_and_leaves_it_out_of_the_tree_s_budget():
    expander = LATR(rollouts=4, segment=5, lookahead=(10, 20))
    (tree,) = play(expander, Babbles(lambda rng, place: (rng.randrange(30, 90), math.log(0.1))), limits=Limits(tokens=700, turn_tokens=40))
    cancelled = sum(leaf.outcome is Outcome.CANCELLED for leaf in tree.leaves())
    assert expander.metrics() == {"cancelled": cancelled}
    assert len(tree.leaves()) == 4 + cancelled


def test_a_cancelled_turn_is_stored_as_one(tmp_path):
    store = RunStore.create(tmp_path / "run", {})
    expander = LATR(rollouts=4, segment=5, lookahead=(10, 20))
    actor = Babbles(lambda rng, place: (rng.randrange(30, 90), math.log(0.1)))
    (tree,) = play(expander, actor, limits=Limits(tokens=700, turn_tokens=40), committed=store.turn)
    (read,) = store.trees()
    assert [orjson.dumps(turn_record(turn)) for turn in read.turns] == [orjson.dumps(turn_record(turn)) for turn in tree.turns]
    assert any(turn.outcome is Outcome.CANCELLED for turn in read.turns)
