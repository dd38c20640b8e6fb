"""What has ended is learnt from while the rest of its batch is played, and the step is that of the whole batch."""

from __future__ import annotations

import asyncio
import importlib
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from credits import line
from hypothesis import given
from hypothesis import strategies as st
from resumable_run import Letters
from test_ahead import a_run, played, weights_of

from agentgym.clock import Clock
from agentgym.errors import AgentGymError
from agentgym.policies.sync import SharedWeights
from agentgym.trainers.credit.averaged import Averaged
from agentgym.trainers.credit.discounted import Discounted
from agentgym.trainers.credit.dr_grpo import DrGRPO
from agentgym.trainers.credit.drpo import DRPO
from agentgym.trainers.credit.gigpo import GiGPO
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.hgpo import HGPO
from agentgym.trainers.credit.importance import Corrected
from agentgym.trainers.credit.logprobs import WithLogprobs
from agentgym.trainers.credit.mc_grpo import MCGRPO
from agentgym.trainers.credit.olr import OLR
from agentgym.trainers.credit.rloo import RLOO
from agentgym.trainers.credit.tree_grpo import TreeGRPO
from agentgym.trainers.credit.treepo import TreePO
from agentgym.trainers.divisors import Constant, token_mean
from agentgym.trainers.figures import means
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train, train_step
from agentgym.trainers.objectives.bapo import BAPO
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.entropic import EntroPIC
from agentgym.trainers.objectives.importance import Decoupled
from agentgym.trainers.objectives.masked import Masked
from agentgym.trainers.playing import playing
from agentgym.trainers.schedules.periodic import Periodic
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.sources.repeated import Repeated
from agentgym.turn import TurnTree

TASKS = 5
FOR_PARTS = {"divisor": Constant(64.0), "updates": 1, "batch": TASKS}


def in_an_order(order: list[int]) -> Any:
    """What waits before each answer, so that tasks end in that order."""
    begun: list[str] = []
    ended: list[str] = []

    async def wait(tree: TurnTree) -> None:
        if tree.id not in begun:
            begun.append(tree.id)
        while order.index(begun.index(tree.id)) > len(ended):
            await asyncio.sleep(0.001)
            ended[:] = [id for id, closed in forest.items() if closed.closed]
        forest[tree.id] = tree

    forest: dict[str, TurnTree] = {}
    return wait


def parts_of(run: Any) -> list[list[TurnTree]]:
    async def play() -> list[list[TurnTree]]:
        return [part async for part in playing(run, None, Clock()).parts(0)]

    return asyncio.run(play())


