"""Rollouts that go on while the learner learns: how old what is learnt may be, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resumable_run import Letters

from agentgym.clock import Clock
from agentgym.errors import AgentGymError
from agentgym.expand import Close, Groups
from agentgym.outcome import Outcome
from agentgym.policies.sync import CopiedWeights, SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.rollout import Limits
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.expanders.trace import TRACE
from agentgym.trainers.expanders.value import TaskPosterior
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.playing import PlayingAhead
from agentgym.trainers.schedules.ahead import BoundedStaleness, oldest
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.sources.pivots import Pivots
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.turn import Turn, TurnTree

BATCH = 2


class Unhurried(TransformersPolicy):
    """Waits before it answers, as ``wait`` says of a task."""

    wait: Any = None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if self.wait is not None:
            await self.wait(prompt.tree)
        return await super().generate(prompt, sampling)


def a_run(
    schedule: Any,
    *,
    wait: Any = None,
    sync: type = CopiedWeights,
    learner: type = TorchLearner,
    dtype: Any = torch.float32,
    **changes: Any,
) -> Training:
    torch.set_num_threads(1)
    tokenizer = TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)
    policy = Unhurried(new_model(len(tokenizer), seed=0).to(dtype), tiny_chat(tokenizer))
    policy.wait = wait
    made = sync(policy)
    seams = {"source": Uniform(Letters().tasks("train")), "expander": Groups(3), "credit": GRPO(), "objective": ClippedSurrogate()}
    rest = {"limits": Limits(tokens=200, turn_tokens=8), "batch": BATCH, **seams, **changes}
    return Training(Letters, policy, policy.chat, learner=learner(made.model, 1e-2), sync=made, schedule=schedule, **rest)


def played(run: Training, steps: int, store: RunStore | None = None) -> list[tuple[dict[str, float], list[TurnTree]]]:
    heard: list[Any] = []
    asyncio.run(train(run, steps, store, lambda step, metrics, trees: heard.append((metrics, list(trees))), checkpoint_every=1))
    return heard


def number(tree: TurnTree) -> int:
    """Of the rollout that played it."""
    return int(tree.id.split("/")[2])


def weights_of(run: Training) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in run.sync.model.parameters()]


def test_without_staleness_it_is_the_synchronous_run_to_the_last_bit() -> None:
    runs = [a_run(Synchronous()), a_run(BoundedStaleness(0, unit=BATCH))]
    (first, again) = (played(run, 3) for run in runs)
    assert [metrics["loss"] for metrics, _ in first] == [metrics["loss"] for metrics, _ in again]
    assert all(map(torch.equal, weights_of(runs[0]), weights_of(runs[1])))


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_nothing_that_is_learnt_is_older_than_allowed(staleness: int) -> None:
    order = Counter[str]()

    async def wait(tree: TurnTree) -> None:
        order[tree.id] += 1
        for _ in range(len(order) * 7 % 23):  # some are overtaken by many
            await asyncio.sleep(0)

    run = a_run(BoundedStaleness(staleness), wait=wait)
    pushes = [0]
    ages = []
    for metrics, trees in played(run, 6):
        kept = [tree for tree in trees if any("advantage" in turn.streams for turn in tree.turns)]
        ages += [sum(oldest(tree, 99) < pushed for pushed in pushes) for tree in kept]
        assert metrics["staleness"] == max(ages[-len(kept) :])
        pushes.append(int(metrics["actor_version"]))
    assert max(ages) == staleness


def test_rollouts_go_on_while_the_learner_learns() -> None:
    learning, acted = threading.Event(), threading.Event()

    class Watching(TorchLearner):
        def accumulate(self, packed: Any, objective: Any) -> Any:
            if not learning.is_set():
                learning.set()
                assert acted.wait(30), "nobody acts while the learner learns"
            return super().accumulate(packed, objective)

    async def wait(tree: TurnTree) -> None:
        while number(tree) >= BATCH and not learning.is_set():
            await asyncio.sleep(0.001)
        if learning.is_set():
            acted.set()

    played(a_run(BoundedStaleness(2), wait=wait, learner=Watching), 2)


@given(st.integers(0, 5), st.integers(1, 64), st.integers(0, 400), st.integers(0, 400), st.integers(0, 9))
def test_room_is_the_capacity_of_areal(staleness: int, batch: int, accepted: int, running: int, version: int) -> None:
    capacity = min(512 - running, (staleness + version + 1) * batch - (accepted + running))
    assert BoundedStaleness(staleness, 512).room(batch, running, accepted - version * batch) == capacity


def test_the_worked_numbers_of_the_capacity() -> None:
    four, none = BoundedStaleness(4, 512), BoundedStaleness(0, 512)
    assert [four.room(64, 0, 0), four.room(64, 100, 200 - 2 * 64), four.room(64, 20, 440 - 2 * 64)] == [320, 148, -12]
    assert [none.room(64, 0, 0), none.room(64, 64, 0)] == [64, 0]


def test_no_more_are_played_at_once_than_allowed() -> None:
    playing: set[str] = set()

    async def wait(tree: TurnTree) -> None:
        playing.add(tree.id)
        if tree.closed or len(playing - ended) > 3:
            raise AssertionError("too many at once")
        await asyncio.sleep(0)

    ended: set[str] = set()
    run = a_run(BoundedStaleness(4, most=3), wait=wait)
    plan = run.expander.plan

    def watched(forest: Any, event: Any) -> Any:
        commands = list(plan(forest, event))
        ended.update(command.tree.id for command in commands if isinstance(command, Close))
        return commands

    run.expander.plan = watched
    assert not any(metrics["lost"] for metrics, _ in played(run, 3))
    assert len(playing) > 6


def test_what_grows_too_old_is_given_up_and_the_record_says_so(tmp_path: Path) -> None:
    async def wait(tree: TurnTree) -> None:
        if number(tree) == 0 and len(tree.turns) > 3:
            await asyncio.Event().wait()

    store = RunStore.create(tmp_path / "run", {})
    heard = played(a_run(BoundedStaleness(1), wait=wait), 4, store)
    assert heard[-1][0]["aborted"] == 1
    assert all(number(tree) > 0 for _, trees in heard for tree in trees)
    (given_up,) = (tree for tree in store.trees() if number(tree) == 0)
    ends = [leaf for leaf in given_up.leaves() if leaf.outcome is Outcome.CANCELLED]
    assert ends
    assert all(leaf.reward is None for leaf in ends)


def test_environments_of_what_is_given_up_are_closed_once_their_threads_are_back() -> None:
    let_go, given_up, closed = threading.Event(), set[Any](), Counter[Any]()

    class Hanging(Letters):
        blocking = True

        def act(self, action: Any) -> Any:
            if self.lineage.path[2] == 0 and self.turn:
                given_up.add(self)
                let_go.wait()
            return super().act(action)

        def close(self) -> None:
            closed[self] += 1

    run, before = a_run(BoundedStaleness(1)), set(threading.enumerate())
    run.make_env = Hanging
    assert played(run, 4)[-1][0]["aborted"] == 1
    assert given_up
    assert not given_up & closed.keys()
    let_go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert {closed[env] for env in given_up} == {1}
    assert {*closed.values()} == {1}


def test_a_tree_that_ended_too_late_is_left_out() -> None:
    schedule = BoundedStaleness(1)
    old, new = (TurnTree(str(version), Task("t", "")) for version in (0, 2))
    for tree, version in ((old, 0), (new, 2)):
        tree.add(Turn(0, None, "policy", 0, versions=[(4, 3), (version, 2)]))
    schedule.push_due(2)
    assert schedule.select([old, new], 2) == [old, new]
    schedule.push_due(4)
    assert schedule.select([old, new], 4) == [new]
    assert schedule.metrics() == {"staleness": 1.0, "evicted": 1.0}


def test_a_run_that_was_killed_begins_anew_what_was_under_way(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, metrics: Any, trees: Any) -> None:
        learnt.extend(trees if step < 3 else [])
        if step == 3:
            raise Killed

    learnt: list[TurnTree] = []
    store = RunStore.create(tmp_path / "run", {})
    with pytest.raises(Killed):
        asyncio.run(train(a_run(BoundedStaleness(2)), 9, store, kill, checkpoint_every=1))
    store.close()
    store = RunStore.open(tmp_path / "run")
    again = [tree for _, trees in played(a_run(BoundedStaleness(2)), 5, store) for tree in trees]
    numbers = sorted(number(tree) for tree in (*learnt, *again))
    assert len(numbers) == len(set(numbers)) == 5 * BATCH
    recorded = {tree.id: tree for tree in store.trees()}
    for tree in (*learnt, *again):
        assert [turn.action for turn in recorded[tree.id].turns] == [turn.action for turn in tree.turns]


def test_a_source_that_fails_ends_the_run() -> None:
    class Broken(Uniform):
        def draw(self, n: int) -> Any:
            if self.drawn > 6:
                raise AgentGymError("no more tasks")
            self.drawn += n
            return super().draw(n)

        drawn = 0

    run = a_run(BoundedStaleness(1))
    run.source = Broken(Letters().tasks("train"))
    with pytest.raises(AgentGymError, match="no more tasks"):
        played(run, 9)


@pytest.mark.parametrize("most", [1, 1024])
def test_what_was_under_way_is_not_lost_by_a_second_kill(tmp_path: Path, most: int) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, metrics: Any, trees: Any) -> None:
        raise Killed

    store = RunStore.create(tmp_path / "run", {})
    learnt = [tree for _, trees in played(a_run(BoundedStaleness(3)), 1, store) for tree in trees]
    store.close()
    for _ in range(2):  # resumed, and killed again before anything of it is learnt
        store = RunStore.open(tmp_path / "run")
        saved = torch.load(store.resume()[1] / "state.pt", weights_only=True)["playing"]
        player = PlayingAhead(a_run(BoundedStaleness(3, most=most)), store, Clock(), BoundedStaleness(3, most=most))
        player.load_state_dict(saved)
        assert json.loads(player.state_dict()["under_way"]) == json.loads(saved["under_way"])
    with pytest.raises(Killed):
        asyncio.run(train(a_run(BoundedStaleness(3, most=most)), 9, store, kill, checkpoint_every=1))
    store.close()
    store = RunStore.open(tmp_path / "run")
    learnt += [tree for _, trees in played(a_run(BoundedStaleness(3, most=most)), 5, store) for tree in trees]
    numbers = sorted(map(number, learnt))
    assert len(set(numbers)) == len(numbers) == 5 * BATCH
    assert most > 1 or numbers == list(range(5 * BATCH))


def test_a_task_that_json_cannot_hold_is_refused_at_the_checkpoint(tmp_path: Path) -> None:
    class Sets(Letters):
        def tasks(self, split: str) -> list[Task]:
            return [Task(task.id, task.prompt, task.answer, data={"of": {1, 2}}) for task in super().tasks(split)]

    run = a_run(BoundedStaleness(1))
    run.make_env, run.source = Sets, Uniform(Sets().tasks("train"))
    with pytest.raises(AgentGymError, match="holds what JSON cannot"):
        played(run, 2, RunStore.create(tmp_path / "run", {}))


def test_an_error_while_the_learner_learns_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(BoundedStaleness(1))
    player = PlayingAhead(run, None, Clock(), run.schedule)
    player._error = AgentGymError("a rollout failed")
    with pytest.raises(AgentGymError, match="a rollout failed"):
        asyncio.run(player.forest())


class Waits:
    async def begin(self, run: Any) -> None: ...


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expander": TRACE(4, predictor=TaskPosterior())}, "TRACE plans their trees together"),
        ({"source": Pivots.__new__(Pivots)}, "Pivots waits for whole passes"),
        ({"hook": Waits()}, "plays on while Waits tries weights"),
    ],
)
def test_what_trees_share_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(AgentGymError, match=reason):
        replace(a_run(BoundedStaleness(1)), **change)


@pytest.mark.parametrize("wrong", [{"staleness": -1}, {"staleness": 1, "unit": 0}, {"staleness": 1, "most": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(AgentGymError, match="at least"):
        BoundedStaleness(**wrong)


def test_a_rollout_that_never_has_room_is_refused() -> None:
    with pytest.raises(AgentGymError, match="room for 2 starts where 0 of a batch of 2 wait, but a rollout plays 3"):
        played(a_run(BoundedStaleness(0, unit=3)), 1)


def test_a_unit_that_leaves_a_batch_unfilled_for_ever_is_refused() -> None:
    run = a_run(BoundedStaleness(0, unit=3))
    run.batch = 4
    with pytest.raises(AgentGymError, match="room for 1 starts where 3 of a batch of 4 wait"):
        played(run, 1)


def test_shared_weights_cannot_be_played_ahead() -> None:
    with pytest.raises(AgentGymError, match="BoundedStaleness needs an actor with weights of its own, and SharedWeights gives it none"):
        a_run(BoundedStaleness(1), sync=SharedWeights)
