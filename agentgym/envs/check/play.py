"""Scripted play: actions that need no knowledge of an environment, and the transcript of what it answered."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import orjson

from agentgym.action import Call, format_action
from agentgym.env import AgentEnv
from agentgym.envs.check.arguments import varied
from agentgym.seeds import Lineage
from agentgym.task import Task

LONGEST = 16  # actions of one script
MOST_TURNS = 300  # turns that one play may take to end
THRIFTY_AT = 0.03  # seconds for one play, from which on fewer are made
SLOW_START = 1.0  # seconds for the first play of a process, from which on fewer processes are made
MALFORMED = ("", '<tool_call>{"name": ', "I do not know.", "<think>open", format_action(Call("no_such_tool", {"a": [None]})))


class NotCheckedError(Exception):
    """A check that cannot be made here, and why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came back from one reset or step. Fields that `difference` compares come first."""

    observation: Any = ""
    reward: float = 0.0
    terminated: Any = False
    truncated: Any = False
    messages: str = "[]"
    outcome: str = ""
    task: str = ""
    tools: str = ""
    raised: str = ""
    why: str = ""
    seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return bool(self.terminated or self.truncated or self.raised)


COMPARED = ("raised", "observation", "reward", "terminated", "truncated", "messages", "outcome", "task", "tools")
Transcript = list[Seen]


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """One episode: ``reset(seed=...)``, or by task and lineage as rollouts do it where ``task`` is set; then the actions."""

    name: str
    seed: int
    actions: tuple[str, ...]
    task: Task | None = None

    def __str__(self) -> str:
        start = f"reset(seed={self.seed})" if self.task is None else f"reset(task={self.task.id!r}, lineage)"
        return f"{start}, {self.name} actions"

    def reset(self, env: AgentEnv) -> Seen:
        if self.task is None:
            return opening(env, seed=self.seed)
        return opening(env, options={"task": self.task, "lineage": Lineage.of(self.seed, "check")})


def opening(env: AgentEnv, **how: Any) -> Seen:
    observation, info = env.reset(**how)
    messages, task, tools = (_text(info.get(name)) for name in ("messages", "task", "tools"))
    return Seen(observation, messages=messages, task=task, tools=tools, info=info)


def take(env: AgentEnv, action: str) -> Seen:
    """One step. An exception becomes part of the transcript."""
    started = time.perf_counter()
    try:
        observation, reward, terminated, truncated, info = env.step(action)
    except Exception as error:
        return Seen(raised=type(error).__name__, why=str(error))
    seconds = time.perf_counter() - started
    number = float(reward) if isinstance(reward, int | float | np.generic) else math.nan
    messages, outcome = _text(info.get("messages")), str(info.get("outcome", ""))
    return Seen(observation, number, terminated, truncated, messages, outcome, seconds=seconds, info=info)


def steps(env: AgentEnv, actions: Iterable[str]) -> Transcript:
    """Act until the actions or the episode end."""
    transcript: Transcript = []
    for action in actions:
        transcript.append(take(env, action))
        if transcript[-1].ended:
            break
    return transcript


def play(env: AgentEnv, script: Script) -> Transcript:
    return [script.reset(env), *steps(env, script.actions)]


def finish(env: AgentEnv, actions: Sequence[str], filler: str = "") -> Transcript:
    """Act until the episode ends, with ``filler`` after the last action, for at most `MOST_TURNS`."""
    fillers = [filler] * max(0, MOST_TURNS - len(actions))
    return steps(env, [*actions, *fillers])


def total(transcript: Transcript) -> float | None:
    """The return of a finished episode."""
    if not transcript or not (transcript[-1].terminated or transcript[-1].truncated):
        return None
    return math.fsum(seen.reward for seen in transcript)


def difference(expected: Transcript, found: Transcript, first: int = 0) -> str | None:
    """The first place where two transcripts differ, in words. ``first`` is the number of their first turn."""
    for turn, (a, b) in enumerate(zip_longest(expected, found), start=first):
        where = f"turn {turn}" if turn else "reset"
        if a is None or b is None:
            return f"{where}: the episode {'goes on' if a is None else 'stops'}"
        for name in COMPARED:
            left, right = getattr(a, name), getattr(b, name)
            if repr(left) != repr(right):
                return f"{where}: {name} {_around(left, right)} became {_around(right, left)}"
    return None


def _around(text: Any, other: Any, width: int = 60) -> str:
    """The part of ``text`` where it leaves ``other``."""
    text, other = str(text), str(other)
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(0, same - width // 3)
    return repr(("…" if start else "") + text[start : start + width] + ("…" if len(text) > start + width else ""))


def _text(value: Any) -> str:
    return orjson.dumps(value, default=lambda item: type(item).__name__, option=orjson.OPT_NON_STR_KEYS).decode()


def words_of(text: str) -> list[str]:
    """The words of a text, each once, in order, the quoted and the capitalised first."""
    words = dict.fromkeys(re.findall(r"[\w./@#-]+", text))
    return sorted(words, key=lambda word: not word[:1].isupper() and not word[:1].isdigit())


def specs(env: AgentEnv) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, parameters and ``ends`` of each tool whose specification can be read."""
    found = []
    for tool in env.tools:
        try:
            function = tool.spec["function"]
            found.append((function["name"], dict(function["parameters"]), bool(tool.ends)))
        except Exception:  # the check of the schema reports it
            continue
    return found


