"""Each moment of a run counts once, for what holds it up."""

import asyncio
import threading
from contextlib import suppress

import pytest

from agentgym import AgentEnv, Lineage, Reply, Rollout, Start, Task
from agentgym.clock import ACTIVITIES, Clock
from agentgym.expand import Groups
from agentgym.policy import Generation


class Time:
    """Stands still but for what is worked."""

    def __init__(self):
        self.now, self.lock = 0.0, threading.Lock()

    def __call__(self):
        return self.now

    def work(self, seconds):
        with self.lock:
            self.now += seconds


def seconds(clock):
    """The lap's seconds that are not 0, without the prefix."""
    lap = clock.lap()
    assert list(lap) == [f"seconds_{name}" for name in (*ACTIVITIES, "idle")]
    return {name.removeprefix("seconds_"): value for name, value in lap.items() if value}


def test_of_what_overlaps_the_first_counts_and_a_lap_sums_to_the_time_that_passed():
    time = Time()
    clock = Clock(time)
    time.work(1)
    with clock.during("environment"):
        time.work(2)
        with clock.during("generate"):
            time.work(4)
            with clock.during("learn"):
                time.work(8)
            with clock.during("environment", alone=True):
                time.work(16)
            time.work(32)
        assert seconds(clock) == {"idle": 1, "environment": 18, "generate": 36, "learn": 8}
        time.work(64)
    time.work(128)
    assert seconds(clock) == {"environment": 64, "idle": 128}
    assert seconds(clock) == {}


def test_two_of_a_kind_count_once_and_a_fault_ends_its_activity():
    time = Time()
    clock = Clock(time)
    with clock.during("generate"), clock.during("generate"):
        time.work(1)
    with suppress(KeyError), clock.during("score"):
        time.work(2)
        raise KeyError
    time.work(4)
    assert seconds(clock) == {"generate": 1, "score": 2, "idle": 4}


class Works(AgentEnv):
    """One turn of 3 seconds, after a beginning of 1 and a making of 10."""

    max_turns = 1

    def __init__(self, time):
        super().__init__()
        self.time = time
        time.work(10)

    def begin(self, task):
        self.state = None
        self.time.work(1)

    def act(self, action):
        self.time.work(3)
        return Reply("Done.", ends=True)

    def score(self):
        return 1.0


class Waits(Works):
    """No two of a pair have begun before both have."""

    blocking = True
    both = threading.Barrier(2)

    def begin(self, task):
        super().begin(task)
        self.both.wait(60)


class Slow:
    """Generates for 2 seconds of its own, after what it ``waits_for``, by task."""

    def __init__(self, time, waits_for=None):
        self.time, self.waits_for = time, waits_for or {}

    async def generate(self, prompt, sampling):
        await asyncio.sleep(0)
        for event in self.waits_for.get(prompt.tree.task.id, ()):
            await event.wait()
        self.time.work(2)
        return Generation(text="I act.")


def played(make_env, actor, clock, tasks, committed=None):
    rollout = Rollout(make_env, Groups(1), {"policy": actor}, None, Lineage.of(0), committed=committed, clock=clock)
    forest = asyncio.run(rollout.run([Start(Task(name, "Act.")) for name in tasks]))
    assert [leaf.reward for tree in forest for leaf in tree.leaves()] == [1.0] * len(tasks)
    return seconds(clock)


@pytest.mark.parametrize("count", [1, 3])
def test_an_environment_on_the_event_loop_is_not_hidden_behind_generations_that_cannot_go_on(count):
    time = Time()
    spent = played(lambda: Works(time), Slow(time), Clock(time), ["a", "b", "c"][:count])
    assert spent == {"environment": 14 * count, "generate": 2 * count}


def test_an_environment_in_a_thread_counts_where_no_generation_is_under_way():
    """The second generation is under way all through the first step, and hides it; nothing hides the second step."""
    time = Time()

    async def play():
        both, over = asyncio.Barrier(2), asyncio.Event()

        def committed(tree, turn):
            if turn.parent is not None and tree.task.id == "first":
                over.set()

        clock, actor = Clock(time), Slow(time, {"first": [both], "second": [both, over]})
        rollout = Rollout(lambda: Waits(time), Groups(1), {"policy": actor}, None, Lineage.of(0), committed=committed, clock=clock)
        await rollout.run([Start(Task(name, "Act.")) for name in ("first", "second")])
        return seconds(clock)

    assert asyncio.run(play()) == {"environment": 2 * (10 + 1) + 3, "generate": 2 * 2 + 3}


def test_planning_and_logging_are_idle():
    time = Time()
    spent = played(lambda: Works(time), Slow(time), Clock(time), ["a"], committed=lambda tree, turn: time.work(5))
    assert spent == {"environment": 14, "generate": 2, "idle": 10}
