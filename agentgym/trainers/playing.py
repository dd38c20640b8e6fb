"""Where a step's trees come from: a batch played for it, or what was played while others were learnt."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Protocol

import orjson

from agentgym.clock import Clock
from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.rollout import Closed, Rollout, Start
from agentgym.seeds import Lineage
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.schedules.periodic import Periodic
from agentgym.trainers.seams import Ahead, Stateful
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree


class Playing(Stateful, Protocol):
    def parts(self, step: int) -> AsyncGenerator[list[TurnTree], None]:
        """The trees of a step, closed or ended, as they may be learnt: all at once, or those of some tasks before others have ended."""

    def in_order(self, forest: list[TurnTree]) -> list[TurnTree]:
        """The trees of all parts of a step, in an order that time does not decide where it need not."""

    async def pushed(self) -> None:
        """The actor has new weights."""

    async def aclose(self) -> None:
        """Nothing more will be asked for."""


def playing(run: Training, store: RunStore | None, clock: Clock) -> Playing:
    if isinstance(run.schedule, Ahead):
        return PlayingAhead(run, store, clock, run.schedule)
    return (TaskByTask if isinstance(run.schedule, Periodic) else BatchByBatch)(run, store, clock)


def rollout_of(run: Training, store: RunStore | None, clock: Clock, number: int, closed: Closed | None = None) -> Rollout:
    return Rollout(
        run.make_env,
        run.expander,
        {"policy": run.actor, **run.models},
        run.chat,
        Lineage.of(run.seed, "train", number),
        limits=run.limits,
        committed=store.turn if store else None,
        closed=closed,
        clock=clock,
    )


class BatchByBatch(Stateless):
    """One rollout for each step, and nothing between them: equal runs are equal to the last bit."""

    def __init__(self, run: Training, store: RunStore | None, clock: Clock) -> None:
        self.run, self.store, self.clock = run, store, clock

    async def parts(self, step: int) -> AsyncGenerator[list[TurnTree], None]:
        yield await rollout_of(self.run, self.store, self.clock, step).run(self.run.source.draw(self.run.batch))

    def in_order(self, forest: list[TurnTree]) -> list[TurnTree]:
        return forest

    async def pushed(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class TaskByTask(BatchByBatch):
    """The same rollout for each step, but a task is handed on as soon as all its trees are complete."""

    def __init__(self, run: Training, store: RunStore | None, clock: Clock) -> None:
        super().__init__(run, store, clock)
        self._whole: list[TurnTree] = []  # of the last step

    async def parts(self, step: int) -> AsyncGenerator[list[TurnTree], None]:
        starts = self.run.source.draw(self.run.batch)
        complete = _Complete(starts)
        rollout = asyncio.create_task(rollout_of(self.run, self.store, self.clock, step, complete.add).run(starts))
        rollout.add_done_callback(lambda _: complete.changed.set())
        try:
            while not rollout.done():
                await complete.changed.wait()
                if part := complete.take():
                    yield part
            self._whole = rollout.result()
            if part := [tree for tree in self._whole if tree.id not in complete.taken]:
                yield part
        finally:
            rollout.cancel()
            await asyncio.gather(rollout, return_exceptions=True)

    def in_order(self, forest: list[TurnTree]) -> list[TurnTree]:
        return self._whole


class _Complete:
    """Trees that are complete, given away once all of their task are."""

    def __init__(self, starts: Sequence[Start]) -> None:
        self.changed = asyncio.Event()
        self.taken: set[str] = set()
        self._missing = Counter(start.task.id for start in starts)
        self._trees: dict[str, list[TurnTree]] = {}

    def add(self, tree: TurnTree) -> None:
        self._trees.setdefault(tree.task.id, []).append(tree)
        self._missing[tree.task.id] -= 1
        if not self._missing[tree.task.id]:
            self.changed.set()

    def take(self) -> list[TurnTree]:
        self.changed.clear()
        found = [tree for task in list(self._trees) if not self._missing[task] for tree in self._trees.pop(task)]
        self.taken.update(tree.id for tree in found)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A rollout that was begun and is not learnt yet, with its number among all."""

    number: int
    starts: Sequence[Start]
    rollout: Rollout


