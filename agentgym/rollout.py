"""The rollout engine: grows a forest of turns as an expander commands, many episodes at once, none able to end another."""

from __future__ import annotations

import asyncio
import gc
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from agentgym.chat import Chat
from agentgym.clock import Clock
from agentgym.env import AgentEnv, Info
from agentgym.errors import AgentGymError, JudgeError
from agentgym.expand import Close, Command, Event, Expander, Extend, Idle, LeafDone, Started, Stop, TurnDone
from agentgym.outcome import Outcome
from agentgym.pacing import Stopwatch, Threads, Turnstile
from agentgym.policy import Actor, Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import End, Turn, TurnTree, begun, path

Result = TypeVar("Result")
FAULTS = (Exception, SystemExit)  # what a tool may raise without ending the other episodes
MOST_THREADS = 256  # that work for blocking environments at once
MOST_IN_A_ROUND = 32  # turns that step between two looks of the event loop at all else
FREEZE_AFTER = 512  # turns
LEAST_ROOM = 16  # tokens: with less left for an action, the episode's budget is spent


@dataclass(frozen=True, slots=True)
class Limits:
    """``tokens`` of the whole context, ``turn_tokens`` of one action, ``seconds`` of one episode, ``width`` turns at once."""

    tokens: int = 2048
    turn_tokens: int = 256
    seconds: float | None = None
    width: int = 256


@dataclass(frozen=True, slots=True)
class Start:
    """Where an episode starts: a task, with tags for reports."""

    task: Task
    tags: Mapping[str, Any] = field(default_factory=dict)


Committed = Callable[[TurnTree, Turn], None]
Closed = Callable[[TurnTree], None]


