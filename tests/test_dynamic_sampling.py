"""DAPO's dynamic sampling: which groups stay, when it learns, and what a checkpoint keeps of it."""

from __future__ import annotations

import asyncio
import io
import itertools

import orjson
import pytest
import torch
from credits import credited, group
from forests import add_turn

from agentgym.errors import AgentGymError
from agentgym.store import turn_record
from agentgym.trainers.credit.rloo import RLOO
from agentgym.trainers.schedules.dynamic import DynamicSampling
from agentgym.trainers.seams import Schedule


def pool(*successes, first=0):
    """One tree of four episodes for each number of successes."""
    return [group(*[1] * n, *[0] * (4 - n), task=f"t{first + place}", name=f"tree{first + place}") for place, n in enumerate(successes)]


def names(trees):
    return None if trees is None else [tree.task.id for tree in trees]


def test_the_worked_example():
    schedule: Schedule = DynamicSampling(3)
    assert asyncio.run(schedule.admit(0))
    assert schedule.select(pool(0, 1, 4, 2), 0) is None
    assert not schedule.push_due(0)
    assert schedule.metrics()["tasks_held"] == 2
    assert names(schedule.select(pool(4, 4, 3, 0, first=4), 0)) == ["t1", "t3", "t6"]
    assert schedule.push_due(0)
    assert schedule.metrics() == {"tasks_held": 0, "overgeneration": pytest.approx(2.666667, abs=1e-4)}


def test_surplus_groups_are_dropped_and_the_next_step_begins_anew():
    schedule = DynamicSampling(2)
    assert names(schedule.select(pool(1, 2, 3), 0)) == ["t0", "t1"]
    assert schedule.select(pool(1, first=3), 1) is None
    assert names(schedule.select(pool(2, first=4), 1)) == ["t3", "t4"]


@pytest.mark.parametrize("rewards", [(1, 1, 1), (0, 0), (0.1 + 0.2, 0.3), (1,), (1, None), (None, None)])
def test_a_task_without_contrast_is_dropped(rewards):
    assert DynamicSampling(1).select([group(*rewards)], 0) is None


def test_contrast_across_the_trees_of_a_task_is_contrast():
    trees = [group(1, 1), group(0, 0, name="second"), group(1, 1, task="other")]
    assert DynamicSampling(1).select(trees, 0) == trees[:2]


def test_tasks_that_teach_nothing_for_too_long_end_the_run_with_a_reason():
    schedule = DynamicSampling(2, most=3)
    assert schedule.select(pool(1), 0) is None
    assert schedule.select(pool(4, first=1), 0) is None
    with pytest.raises(AgentGymError, match="3 batches held 1 tasks whose rewards differ, but a step needs 2"):
        schedule.select(pool(0, first=2), 0)
    with pytest.raises(AgentGymError, match="groups is 0"):
        DynamicSampling(0)


def test_what_is_held_is_in_the_checkpoint():
    first, second = DynamicSampling(3), DynamicSampling(3)
    trees = pool(1, 4, 2)
    label = add_turn(trees[0], trees[0].root, [5], 1, executed=False)
    label.entropies, label.versions = [0.1], [(3, 1)]
    first.select(trees, 0)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    chosen, restored = (schedule.select(pool(3, first=3), 0) for schedule in (first, second))
    assert names(restored) == names(chosen) == ["t0", "t2", "t3"]
    for one, other in itertools.zip_longest(chosen, restored):
        assert orjson.dumps([turn_record(turn) for turn in one.turns]) == orjson.dumps([turn_record(turn) for turn in other.turns])
        assert [(turn.depth, turn.length) for turn in one.turns] == [(turn.depth, turn.length) for turn in other.turns]
    assert credited(RLOO(), *restored) == credited(RLOO(), *chosen)
    assert second.metrics() == first.metrics()
