"""The environment contract: a true `gymnasium.Env`, text in and text out, whose episodes can be forked at any turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from agentgym.action import EXAMPLE, Action, Call, format_action, parse_action
from agentgym.errors import AgentGymError, SnapshotMismatch, ToolError
from agentgym.outcome import Outcome
from agentgym.seeds import Lineage
from agentgym.snapshot import Effect, Kind, Snapshot, culprit, effects, excerpt, state_digest
from agentgym.task import Task
from agentgym.tool import Tool, is_tool, to_text

# Errors that a typed function raises for bad input: the policy reads them. Anything else is a fault of the environment.
REFUSALS = (ToolError, ValueError, LookupError, ArithmeticError)
NUMBER: ContextVar[int] = ContextVar("number")  # of a tool call within its turn, where several run at once
MOST_AT_ONCE = 16  # read-only calls of one turn
OK = Outcome.OK  # to look an enumeration's member up costs as much as a call does
Info = dict[str, Any]


class AnyText(gymnasium.spaces.Text):
    """All strings up to ``max_length`` characters, whatever their alphabet."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


@dataclass(slots=True)
class Reply:
    """What an environment answers to one action. ``messages`` defaults to ``text`` as one user message."""

    text: str
    reward: float = 0.0
    ends: bool = False
    outcome: Outcome = Outcome.OK
    messages: Sequence[dict[str, Any]] = ()


