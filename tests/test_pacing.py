import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from functools import partial

import pytest

from agentgym import AgentEnv, Limits, Lineage, Outcome, Reply, Rollout, Start, Task, call, rollout, tool
from agentgym.expand import Groups
from agentgym.pacing import Stopwatch, Threads, Turnstile
from agentgym.policies.scripted import Scripted
from agentgym.turn import total_reward

MARK = ContextVar("mark", default="none")


class Ends(AgentEnv):
    """One call ends an episode with 1. A task's answer ``hang`` never returns; ``wait`` takes a while."""

    snapshots = "value"
    blocking = True
    inside: threading.Semaphore

    def begin(self, task):
        self.state = 0

    @tool
    def end(self) -> Reply:
        """End the episode."""
        if self.task.answer == "hang":
            threading.Event().wait()
        if self.task.answer == "wait":
            time.sleep(0.2)
        return Reply("The end.", reward=1.0, ends=True)


class OnLoop(Ends):
    blocking = False


def play(tasks, make_env=Ends, actor=None, **limits):
    engine = Rollout(make_env, Groups(1), {"policy": actor or Scripted([call("end")])}, None, Lineage.of(0), limits=Limits(**limits))
    return asyncio.run(engine.run([Start(task) for task in tasks]))


def tasks(count, answer=None):
    return [Task(f"{answer}{n}", "End.", answer) for n in range(count)]


def test_a_thread_is_used_again_and_nothing_of_a_call_is_left_in_it():
    def mark():
        found = MARK.get()
        MARK.set("left")
        return threading.get_ident(), found

    async def main():
        threads = Threads()
        found = [await threads.call(mark) for _ in range(3)]
        threads.close()
        return found

    found = asyncio.run(main())
    assert len({ident for ident, _ in found}) == 1
    assert {mark for _, mark in found} == {"none"}


def test_a_thread_ends_when_it_is_closed_whether_idle_or_late_and_when_the_loop_is_gone():
    before, let_go = set(threading.enumerate()), threading.Event()

    async def main(stays):
        threads = Threads()
        await asyncio.gather(threads.call(int), threads.call(int))  # one of two is idle later
        late = asyncio.create_task(threads.call(let_go.wait))
        await asyncio.sleep(0.01)
        if stays:
            late.cancel()
        threads.close()
        if stays:
            let_go.set()
            await asyncio.sleep(0.05)

    asyncio.run(main(True))
    let_go.clear()
    asyncio.run(main(False))
    let_go.set()
    all_end(before)


def all_end(before):
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_clock_stands_still_while_it_waits_and_goes_on_afterwards():
    reached = []

    async def main():
        clock, free = Stopwatch(5.0, 5.1), asyncio.Semaphore(0)
        asyncio.get_running_loop().call_later(0.4, free.release)
        async with clock.deadline:
            await clock.wait_for(free)  # longer than the 0.1 s that are left
            reached.append("free")
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert reached == ["free"]


def test_there_are_never_more_threads_than_allowed(monkeypatch):
    monkeypatch.setattr(rollout, "MOST_THREADS", 3)
    seen, lock = [], threading.Lock()

    class Counted(Ends):
        def act(self, action):
            with lock:
                seen.append(threading.active_count())
            time.sleep(0.005)
            return super().act(action)

    before = set(threading.enumerate())
    forest = play(tasks(40), Counted)
    all_end(before)
    assert [total_reward(tree.leaves()[0]) for tree in forest] == [1.0] * 40
    assert max(seen) - len(before) == 3


def test_calls_that_hang_are_given_up_and_the_time_of_those_behind_them_does_not_pass(monkeypatch):
    monkeypatch.setattr(rollout, "MOST_THREADS", 2)
    forest = play([*tasks(4, "hang"), *tasks(6)], seconds=0.5)
    for number, tree in enumerate(forest):
        (leaf,) = tree.leaves()
        if number < 4:
            assert (leaf.outcome, total_reward(leaf)) == (Outcome.TIMEOUT, None)
        else:
            assert total_reward(leaf) == 1.0  # they waited twice as long as an episode may take
            assert leaf.seconds < 0.5


class Closing(Ends):
    """Its calls last until ``let_go``; ``closed`` has how often each environment was closed, and whether a call was in it."""

    let_go: threading.Event
    inside: Counter[int]
    closed: dict[int, list[bool]]

    def __init__(self):
        super().__init__()
        self.number = len(self.closed)
        self.closed[self.number] = []

    def begin(self, task):
        super().begin(task)
        if task.answer == "begin":
            self.wait()

    def act(self, action):
        self.wait()
        return super().act(action)

    def wait(self):
        self.inside[self.number] += 1
        self.let_go.wait()
        self.inside[self.number] -= 1

    def close(self):
        self.closed[self.number].append(self.inside[self.number] > 0)


def closing(**more):
    return type("ClosingNow", (Closing,), {"let_go": threading.Event(), "inside": Counter(), "closed": {}, **more})


async def begun(made, count):
    """Until so many calls are under way."""
    while sum(made.inside.values()) < count:
        await asyncio.sleep(0.005)


