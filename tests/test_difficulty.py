"""TRUSTEE's curriculum: difficulty follows the mean reward of a batch, strictly, in steps, and within its bounds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from agentgym import AgentGymError, Lineage, Rollout, Task, TurnTree, call
from agentgym.envs.simulated import Simulated
from agentgym.envs.simulated.house import House
from agentgym.envs.simulated.simulator import Simulator
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.trainers.seams import Source
from agentgym.trainers.sources.difficulty import Difficulty, difficulty_of
from agentgym.turn import Turn


def write(difficulty: float, lineage: Lineage) -> Task:
    return Task("/".join(map(str, lineage.path)), "Do it.", data={"difficulty": difficulty})


def episode(reward: float | None) -> TurnTree:
    tree = TurnTree("tree", Task("t", "Do it."))
    root = tree.add(Turn(0, None, "env", 0))
    tree.add(Turn(-1, root, "policy", 1, reward=reward, end="error" if reward is None else "done"))
    return tree


def after(start: float, *rewards: float | None) -> float:
    source = Difficulty(write, start=start)
    source.observe([episode(reward) for reward in rewards])
    return source.difficulty


def test_the_worked_example() -> None:
    source = Difficulty(write, start=10.0)
    found = []
    for mean in (0.6, 0.25, -0.1, 0.5, 0.9, 0.0):
        source.observe([episode(mean)])
        found.append(source.difficulty)
    assert found == [13, 13, 10, 10, 13, 13]
    assert after(99, 0.6) == 100
    assert after(2, -1) == 1


def test_the_mean_is_over_all_episodes_of_a_batch_that_have_a_verdict() -> None:
    assert after(10, 1, 1, -1) == 10
    assert after(10, 1, 1, 1, 0) == 13
    assert after(10, 1, None, None) == 13
    assert after(10, None) == 10
    assert after(10) == 10


@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0, None]), max_size=4), max_size=60))
def test_one_batch_changes_it_by_one_step_at_most_and_never_beyond_its_bounds(batches: list[list[float | None]]) -> None:
    source = Difficulty(write, start=50.0, delta=20.0)
    for batch in batches:
        before = source.difficulty
        source.observe([episode(reward) for reward in batch])
        assert 1.0 <= source.difficulty <= 100.0
        assert abs(source.difficulty - before) <= 20.0


def test_tasks_are_written_at_the_present_difficulty_and_none_twice() -> None:
    source: Source = Difficulty(write, seed=3)
    first = source.draw(2)
    source.observe([episode(1.0)])
    second = source.draw(2)
    assert [start.task.data["difficulty"] for start in (*first, *second)] == [1.0, 1.0, 4.0, 4.0]
    assert [start.tags for start in second] == [{"difficulty": 4.0}] * 2
    assert len({start.task.id for start in (*first, *second)}) == 4
    assert source.metrics() == {"difficulty": 4.0, "difficulty_reward": 1.0}
    assert source.admit(episode(1.0)) is None


def test_it_goes_on_from_its_state() -> None:
    source, resumed = Difficulty(write), Difficulty(write)
    source.draw(3)
    source.observe([episode(1.0)])
    resumed.load_state_dict(source.state_dict())
    assert [start.task for start in source.draw(3)] == [start.task for start in resumed.draw(3)]
    assert math.isnan(resumed.metrics()["difficulty_reward"])


def test_bounds_that_make_no_sense_are_refused() -> None:
    for wrong in ({"start": 0.0}, {"start": 101.0}, {"delta": 0.0}, {"low": 0.6}):
        with pytest.raises(AgentGymError, match="Difficulty needs"):
            Difficulty(write, **wrong)


def test_over_tasks_that_are_there_it_draws_those_nearest_in_difficulty() -> None:
    tasks = [write(float(number), Lineage.of(0, number)) for number in range(1, 101)]
    found = [start.task.data["difficulty"] for start in difficulty_of(tasks, start=50.0).draw(200)]
    assert min(found) >= 42
    assert max(found) <= 58
    assert len(set(found)) > 10
    with pytest.raises(AgentGymError, match="1 tasks have no difficulty in their data, such as bare"):
        difficulty_of([*tasks, Task("bare", "?")])


def trained(source: Difficulty, world: Simulator, solves: bool, batches: int) -> list[float]:
    """The difficulties of batches that an agent plays which solves all, or nothing."""
    gold = Simulated(world)

    def act(prompt: object) -> str:
        tree: TurnTree = prompt.tree  # type: ignore[attr-defined]
        return gold.gold(tree.task)[len(tree.turns) - 1] if solves else call("done") if len(tree.turns) > 1 else ""

    found: list[float] = []
    for number in range(batches):
        rollout = Rollout(lambda: Simulated(world), Groups(1, "agent"), {"agent": Scripted(act)}, None, Lineage.of(0, "run", number))
        trees: Sequence[TurnTree] = asyncio.run(rollout.run(source.draw(4)))
        source.observe(trees)
        found.append(source.difficulty)
    return found


def test_a_simulated_world_gets_harder_for_who_solves_it_and_easier_for_who_does_not() -> None:
    world = Simulator(House(), blocking=False, votes=1)
    source = Difficulty(world.write, start=20.0, delta=25.0)
    assert trained(source, world, True, 3) == [45.0, 70.0, 95.0]
    assert trained(source, world, False, 4) == [70.0, 45.0, 20.0, 1.0]