@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_that_of_the_whole_batch_in_whatever_order_tasks_end(seed: int) -> None:
    order = list(range(TASKS))
    random.Random(seed).shuffle(order)
    parts: list[int] = []

    class Noting(TorchLearner):
        def accumulate_all(self, packs: Any, objective: Any) -> Any:
            parts.append(len(packs))
            return super().accumulate_all(packs, objective)

    whole = a_run(Synchronous(), dtype=torch.float64, **FOR_PARTS)
    apart = a_run(Periodic(), dtype=torch.float64, wait=in_an_order(order), learner=Noting, **FOR_PARTS)
    (alone, _), (found, trees) = played(whole, 1)[0], played(apart, 1)[0]
    assert len(parts) > 1
    assert len(trees) == TASKS
    assert found["lost"] == 0
    for one, other in zip(weights_of(whole), weights_of(apart), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert not torch.equal(weights_of(apart)[0], weights_of(a_run(Synchronous(), dtype=torch.float64))[0])
    for name in ("loss", "packed_tokens", "gradient_norm", "reward", "groups_with_signal", "episodes", "sampled_tokens"):
        assert found[name] == pytest.approx(alone[name], rel=1e-9), name
    assert apart.learner.version == whole.learner.version == 1


def test_it_learns_while_others_are_played() -> None:
    learnt = threading.Event()

    class Watching(TorchLearner):
        def accumulate_all(self, packs: Any, objective: Any) -> Any:
            learnt.set()
            return super().accumulate_all(packs, objective)

    async def wait(tree: TurnTree) -> None:
        first = first_of.setdefault("tree", tree.id)
        while tree.id != first and not learnt.is_set():
            await asyncio.sleep(0.001)

    first_of: dict[str, str] = {}
    ((metrics, _),) = played(a_run(Periodic(), wait=wait, learner=Watching, **FOR_PARTS), 1)
    assert metrics["episodes"] == 3 * TASKS


def test_all_is_sampled_by_the_newest_weights() -> None:
    async def wait(tree: TurnTree) -> None:
        await asyncio.sleep(0.01 * random.Random(tree.id).random())

    run = a_run(Periodic(), wait=wait, **FOR_PARTS)
    for step, (metrics, trees) in enumerate(played(run, 3)):
        assert metrics["lost"] == 0
        assert {version for tree in trees for turn in tree.turns for version, _ in turn.versions} == {step}


def test_the_worked_example_ends_at_seven_where_the_whole_batch_ends_at_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups ready at 2, 3, 5 and 6, each learnt in 1, on a clock that only waiting moves."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    clock_of = importlib.import_module("asynchrony").SimulatedClock
    ready = [2.0, 3.0, 5.0, 6.0]

    class Slow(GRPO):
        async def assign(self, trees: Any, models: Any) -> None:
            await asyncio.sleep(len(trees))
            await super().assign(trees, models)

    def end_of(schedule: Any) -> float:
        async def wait(tree: TurnTree) -> None:
            place = places.setdefault(tree.id, len(places))
            await asyncio.sleep(max(0.0, ready[place] - clock.time()))

        async def step() -> None:
            await train_step(run, playing(run, None, Clock()), Clock(), 0)

        places: dict[str, int] = {}
        clock = clock_of()
        try:
            run = a_run(schedule, wait=wait, **{**FOR_PARTS, "batch": 4}, credit=Slow())
            clock.run_until_complete(step())
            return float(clock.time())
        finally:
            clock.run_until_complete(clock.shutdown_default_executor())
            clock.close()

    assert end_of(Synchronous()) == pytest.approx(10.0, abs=0.01)
    assert end_of(Periodic()) == pytest.approx(7.0, abs=0.01)


def test_trees_of_one_task_are_learnt_together() -> None:
    run = a_run(Periodic(), wait=in_an_order([5, 0, 3, 1, 4, 2]), **{**FOR_PARTS, "batch": 6})
    run.source = Repeated(run.source, 2)
    found = [part for part in parts_of(run) if part]
    assert len(found) == 3
    assert all(len({tree.task.id for tree in part}) == 1 and len(part) == 2 for part in found)


def test_a_rollout_that_fails_is_heard() -> None:
    run = a_run(Periodic(), **FOR_PARTS)
    run.expander.plan = lambda forest, event: iter([1 / 0])
    with pytest.raises(ZeroDivisionError):
        parts_of(run)


def test_where_learning_fails_nothing_is_played_on_and_no_gradient_is_left() -> None:
    class Failing(TorchLearner):
        learnt = 0

        def accumulate_all(self, packs: Any, objective: Any) -> Any:
            found = super().accumulate_all(packs, objective)
            type(self).learnt += 1
            if self.learnt == 2:
                raise AgentGymError("no room")
            return found

    async def wait(tree: TurnTree) -> None:
        place = places.setdefault(tree.id, len(places))
        try:
            while Failing.learnt < min(place, 2):
                await asyncio.sleep(0.001)
            if place > 2:
                await asyncio.Event().wait()
        finally:
            left.append(place)

    places: dict[str, int] = {}
    left: list[int] = []
    run = a_run(Periodic(), wait=wait, learner=Failing, **FOR_PARTS)

    async def fail() -> int:
        with pytest.raises(AgentGymError, match="no room"):
            await train(run, 1)
        await asyncio.sleep(0.05)  # what was cancelled comes to its end
        return len(asyncio.all_tasks())

    assert asyncio.run(fail()) == 1
    assert {3, 4} <= set(left)
    assert all(weight.grad is None for weight in run.learner.model.parameters())


def test_the_trees_of_a_step_are_heard_of_in_the_order_of_their_starts() -> None:
    whole = a_run(Synchronous(), **FOR_PARTS)
    apart = a_run(Periodic(), wait=in_an_order([4, 2, 0, 3, 1]), **FOR_PARTS)
    ((_, first),), ((_, again),) = played(whole, 1), played(apart, 1)
    assert [tree.id for tree in first] == [tree.id for tree in again]


def test_the_reward_is_that_of_the_batch_where_episodes_are_lost() -> None:
    class Breaking(Letters):
        def act(self, action: Any) -> Any:
            if self.task.id == "t" and self.rng("fate").random() < 0.5:
                raise OSError("gone")
            return super().act(action)

    rewards = []
    for schedule, wait in ((Synchronous(), None), (Periodic(), in_an_order([4, 2, 0, 3, 1]))):
        run = a_run(schedule, wait=wait, **FOR_PARTS)
        run.make_env = Breaking
        ((metrics, _),) = played(run, 1)
        rewards.append((metrics["reward"], metrics["lost"]))
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-9)
    assert 0 < rewards[0][1] < 3 * TASKS