class AgentEnv(gymnasium.Env[str, str]):
    """An environment for a tool-calling agent. A subclass writes ``tasks``, ``begin``, its ``@tool`` methods and ``score``.

    All that changes during an episode lives in ``self.state``; everything else is shared by all episodes and stays as it
    is. With ``snapshots = "value"`` the state is immutable (a frozen dataclass, a tuple) and a fork costs microseconds;
    with ``"copy"`` it is deep-copied. With ``"log"`` it may be anything, such as a connection: a fork calls ``begin`` and
    replays the calls of the tools that are not declared ``@tool(effect="read")``, or all actions where ``act`` is overridden.
    Where ``blocking`` is true, consecutive calls of such tools in one turn run together.

    ``reset(options=...)`` takes ``task`` (a `Task` or its id), ``split``, and ``lineage`` (a `Lineage` for all draws).
    An observation is the text that the last turn adds. ``info["messages"]`` holds the same as chat messages (at reset:
    system and user), ``info["tools"]`` (at reset) the tools in OpenAI's form, ``info["outcome"]`` how the turn went.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (declared so by Gymnasium)
    system: str = ""
    max_turns: int = 16
    max_calls: int | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)
    splits: tuple[str, ...] = ("train",)  # the first is played by default
    blocking: bool = False  # True: ``step`` waits for something, so the rollout engine runs it in a thread
    snapshots: Kind = "copy"
    state: Any = None
    task: Task

    def __init__(self, tools: Sequence[Callable[..., Any]] = ()) -> None:
        methods = [getattr(self, name) for name in _tool_names(type(self))]
        self.tools: list[Tool] = [tool if isinstance(tool, Tool) else Tool(tool) for tool in (*methods, *tools)]
        self._tool_by_name = {tool.name: tool for tool in self.tools}
        self.lineage = Lineage.of(0)
        self.turn = self.calls = self._calls_before = 0
        self.ended: str | None = "before the first reset"
        self._log: Effect | None = None
        self._own_act = type(self).act is not AgentEnv.act
        self._episode = 0
        self._root: int | None = None

    @cached_property  # made when asked for: rollouts never ask
    def observation_space(self) -> AnyText:  # type: ignore[override]
        return AnyText(2**20, min_length=0)

    @cached_property
    def action_space(self) -> AnyText:  # type: ignore[override]
        return AnyText(2**16, min_length=0)

    # What an author writes.

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split, in a fixed order."""
        raise NotImplementedError(f"{type(self).__name__} has no tasks(split)")

    def begin(self, task: Task) -> None:
        """Set ``self.state`` for a new episode."""

    def act(self, action: Action) -> Reply:
        """Answer one action. As it stands: run its tool calls, in order."""
        if action.problem is not None:
            return Reply(f"Error: {action.problem}", outcome=Outcome.MODEL_ERROR)
        if not action.calls:
            return Reply(f"Error: no tool call. Write {EXAMPLE}.", outcome=Outcome.MODEL_ERROR)
        return self._run_calls(action.calls)

    def score(self) -> float:
        """The reward added at the end of the episode, terminated or truncated."""
        return 0.0

    def metrics(self) -> Mapping[str, float]:
        """Named figures of the finished episode, for reports and for credits that ask for them by name. They are no reward."""
        return {}

    def gold(self, task: Task) -> Sequence[str] | None:
        """Actions that solve ``task`` with full reward, where the environment knows them."""
        return None

    def key(self) -> str | None:
        """What identifies the present state, for methods that group turns by state."""
        return None

    def rng(self, name: str) -> Any:
        """A `random.Random` for a draw of this tool call: the same for the same seed, task, turn, call and name."""
        return (self.lineage / "turn" / self.turn / NUMBER.get(self.calls - self._calls_before) / name).rng()

    # What the kernel does.

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        options = options or {}
        if seed is not None:
            super().reset(seed=seed)
            self._root, self._episode = seed, 0
        elif self._root is None:
            self._root = int(np.random.default_rng().integers(2**31))
        lineage: Lineage = options.get("lineage") or Lineage.of(self._root, "episode", self._episode)
        self._episode += 1
        self.lineage = lineage
        self.task = self._choose_task(options.get("task"), options.get("split", self.splits[0]))
        self.turn = self.calls = self._calls_before = 0
        self._log = None
        self.ended = "an error in begin()"  # stays if begin raises
        self.begin(self.task)
        self.ended = None
        return self.task.prompt, {"messages": self.opening(), "tools": self.tool_specs, "task": self.task.id}

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, Info]:
        if self.ended is not None:
            raise AgentGymError(f"step() after the end ({self.ended}): call reset() first")
        self.ended = "an error in step()"  # stays if something below raises
        self._calls_before = self.calls
        parsed = parse_action(action)
        reply = self.act(parsed)
        if self.snapshots == "log":
            self._note(parsed, self._calls_before, reply)
        self.turn += 1
        spent = self.turn >= self.max_turns or (self.max_calls is not None and self.calls >= self.max_calls)
        truncated = spent and not reply.ends
        self.ended = "done" if reply.ends else "truncated" if truncated else None
        reward = self._finite(reply.reward + (self.score() if self.ended else 0.0))
        messages = list(reply.messages) or [{"role": "user", "content": reply.text}]
        info: Info = {"messages": messages, "outcome": reply.outcome, "task": self.task.id}
        if self.ended:
            info["metrics"] = dict(self.metrics())
        return reply.text, reward, reply.ends, truncated, info

    def stop(self, reason: str) -> tuple[float, dict[str, float]]:
        """End the episode from outside, for a spent budget: its score and metrics as it stands."""
        self.ended = reason
        return self._finite(self.score()), dict(self.metrics())

    def snapshot(self) -> Snapshot:
        """The present state, to ``restore`` here or in another environment of this class, any number of times."""
        log = (self._log, self.key()) if self.snapshots == "log" else None
        try:
            state = log or self._own_state(self.state)
            digest = state_digest(self.task.id, self.turn, self.calls, self.ended, state)
        except NotImplementedError:
            raise
        except Exception as error:
            part = culprit(self.state, "state", lambda part: state_digest(self._own_state(part)))
            raise AgentGymError(
                f"{type(self).__name__} cannot be forked: {part} cannot be saved ({error}). Declare snapshots = 'log', which "
                "replays what was done, or write snapshot() and restore()"
            ) from error
        return Snapshot(self.snapshots, self.task, self.lineage, self.turn, self.calls, self.ended, state, digest)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot. Raises `SnapshotMismatch` if the state is not the one that was saved."""
        if snapshot.kind == "log":
            for asked, expected, got in self._replay(snapshot):
                if got != expected:
                    raise SnapshotMismatch(
                        f"{type(self).__name__}, task {snapshot.task.id}: replayed, {asked} gives {excerpt(got, expected)}, "
                        f"expected {excerpt(expected, got)}. begin() must make all anew, random draws come from self.rng(name), "
                        "and a tool that changes something must not be declared to read"
                    )
            return
        state = self._own_state(snapshot.state)
        digest = state_digest(snapshot.task.id, snapshot.turn, snapshot.calls, snapshot.ended, state)
        if digest != snapshot.digest:
            raise SnapshotMismatch(
                f"{type(self).__name__}, task {snapshot.task.id}, turn {snapshot.turn}: the state was changed after its "
                f"snapshot ({digest}, saved {snapshot.digest}). A value state must be immutable; else use snapshots = 'copy'"
            )
        self.task, self.lineage, self.state = snapshot.task, snapshot.lineage, state
        self.turn, self.calls, self.ended = snapshot.turn, snapshot.calls, snapshot.ended

    def opening(self) -> list[dict[str, Any]]:
        """The messages that open the episode."""
        user = {"role": "user", "content": self.task.prompt}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    @property
    def tool_specs(self) -> list[dict[str, Any]]:
        return [tool.spec for tool in self.tools]

    def _finite(self, reward: float) -> float:
        if not math.isfinite(reward):
            raise AgentGymError(f"{type(self).__name__}, task {self.task.id}: reward {reward} is not finite")
        return reward

    def _own_state(self, state: Any) -> Any:
        if self.snapshots == "value":
            return state
        if self.snapshots == "copy":
            return copy.deepcopy(state)
        raise NotImplementedError(f"{type(self).__name__}: a {self.snapshots!r} snapshot needs its own snapshot() and restore()")

    def _note(self, done: Action | Call, calls: int, reply: Reply) -> None:
        """Add to the effect log what may have changed something: a call of a tool that writes, or an action of one's own ``act``."""
        if isinstance(done, Action) is not self._own_act:
            return
        if isinstance(done, Action) or ((tool := self._tool_by_name.get(done.name)) is not None and tool.effect == "write"):
            action = done.text if isinstance(done, Action) else format_action(done)
            effect = (self.turn, self._calls_before, calls, action, _answer(reply))
            self._log = Effect(self._log, *effect, state_digest(self._log, *effect))

    def _replay(self, snapshot: Snapshot) -> Iterator[tuple[str, str, str]]:
        """Begin anew and do again what was done. Yields what was asked, the answer expected and the answer got."""
        log, key = snapshot.state
        self.reset(options={"task": snapshot.task, "lineage": snapshot.lineage})
        self._episode -= 1  # it was no new episode
        self.ended = "an error in restore()"  # stays if something below raises
        for effect in effects(log):
            self.turn, self._calls_before, self.calls = effect.turn, effect.calls_before, effect.calls
            action = parse_action(effect.action)
            reply = self.act(action) if self._own_act else self._run_call(action.calls[0])
            yield f"turn {effect.turn + 1}, {effect.action!r}", effect.answer, _answer(reply)
        self._log, self.turn, self.calls = log, snapshot.turn, snapshot.calls
        yield f"key() after turn {self.turn}", str(key), str(found := self.key())
        yield "digest", snapshot.digest, state_digest(self.task.id, self.turn, self.calls, snapshot.ended, (log, found))
        self.ended = snapshot.ended

    def _choose_task(self, wanted: Task | str | None, split: str) -> Task:
        if isinstance(wanted, Task):
            return wanted
        tasks = tasks_in(self, split)
        if wanted is None:
            return tasks[(self.lineage / "task").rng().randrange(len(tasks))]
        for task in tasks:
            if task.id == wanted:
                return task
        raise AgentGymError(f"{type(self).__name__}: no task {wanted!r} in split {split!r}")

    def _run_calls(self, calls: Sequence[Call]) -> Reply:
        messages: list[dict[str, Any]] = []
        texts: list[str] = []
        reward, ends, outcome = 0.0, False, OK
        before = self.calls
        together = self._overlapping(calls) if self.blocking and len(calls) > 1 else None
        for call in calls:
            reply = self._run_call(call) if together is None else next(together)
            if self.snapshots == "log":
                self._note(call, before, reply)
                before = self.calls
            texts.append(reply.text)
            messages.append({"role": "tool", "name": call.name, "content": reply.text})
            reward += reply.reward
            outcome = reply.outcome if outcome is OK else outcome
            if ends := reply.ends:
                break
        return Reply("\n".join(texts), reward, ends, outcome, messages)

    def _overlapping(self, calls: Sequence[Call]) -> Iterator[Reply]:
        """Runs of read-only calls in threads of their own, all others one after another. The replies keep the order of the calls."""
        for reads, group in groupby(calls, self._only_reads):
            together = list(group)
            if not reads or (self.max_calls is not None and self.calls + len(together) > self.max_calls):
                for call in together:
                    yield self._run_call(call)
                continue
            numbers = range(self.calls - self._calls_before + 1, self.calls - self._calls_before + len(together) + 1)
            self.calls += len(together)
            with ThreadPoolExecutor(min(len(together), MOST_AT_ONCE)) as threads:
                yield from threads.map(self._run_numbered, numbers, together)

    def _only_reads(self, call: Call) -> bool:
        tool = self._tool_by_name.get(call.name)
        return tool is not None and tool.effect == "read" and not tool.ends

    def _run_numbered(self, number: int, call: Call) -> Reply:
        NUMBER.set(number)
        return self._perform(call)

    def _run_call(self, call: Call) -> Reply:
        if self.max_calls is not None and self.calls >= self.max_calls:
            return Reply(f"Error: the limit of {self.max_calls} tool calls is reached.", outcome=Outcome.MODEL_ERROR)
        self.calls += 1
        return self._perform(call)

    def _perform(self, call: Call) -> Reply:
        tool = self._tool_by_name.get(call.name)
        if tool is None:
            names = ", ".join(self._tool_by_name)
            return Reply(f"Error: no tool named {call.name!r}. Tools: {names}.", outcome=Outcome.MODEL_ERROR)
        arguments = tool.read_arguments(call.arguments)
        if isinstance(arguments, str):
            return Reply(f"Error: {arguments}", outcome=Outcome.MODEL_ERROR)
        try:
            result = tool.function(**arguments)
        except REFUSALS as error:
            return Reply(f"Error: {error}", outcome=Outcome.TOOL_ERROR)
        except StopIteration as error:  # which no future can hold, and which would end whoever iterates
            raise RuntimeError(f"{tool.name} raised StopIteration") from error
        if isinstance(result, Reply):
            return result
        return Reply(to_text(result), ends=tool.ends)


def tasks_in(env: AgentEnv, split: str) -> Sequence[Task]:
    """The tasks of a split. Raises `AgentGymError` where there are none."""
    if not (tasks := env.tasks(split) if split in env.splits else []):
        raise AgentGymError(f"{type(env).__name__} has no tasks in split {split!r}; splits: {', '.join(env.splits)}")
    return tasks


def _answer(reply: Reply) -> str:
    """All that a reply says, as JSON."""
    return to_text([reply.text, reply.reward, reply.ends, reply.outcome, reply.messages])


def _tool_names(cls: type) -> list[str]:
    """The ``@tool`` methods, base classes first, in the order of their definition."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if is_tool(value):
                names[name] = None
            elif name in names:
                del names[name]  # overridden by something that is no tool
    return list(names)