class PlayingAhead:
    """Rollouts of a few starts each, as many at once as the schedule has room for; the first that end are learnt first.

    A checkpoint holds what is under way by its numbers and starts: a resumed run begins it anew, with the same seeds, and what was
    logged of it then takes the place of what was logged before. ``aborted`` starts were too old to be trained on before they ended.
    """

    def __init__(self, run: Training, store: RunStore | None, clock: Clock, schedule: Ahead) -> None:
        self.run, self.store, self.clock, self.schedule = run, store, clock, schedule
        self._number = 0
        self._running: dict[asyncio.Task[list[TurnTree]], Begun] = {}
        self._ended: dict[Begun, list[TurnTree]] = {}  # the first that ended first
        self._learning: list[Begun] = []
        self._again: list[tuple[int, list[Start]]] = []  # what was under way when the run was saved
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._aborted = 0
        for waiting in range(0, run.batch, schedule.unit):
            if (room := schedule.room(run.batch, 0, waiting)) < schedule.unit:
                raise AgentGymError(
                    f"{type(schedule).__name__} has room for {room} starts where {waiting} of a batch of {run.batch} wait, but a rollout "
                    f"plays {schedule.unit}: choose a unit that divides the batch, or more staleness"
                )

    async def parts(self, step: int) -> AsyncGenerator[list[TurnTree], None]:
        yield await self.forest()

    def in_order(self, forest: list[TurnTree]) -> list[TurnTree]:
        return forest

    async def forest(self) -> list[TurnTree]:
        self._begin()
        while self._error is None and _starts(self._ended) < self.run.batch:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        forest: list[TurnTree] = []
        while len(forest) < self.run.batch:
            begun = next(iter(self._ended))
            forest += self._ended.pop(begun)
            self._learning.append(begun)
        return forest

    async def pushed(self) -> None:
        self._learning = []
        late = [task for task, begun in self._running.items() if any(map(self.schedule.is_stale, begun.rollout.forest))]
        self._aborted += _starts(self._running[task] for task in late)
        await self._abort(late)
        self._begin()

    async def aclose(self) -> None:
        await self._abort(list(self._running))

    async def _abort(self, tasks: Sequence[asyncio.Task[list[TurnTree]]]) -> None:
        for task in tasks:
            del self._running[task]
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def state_dict(self) -> dict[str, Any]:
        begun = [(one.number, one.starts) for one in (*self._ended, *self._running.values())]
        under_way = [(number, [asdict(start) for start in starts]) for number, starts in sorted((*begun, *self._again), key=itemgetter(0))]
        try:
            kept = orjson.dumps(under_way, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
        except TypeError as error:
            reason = f"a checkpoint keeps the tasks that are under way as JSON, and one holds what JSON cannot: {error}"
            raise AgentGymError(f"{reason}. Keep plain values in Task.data and Task.answer") from error
        return {"number": self._number, "under_way": kept, "aborted": self._aborted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._number, self._aborted = state["number"], state["aborted"]
        for number, starts in orjson.loads(state["under_way"]):
            self._again.append((number, [Start(Task(**start["task"]), start["tags"]) for start in starts]))

    def metrics(self) -> dict[str, float]:
        return {"aborted": float(self._aborted), "running": float(len(self._running)), "waiting": float(len(self._ended))}

    def _begin(self) -> None:
        while self.schedule.room(self.run.batch, _starts(self._running.values()), self._waiting()) >= self.schedule.unit:
            number, starts = self._again.pop(0) if self._again else self._drawn()
            rollout = rollout_of(self.run, self.store, self.clock, number)
            task = asyncio.create_task(rollout.run(starts))
            self._running[task] = Begun(number, starts, rollout)
            task.add_done_callback(self._finished)

    def _drawn(self) -> tuple[int, list[Start]]:
        self._number += 1
        return self._number - 1, self.run.source.draw(self.schedule.unit)

    def _waiting(self) -> int:
        return _starts((*self._ended, *self._learning))

    def _finished(self, task: asyncio.Task[list[TurnTree]]) -> None:
        begun = self._running.pop(task, None)
        if begun is None or task.cancelled():
            return
        try:
            self._ended[begun] = task.result()
            self._begin()
        except BaseException as error:  # a callback has nobody who would hear of it
            self._error = self._error or error
        self._changed.set()


def _starts(rollouts: Iterable[Begun]) -> int:
    return sum(len(begun.starts) for begun in rollouts)