def test_an_environment_that_cannot_begin_is_a_part_too() -> None:
    run = a_run(Periodic(), **FOR_PARTS)

    class Broken(run.make_env):  # type: ignore[name-defined,misc]
        def begin(self, task: Any) -> None:
            raise OSError("no room")

    run.make_env = Broken
    ((metrics, trees),) = played(run, 1)
    assert metrics["lost"] == len(trees) == TASKS
    assert run.learner.version == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"credit": TreePO()}, "TreePO does not say that it takes tasks by themselves"),
        ({"credit": WithLogprobs(TreePO(), {"reference": "learner"})}, "WithLogprobs does not say"),
        ({"credit": Corrected(GRPO(), normalise="tokens"), "objective": Decoupled(ClippedSurrogate())}, "Corrected does not say"),
        ({"credit": Averaged(GRPO()), "objective": Masked()}, "Averaged does not say"),
        ({"objective": BAPO()}, "BAPO measures a pack"),
        ({"objective": EntroPIC(ClippedSurrogate())}, "EntroPIC measures a pack"),
        ({"divisor": token_mean}, "cannot divide by the size of a batch"),
        ({"updates": 2}, "set updates to 1"),
    ],
)
def test_what_needs_the_whole_batch_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(AgentGymError, match=reason):
        a_run(Periodic(), **{**FOR_PARTS, **change})


def test_shared_weights_are_refused() -> None:
    with pytest.raises(AgentGymError, match="Periodic needs an actor with weights of its own"):
        a_run(Periodic(), sync=SharedWeights, **FOR_PARTS)


def test_credit_around_another_is_apart_where_that_is() -> None:
    assert WithLogprobs(GRPO(), {"reference": "learner"}).apart
    assert not WithLogprobs(TreePO(), {"reference": "learner"}).apart
    assert Corrected(GRPO()).apart


EPISODES = st.lists(
    st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.sampled_from([0.0, 1.0])), min_size=1, max_size=4
)


@given(st.lists(EPISODES, min_size=1, max_size=4))
def test_credit_that_says_apart_writes_the_same_for_each_task_by_itself(tasks: list[Any]) -> None:
    for credit in (GRPO, RLOO, DrGRPO, MCGRPO, lambda: DRPO(64), OLR, GiGPO, HGPO, TreeGRPO, lambda: Discounted(0.9)):
        assert credit().apart
        streams = []
        for split in (False, True):
            groups = [
                [
                    line(states, [*([0.0] * (len(states) - 1)), reward], task=f"t{i}", name=f"{i}.{j}")
                    for j, (states, reward) in enumerate(episodes)
                ]
                for i, episodes in enumerate(tasks)
            ]
            made = credit()
            for trees in groups if split else [[tree for group in groups for tree in group]]:
                asyncio.run(made.assign(trees, {}))
            streams.append([turn.streams["advantage"] for group in groups for tree in group for turn in tree.turns])
        for together, alone in zip(*streams, strict=True):
            assert np.allclose(together, alone, rtol=0, atol=1e-12)


def test_means_are_by_weight_and_leave_out_what_is_no_number() -> None:
    nan = float("nan")
    found = means([(1, {"a": 1.0, "b": nan, "c": nan}), (3, {"a": 5.0, "b": 2.0, "c": nan})])
    assert found["a"] == 4.0
    assert found["b"] == 2.0
    assert np.isnan(found["c"])
