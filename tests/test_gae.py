"""Generalised advantages, on trees."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from credit_models import Says, credited, episodes, flat
from credits import line
from forests import add_turn, random_tree

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.gae import GAE, estimated
from agentgym.trainers.credit.tokens import whitened
from agentgym.turn import TurnTree


def test_advantages_by_hand() -> None:
    # two tokens of one action: d = (0.9 * 0.5 - 0.2, 1 - 0.5)
    tree = episodes(2, rewards=[1.0])
    leaf = tree.turns[1]
    found = estimated(tree, {tree.root: np.zeros(0), leaf: np.array([0.2, 0.5])}, 0.9, 0.8)
    assert found[leaf] == pytest.approx([0.25 + 0.9 * 0.8 * 0.5, 0.5])
    assert list(found) == [leaf]


def test_with_full_decay_an_advantage_is_the_return_less_the_value() -> None:
    tree = line("abc", [0.5, 0.0, 2.0])
    credit, models = GAE(whiten=False, per="turn"), {"value": Says(1.0, 2.0, 3.0)}
    assert flat(credited(credit, models, tree)) == pytest.approx([2.5 - 1, 2.0 - 2, 2.0 - 3])
    assert flat(credited(GAE(whiten=False, decay=0.0), models, tree)) == pytest.approx([0.5 + 2 - 1, 3 - 2, 2 - 3])
    assert flat(credited(GAE(discount=0.5, whiten=False), models, tree)) == pytest.approx([1.0 - 1, 1.0 - 2, 2 - 3])


def test_observations_are_passed_over_and_a_reward_lands_on_the_last_token() -> None:
    tree = TurnTree("tree", Task("task", ""))
    first = add_turn(tree, add_turn(tree, None, [1]), [2, 2, 7, 7, 7], 2, reward=1.0)
    add_turn(tree, first, [3, 3], 2, reward=4.0, end="done")
    found = credited(GAE(discount=0.5, whiten=False), {"value": Says(0.0, 0.0, 0.0, 0.0)}, tree)
    assert flat(found) == pytest.approx([0.5 * (1 + 0.5 * (0.5 * 4)), 1 + 0.5 * (0.5 * 4), 2.0, 4.0])


def test_a_reward_of_a_turn_that_nobody_sampled_falls_on_the_step_before() -> None:
    tree = TurnTree("tree", Task("task", ""))
    first = add_turn(tree, add_turn(tree, None, [1]), [2], 1)
    add_turn(tree, first, [3, 3], 0, reward=4.0, end="done")
    assert flat(credited(GAE(discount=0.5, whiten=False), {"value": Says(1.0)}, tree)) == [3.0]


def test_per_turn_an_action_has_one_advantage_and_learns_at_its_first_token() -> None:
    tree = episodes(3, 2, rewards=[1.0, 0.0])
    learner = Says(0.25, 9.0, 9.0, 0.25, 9.0)
    found = credited(GAE(whiten=False, per="turn"), {"value": learner}, tree)
    assert found == [[0.75] * 3, [-0.25] * 2]
    packed, _ = learner.seen[0]
    assert packed.streams["return"].tolist() == [0, 1, 0, 0, 0, 0]
    assert packed.streams["weight"].tolist() == [0, 0.5, 0, 0, 0.5, 0]


def test_a_shared_turns_return_is_the_mean_over_its_episodes() -> None:
    tree = TurnTree("tree", Task("task", ""))
    shared = add_turn(tree, add_turn(tree, None, [1]), [2], 1)
    fork = add_turn(tree, shared, [3], 1)
    for parent, reward in ((fork, 1.0), (fork, 0.5), (shared, 0.0)):
        add_turn(tree, parent, [4 + len(tree.turns)], 1, end="done", reward=reward)
    learner = Says(0.1, 0.2, 0.3, 0.3, 0.4)  # in depth-first order: siblings stand in one state
    found = credited(GAE(whiten=False), {"value": learner}, tree)
    assert flat(found) == pytest.approx([0.5 - 0.1, 0.75 - 0.2, 1.0 - 0.3, 0.5 - 0.3, 0.0 - 0.4])
    assert learner.seen[0][0].streams["return"][1:] == pytest.approx([0.5, 0.75, 1.0, 0.5, 0.0])


def test_a_tree_has_the_mean_of_what_its_paths_have() -> None:
    rng = random.Random(1)
    for _ in range(20):
        tree = random_tree(rng, turns=10, empty=0, restarts=0)
        numbers = np.random.default_rng(rng.randrange(99))
        values = {turn: numbers.normal(size=turn.sampled_tokens) for turn in tree.turns}
        found = estimated(tree, values, 0.9, 0.7)
        sums: dict[Any, list[Any]] = {}
        for leaf in tree.leaves():
            alone, node, copies = TurnTree("path", tree.task), None, {}
            for turn in _path(leaf):
                node = add_turn(alone, node, turn.ids, turn.sampled_tokens, reward=turn.reward, end="done" if turn is leaf else None)
                copies[turn] = node
            own = estimated(alone, {copies[turn]: values[turn] for turn in copies}, 0.9, 0.7)
            for turn, twin in copies.items():
                if twin in own:
                    sums.setdefault(turn, []).append(own[twin])
        assert set(sums) == set(found)
        for turn, parts in sums.items():
            assert found[turn] == pytest.approx(np.mean(parts, axis=0))


def _path(leaf: Any) -> list[Any]:
    turns = [leaf]
    while turns[-1].parent is not None:
        turns.append(turns[-1].parent)
    return turns[::-1]


def test_segments_of_an_action_are_one_step_in_time() -> None:
    def built(*cuts: int) -> list[float]:
        tree = TurnTree("tree", Task("task", ""))
        turn = add_turn(tree, None, [1])
        for n in cuts[:-1]:
            turn = add_turn(tree, turn, [2] * n, n, partial=True)
        turn = add_turn(tree, turn, [2] * cuts[-1], cuts[-1])
        add_turn(tree, turn, [3], 1, end="done", reward=1.0)
        learner = Says(*[0.5] * (sum(cuts) + 1))
        return flat(credited(GAE(discount=0.5, decay=0.5, per="turn", whiten=False), {"value": learner}, tree))

    assert built(3)[0] == pytest.approx(0.5 * 0.5 - 0.5 + 0.25 * 0.5)
    assert built(1, 2) == pytest.approx(built(3))


def test_what_has_no_verdict_and_labels_are_in_no_statistics() -> None:
    plain = episodes(2, 2, rewards=[1.0, 0.0])
    more = episodes(2, 2, 2, rewards=[1.0, 0.0, None])
    add_turn(more, more.root, [9, 9], 2, executed=False)
    expected = credited(GAE(), {"value": Says(*[0.5, 0.2, 0.5, 0.1])}, plain)
    learner = Says(*[0.5, 0.2, 0.5, 0.1, 7, 7, 7, 7])
    credit = GAE()
    assert credited(credit, {"value": learner}, more) == [*expected, [0.0, 0.0], [0.0, 0.0]]
    assert learner.seen[0][0].streams["weight"].tolist() == [0, *[0.25] * 4, 0, 0, 0, 0]
    assert credit.metrics()["reward"] == 0.5
    none = GAE()
    learner = Says()
    assert not any(flat(credited(none, {"value": learner}, episodes(2, rewards=[None]))))
    assert learner.steps == 0


def test_a_truncated_end_is_worth_nothing_beyond_its_reward() -> None:
    done, cut = episodes(1, rewards=[0.25]), episodes(1, rewards=[0.25])
    cut.turns[1].end = "truncated"
    assert [credited(GAE(whiten=False), {"value": Says(0.5)}, tree) for tree in (done, cut)] == [[[-0.25]], [[-0.25]]]


def test_whitened_advantages_have_mean_zero_and_sample_variance_one() -> None:
    found = flat(credited(GAE(), {"value": Says(0.5, 0.2, 0.4, 0.1, 0.3)}, episodes(2, 3, rewards=[1.0, 0.0])))
    assert np.mean(found) == pytest.approx(0, abs=1e-9)
    assert np.var(found, ddof=1) == pytest.approx(1, abs=1e-6)
    equal = np.full(6, 9.025, dtype=np.float32).astype(np.float64)
    assert whitened(equal).tolist() == [0.0] * 6
    assert whitened(np.array([3.0])).tolist() == [0.0]
    assert whitened(np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2])).tolist() == [0.0] * 4


@pytest.mark.parametrize("settings", [{"discount": 1.1}, {"decay": -0.1}, {"epochs": 0}, {"per": "word"}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AgentGymError):
        GAE(**settings)