def comes_true(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("loop_stays", [True, False])
def test_what_steps_in_a_thread_as_its_rollout_is_given_up_is_closed_once_the_thread_is_back(monkeypatch, loop_stays):
    monkeypatch.setattr(rollout, "MOST_THREADS", 3)
    made, before = closing(), set(threading.enumerate())

    async def main():
        engine = Rollout(made, Groups(1), {"policy": Scripted([call("end")])}, None, Lineage.of(0))
        run = asyncio.create_task(engine.run([Start(task) for task in [*tasks(2, "begin"), *tasks(4)]]))
        await begun(made, 3)
        await asyncio.sleep(0.05)  # the others begin, or wait for a thread
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await asyncio.sleep(0.05)
        found = dict(made.inside), {number: list(closed) for number, closed in made.closed.items()}
        if loop_stays:
            made.let_go.set()
            while not all(made.closed.values()):
                await asyncio.sleep(0.005)
        return found

    inside, closed = asyncio.run(asyncio.wait_for(main(), 10))
    stepping = {number for number, calls in inside.items() if calls}
    assert len(stepping) == 3
    assert closed == {number: [] if number in stepping else [False] for number in closed}
    assert len(closed) > 3
    made.let_go.set()
    assert comes_true(lambda: all(made.closed.values()))
    all_end(before)
    assert made.closed == {number: [False] for number in closed}


def test_what_is_given_up_between_a_threads_end_and_its_news_is_closed_too():
    made, before = closing(), set(threading.enumerate())

    async def main():
        engine = Rollout(made, Groups(1), {"policy": Scripted([call("end")])}, None, Lineage.of(0))
        run = asyncio.create_task(engine.run([Start(task) for task in tasks(1)]))
        await begun(made, 1)
        made.let_go.set()
        assert comes_true(lambda: not made.inside[0])  # while the loop stands still, it hears of nothing
        time.sleep(0.05)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    asyncio.run(main())
    all_end(before)
    assert made.closed == {0: [False]}


def test_an_environment_whose_time_was_over_is_closed_once_its_thread_is_back():
    made, before = closing(), set(threading.enumerate())
    (tree,) = play(tasks(1), made, seconds=0.1)
    assert tree.leaves()[0].outcome is Outcome.TIMEOUT
    assert made.closed == {0: []}
    made.let_go.set()
    all_end(before)
    assert made.closed == {0: [False]}


def test_the_event_loop_is_seen_to_between_turns(monkeypatch):
    """Between the first turn and the last of many that are ready at once, other tasks run."""
    monkeypatch.setattr(rollout, "MOST_IN_A_ROUND", 16)  # few, so that other waits of the engine do not make up as many rounds
    rounds = [0]

    async def main():
        async def other():
            while True:
                rounds[0] += 1
                await asyncio.sleep(0)

        asyncio.create_task(other())  # noqa: RUF006  (it ends with the loop)
        engine = Rollout(OnLoop, Groups(1), {"policy": Scripted([call("end")])}, None, Lineage.of(0), limits=Limits(width=1000))
        return await engine.run([Start(task) for task in tasks(640)])

    assert len(asyncio.run(main())) == 640
    assert rounds[0] >= 2 * 640 // rollout.MOST_IN_A_ROUND


def test_a_long_run_thaws_what_it_froze(monkeypatch):
    monkeypatch.setattr(rollout, "FREEZE_AFTER", 4)
    frozen = []

    def act(prompt):
        frozen.append(gc.get_freeze_count())
        return call("end")

    before = gc.get_freeze_count()
    play(tasks(20), OnLoop, Scripted(act))
    assert max(frozen) > before
    assert gc.get_freeze_count() == 0


def test_a_turnstile_lets_so_many_pass_in_a_round_in_the_order_of_arrival():
    async def main():
        loop, rounds, passed = asyncio.get_running_loop(), [0], []

        def tick():
            rounds[0] += 1
            if len(passed) < 11:
                loop.call_soon(tick)

        async def walk(number):
            await gate.pass_one()
            passed.append((number, rounds[0]))

        gate = Turnstile(3)
        given_up = asyncio.create_task(gate.pass_one())
        loop.call_soon(tick)
        walkers = [asyncio.create_task(walk(number)) for number in range(11)]
        walkers[7].cancel()
        await asyncio.gather(given_up, *walkers, return_exceptions=True)
        return passed

    passed = asyncio.run(asyncio.wait_for(main(), 10))
    assert [number for number, _ in passed] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert max(Counter(seen for _, seen in passed).values()) <= 3


class Held:
    """What a call holds on to."""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_call_is_held_once_it_is_done_however_it_ended(fails):
    async def main():
        threads, held = Threads(), Held()
        gone = weakref.ref(held)

        def use(held):
            if fails:
                raise ValueError("no")

        with suppress(ValueError):
            await threads.call(partial(use, held))
        del held
        for _ in range(200):  # the thread may be a moment behind
            if gone() is None:
                break
            await asyncio.sleep(0.01)
        threads.close()
        return gone() is None

    gc.disable()
    try:
        assert asyncio.run(main())
    finally:
        gc.enable()