class Rollout:
    """Grows one forest. ``lineage`` names the run's sub-stream: equal lineages, weights and plans give equal forests.

    An environment whose ``blocking`` is true works in one of a few threads; the others work on the event loop, in a fixed order.
    ``committed`` is called with each turn, in commit order, and ``closed`` with each tree as soon as it is complete. ``clock`` hears when
    generations and environments are under way.
    """

    def __init__(
        self,
        make_env: Callable[[], AgentEnv],
        expander: Expander,
        actors: Mapping[str, Actor],
        chat: Chat | None,
        lineage: Lineage,
        *,
        limits: Limits | None = None,
        temperature: float = 1.0,
        committed: Committed | None = None,
        closed: Closed | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.make_env = make_env
        self.expander = expander
        self.actors = actors
        self.chat = chat
        self.lineage = lineage
        self.limits = limits or Limits()
        self.temperature = temperature
        self.committed = committed or (lambda tree, turn: None)
        self.closed = closed or (lambda tree: None)
        self.clock = clock or Clock()
        self.forest: list[TurnTree] = []
        self._idle_envs: list[AgentEnv] = []
        self._live: dict[Turn, AgentEnv] = {}  # environments that stand where a turn ended
        self._branches: dict[Turn, int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()  # nothing is running, or something failed
        self._error: BaseException | None = None
        self._slots = asyncio.Semaphore(self.limits.width)
        self._turns = 0
        self._turnstile = Turnstile(MOST_IN_A_ROUND)
        self._threads, self._free_threads = Threads(), asyncio.Semaphore(MOST_THREADS)

    async def run(self, starts: Sequence[Start]) -> list[TurnTree]:
        """Play until the expander has no more commands. Returns one tree for each start, in order."""
        trees: list[TurnTree] = []
        seen: Counter[str] = Counter()
        try:
            for start in starts:
                # Numbered among those of its own task: what else is played beside it changes no seed.
                lineage = self.lineage / start.task.id / seen[start.task.id]
                seen[start.task.id] += 1
                trees.append(TurnTree("/".join(map(str, lineage.path)), start.task, dict(start.tags)))
                self._spawn(self._start(trees[-1], lineage))
            await self._rest()
            self._plan(Idle())
            while self._running:
                await self._rest()
                self._plan(Idle())
        except asyncio.CancelledError:
            self._cancel_all()
            raise
        finally:
            for task in self._running:
                task.cancel()
            self._release_all()
            if self._turns >= FREEZE_AFTER:
                gc.unfreeze()
        return trees

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
        if not self._running or self._error is not None:
            self._wake.set()

    async def _rest(self) -> None:
        """Until nothing is running, or something failed, which it raises."""
        while self._running and self._error is None:
            self._wake.clear()
            await self._wake.wait()
        if self._error is not None:
            raise self._error

    async def _start(self, tree: TurnTree, lineage: Lineage) -> None:
        root = Turn(0, None, "env", (lineage / "sample").seed())
        async with self._slots:
            try:
                watch = Stopwatch(0.0, self.limits.seconds)
                async with watch.deadline:
                    await self._turnstile.pass_one()
                    env = self._new_env()
                    _, info = await self._call(env, partial(self._reset, env, root, tree.task, lineage / "env"), watch)
                root.replies, tree.tools = info["messages"], info["tools"]
                root.ids = self.chat.open(root.replies, tree.tools) if self.chat else []
                if self.limits.tokens - len(root.ids) < LEAST_ROOM:
                    raise AgentGymError(
                        f"the opening of task {tree.task.id} has {len(root.ids)} tokens, but the limit is {self.limits.tokens} "
                        "for the whole episode: raise Limits.tokens"
                    )
                self._live[root] = env
            except FAULTS as error:
                _fail(root, error)
        self.forest.append(tree)
        self._add(tree, root)
        if root.end is None:
            self._plan(Started(tree))
        else:
            self._close(tree)

    def _reset(self, env: AgentEnv, root: Turn, task: Task, lineage: Lineage) -> tuple[str, Info]:
        observation, info = env.reset(options={"task": task, "lineage": lineage})
        root.key, root.snapshot = env.key(), env.snapshot()
        return observation, info

    def _plan(self, event: Event) -> None:
        self._obey(self.expander.plan(self.forest, event))

    def _obey(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Extend():
                    self._extend_all(command)
                case Stop(tree, turn, verdict):
                    self._spawn(self._end(tree, turn) if verdict else self._cancel(tree, turn))
                case Close(tree):
                    for turn in tree.turns:
                        turn.cache = None
                        self._release(turn)
                    self._close(tree)

    def _close(self, tree: TurnTree) -> None:
        if not tree.closed:
            tree.closed = True
            self.closed(tree)

    def _extend_all(self, command: Extend) -> None:
        turn = command.turn
        if turn.end is not None:
            raise AgentGymError(f"the expander extends {turn!r} of {command.tree.id}, where the episode has ended")
        first = self._branches.get(turn, 0)
        self._branches[turn] = first + command.n
        for branch in range(first, first + command.n):
            self._spawn(self._extend(command, branch))

    async def _extend(self, command: Extend, branch: int) -> None:
        tree, parent = command.tree, command.turn
        turn = Turn(-1, parent, command.actor, Lineage.of(parent.seed, "branch", branch).seed(), executed=command.execute)
        async with self._slots:
            watch = Stopwatch(parent.seconds, self.limits.seconds)
            env: AgentEnv | None = None
            try:
                async with watch.deadline:
                    generation = await self._generate(command, turn)
                    await self._turnstile.pass_one()
                    self._write(turn, generation)
                    turn.action_tokens = len(turn.ids)
                    if command.segment and command.execute and self._may_go_on(turn):
                        turn.partial, turn.executed = True, False
                    if turn.executed:
                        env = await self._env_at(parent, watch)
                        await self._call(env, partial(self._step, env, turn), watch)
                restarts = not self._bridge(turn)
            except FAULTS as error:
                _fail(turn, error)
                env, restarts = None, False  # whatever state it is in, nothing continues from there
            turn.seconds = watch.seconds
        await self._commit(tree, turn, env, restarts)

    async def _generate(self, command: Extend, turn: Turn) -> Generation:
        actor = self.actors.get(command.actor)
        if actor is None:
            raise AgentGymError(f"no actor named {command.actor!r}; there are {', '.join(self.actors)}")
        assert turn.parent is not None
        left = self._left_of_action(turn.parent)
        most = max(1, min(command.max_tokens or left, left, self.limits.tokens - turn.parent.length))
        sampling = Sampling(self.temperature, most, turn.seed)
        with self.clock.during("generate"):
            return await actor.generate(Prompt(command.tree, turn.parent), sampling)

    def _left_of_action(self, turn: Turn) -> int:
        return self.limits.turn_tokens - sum(segment.action_tokens for segment in begun(turn))

    def _may_go_on(self, turn: Turn) -> bool:
        """Whether the action has not ended, and there is room for more of it."""
        assert turn.parent is not None
        if self.chat is None or turn.ids[-1] in self.chat.stop_ids:
            return False
        return len(turn.ids) < min(self._left_of_action(turn.parent), self.limits.tokens - turn.parent.length)

    def _write(self, turn: Turn, generation: Generation) -> None:
        turn.cache = generation.cache
        turn.versions = generation.versions
        turn.metrics = {"cut_off": 1.0} if generation.finish == "length" else {}
        turn.tokens_read, turn.tokens_written = generation.tokens_read, generation.tokens_written
        if generation.text is not None:
            turn.action = generation.text
            turn.ids = self.chat.write(generation.text) if self.chat else []
            if len(turn.ids) > self.limits.turn_tokens:
                turn.metrics = {"cut_off": 1.0}
            return
        if self.chat is None:
            raise AgentGymError("a policy that samples tokens needs a chat format: pass chat=")
        turn.ids = list(generation.ids)
        turn.sampled_tokens = len(turn.ids)
        turn.logprobs, turn.entropies = array("d", generation.logprobs), array("d", generation.entropies)
        turn.action = self.chat.read(_whole_action(turn))

    def _step(self, env: AgentEnv, turn: Turn) -> None:
        _, reward, terminated, truncated, info = env.step(turn.action)
        turn.reward, turn.outcome, turn.replies = float(reward), info["outcome"], info["messages"]
        turn.observation.encode()  # raises on a lone surrogate, which no file or tokenizer can hold
        turn.end = "done" if terminated else "truncated" if truncated else None
        turn.metrics = {**turn.metrics, **info.get("metrics", {})}
        turn.key = env.key()
        if self.expander.forks and turn.end is None:
            turn.snapshot = env.snapshot()

    def _bridge(self, turn: Turn) -> bool:
        """Add the tokens up to where the next action begins; False where the template rewrites history instead."""
        if self.chat is None or turn.end is not None or not turn.executed:
            return True
        assert turn.parent is not None
        before = _before_action(turn)
        delta = self.chat.bridge(before.ids, _whole_action(turn), turn.replies)
        turn.ids = turn.ids + (delta or [])
        return delta is not None

    async def _commit(self, tree: TurnTree, turn: Turn, env: AgentEnv | None, restarts: bool) -> None:
        self._add(tree, turn)
        if env is not None:
            self._live[turn] = env
        if restarts:
            turn = self._restart(tree, turn)
        follows = turn.end is None and (turn.executed or turn.partial)
        if follows and self.limits.tokens - turn.length < LEAST_ROOM:
            await self._stop(tree, turn, "budget")
        if turn.end is not None:
            self._release(turn)
            self._plan(LeafDone(tree, turn))
        else:
            self._plan(TurnDone(tree, turn))

    def _add(self, tree: TurnTree, turn: Turn) -> None:
        tree.add(turn)
        self._turns += 1
        if self._turns % FREEZE_AFTER == 0:
            gc.freeze()  # until the end of ``run``: else each full collection walks through the tokens of all turns
        self.committed(tree, turn)

    def _restart(self, tree: TurnTree, turn: Turn) -> Turn:
        """The template rewrites history: the next context is a new one, below the turn that it rewrites."""
        assert self.chat is not None
        fresh = Turn(-1, turn, "env", Lineage.of(turn.seed, "restart").seed(), restarts=True, key=turn.key, snapshot=turn.snapshot)
        try:
            fresh.ids = self.chat.open(Prompt(tree, turn).messages, tree.tools)
        except Exception as error:
            _fail(fresh, error)
        fresh.seconds = turn.seconds
        self._live[fresh] = self._live.pop(turn)
        self._add(tree, fresh)
        return fresh

    async def _end(self, tree: TurnTree, turn: Turn) -> None:
        await self._stop(tree, turn, "truncated")
        self._plan(LeafDone(tree, turn))

    async def _cancel(self, tree: TurnTree, turn: Turn) -> None:
        turn.reward, turn.end, turn.outcome = None, "truncated", Outcome.CANCELLED
        self._release(turn)
        self.committed(tree, turn)
        self._plan(LeafDone(tree, turn))

    def _cancel_all(self) -> None:
        """The rollout is given up: its record says so of every episode that has no end."""
        for tree in self.forest:
            tree.closed = True
            for turn in [turn for turn in tree.turns if not turn.children and turn.end is None and (turn.executed or turn.partial)]:
                turn.reward, turn.end, turn.outcome = None, "truncated", Outcome.CANCELLED
                self.committed(tree, turn)

    async def _stop(self, tree: TurnTree, turn: Turn, end: End) -> None:
        """End an unfinished episode from outside, with its score as it stands."""
        watch = Stopwatch(turn.seconds)
        try:
            env = await self._env_at(turn, watch)
            reward, turn.metrics = await self._call(env, partial(env.stop, end), watch)
            turn.reward = (turn.reward or 0.0) + reward
            turn.end = end
            self._idle_envs.append(env)
        except FAULTS as error:
            _fail(turn, error)
        self.committed(tree, turn)

    async def _env_at(self, turn: Turn, watch: Stopwatch) -> AgentEnv:
        """An environment in the state after ``turn``: the one that is there, or another restored from its snapshot."""
        turn = turn if not turn.partial else _before_action(turn)
        env = self._live.pop(turn, None)
        if env is None:
            if turn.snapshot is None:
                raise AgentGymError(f"{turn!r} has no snapshot to fork from: its expander needs forks = True")
            env = self._new_env()
            await self._call(env, partial(env.restore, turn.snapshot), watch)
        return env

    async def _call(self, env: AgentEnv, function: Callable[[], Result], watch: Stopwatch) -> Result:
        """In a thread where the environment waits for something. The turn's time does not pass until a thread is free."""
        if not env.blocking:
            with self.clock.during("environment", alone=True):
                return function()
        try:
            await watch.wait_for(self._free_threads)
        except asyncio.CancelledError:
            env.close()
            raise
        try:
            with self.clock.during("environment"):
                return await self._call_in_thread(env, function)
        finally:
            self._free_threads.release()

    async def _call_in_thread(self, env: AgentEnv, function: Callable[[], Result]) -> Result:
        """Where the call is given up, nobody knows of the environment any more: the second of it and its thread closes it."""
        first = threading.Lock()

        def work() -> Result:
            try:
                return function()
            finally:
                if not first.acquire(blocking=False):
                    env.close()

        try:
            return await self._threads.call(work)
        except asyncio.CancelledError:
            if not first.acquire(blocking=False):
                env.close()
            raise

    def _new_env(self) -> AgentEnv:
        if self._idle_envs:
            return self._idle_envs.pop()
        with self.clock.during("environment", alone=True):
            return self.make_env()

    def _release(self, turn: Turn) -> None:
        if (env := self._live.pop(turn, None)) is not None:
            self._idle_envs.append(env)

    def _release_all(self) -> None:
        for turn in list(self._live):
            self._release(turn)
        for env in self._idle_envs:
            env.close()
        self._idle_envs.clear()
        self._threads.close()


def _before_action(turn: Turn) -> Turn:
    """The turn after which the action that ``turn`` ends or goes on with began."""
    assert turn.parent is not None
    first = begun(turn.parent)[:1]
    before = first[0].parent if first else turn.parent
    assert before is not None
    return before


def _whole_action(turn: Turn) -> list[int]:
    assert turn.parent is not None
    return [token for segment in (*begun(turn.parent), turn) for token in segment.ids]


def _fail(turn: Turn, error: BaseException) -> None:
    """A fault that is not the policy's: the episode has no verdict."""
    turn.reward, turn.end = None, "error"
    turn.error = f"{type(error).__name__}: {error}"
    turn.metrics = {f"blame_{getattr(error, 'blames', AgentGymError.blames)}": 1.0}
    match error:
        case TimeoutError():
            turn.outcome = Outcome.TIMEOUT
        case JudgeError():
            turn.outcome = Outcome.JUDGE
        case _:
            turn.outcome = Outcome.INFRASTRUCTURE


def episode(leaf: Turn) -> list[Turn]:
    """The turns of one episode in which somebody acted, in order."""
    return [turn for turn in path(leaf) if turn.author != "env" and not turn.partial]