def probes(env: AgentEnv, words: Sequence[str], number: int) -> tuple[list[Call], list[Call]]:
    """One call of each tool: those that go on, and those that end the episode."""
    calls = [(Call(name, varied(parameters, words or ["a"], number)), ends) for name, parameters, ends in specs(env)]
    return [call for call, ends in calls if not ends], [call for call, ends in calls if ends]


class Subject:
    """The environment under test, as the checks see it: new instances, scripts, and how each script goes when alone."""

    def __init__(self, factory: Callable[[], AgentEnv], seed: int) -> None:
        self.factory = factory
        self.seed = seed
        self._alone: dict[Script, Transcript] = {}
        self._seconds_to_start: float | None = None

    @contextmanager
    def new(self) -> Iterator[AgentEnv]:
        started = time.perf_counter()
        env: AgentEnv = self.factory().unwrapped  # type: ignore[assignment]
        if self._seconds_to_start is None:
            self._seconds_to_start = time.perf_counter() - started
        try:
            yield env
        finally:
            env.close()

    def play(self, script: Script) -> Transcript:
        """Play in a new instance."""
        with self.new() as env:
            return play(env, script)

    def alone(self, script: Script) -> Transcript:
        """The first play of the script, in an instance of its own."""
        if script not in self._alone:
            self._alone[script] = self.play(script)
        return self._alone[script]

    def seeds(self, name: str, count: int) -> list[int]:
        return [Lineage.of(self.seed, name, number).seed() >> 32 for number in range(count)]

    @cached_property
    def scripts(self) -> list[Script]:
        """Gold, crowded, probing, malformed and interrupted episodes for a few seeds, by seed and by task and lineage."""
        return self._first[:2] if self.thrifty else [*self._first, *(s for number in (1, 2) for s in self._scripts(number))]

    @cached_property
    def thrifty(self) -> bool:
        """Whether a play takes so long that few are made."""
        plays = self._first[:2]
        started = time.perf_counter()
        for script in plays:
            self.alone(script)
        return time.perf_counter() - started > THRIFTY_AT * len(plays)

    @cached_property
    def _first(self) -> list[Script]:
        return self._scripts(0)

    @property
    def slow_start(self) -> bool:
        """Whether the first instance of a process takes long, as where an index is built."""
        return (self._seconds_to_start or 0.0) > SLOW_START

    def _scripts(self, number: int) -> list[Script]:
        with self.new() as env:
            return _scripts(env, self.seeds("play", 3)[number], number, self.task_of)

    def task_of(self, env: AgentEnv, seen: Seen) -> Task | None:
        """The task that is being played: the environment's, or the one that ``info["task"]`` names."""
        task = getattr(env, "task", None)
        if isinstance(task, Task):
            return task
        wanted = orjson.loads(seen.task or "null")
        return next((task for _, task in self.all_tasks if task.id == wanted), None)

    @cached_property
    def all_tasks(self) -> list[tuple[str, Task]]:
        with self.new() as env:
            return [(split, task) for split in env.splits for task in env.tasks(split)]

    def some_tasks(self, count: int) -> list[Task]:
        """At most ``count`` tasks, evenly over all splits."""
        tasks = [task for _, task in self.all_tasks]
        count = min(count, 4) if self.thrifty else count
        stride = max(1, -(-len(tasks) // count))
        return list(islice(tasks, 0, None, stride))


def gold_of(env: AgentEnv, task: Task | None) -> tuple[str, ...]:
    """The gold actions, or none where the environment has none or fails to give them, which the check of gold reports."""
    try:
        return tuple((task is not None and env.gold(task)) or ())
    except Exception:
        return ()


def _scripts(
    env: AgentEnv, seed: int, number: int, task_of: Callable[[AgentEnv, Seen], Task | None]
) -> list[Script]:
    seen = opening(env, seed=seed)
    task = task_of(env, seen)
    gold = gold_of(env, task)
    words = words_of(str(seen.observation))
    going = [probes(env, words, variant)[0] for variant in range(3)]
    last = [format_action(call) for call in probes(env, words, 0)[1][:1]]
    single = [format_action(call) for calls in going for call in calls]
    single = [*single[number * len(single) // 3 :], *single[: number * len(single) // 3]]
    crowd = [format_action(*calls) for calls in going if calls]
    empty = [format_action(Call(name, {})) for name, _, _ in specs(env)]
    actions = {
        "gold": gold,
        "crowded": [*crowd, "", *crowd[:1], *last],
        "probing": [*single[: LONGEST - 1], *last],
        "malformed": [*MALFORMED, *empty][:LONGEST],
        "interrupted gold": [*gold[: LONGEST // 2 - 1][:-1], *crowd[:2], *single[:3], *gold[-1:]],
    }
    by_seed = [Script(name, seed, tuple(part)) for name, part in actions.items() if part]
    return [*by_seed, *(replace(script, task=task) for script in by_seed[:3] if task is not None)]
