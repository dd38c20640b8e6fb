"""Rewards that mean something: within their range, full for a solution, low for nothing, and no answer on the way."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any
from unittest import mock

from agentgym.action import Call, format_action
from agentgym.env import AgentEnv
from agentgym.envs.check.arguments import filled, neutral
from agentgym.envs.check.play import (
    NotCheckedError,
    Seen,
    Subject,
    Transcript,
    finish,
    opening,
    specs,
    steps,
    take,
    total,
    words_of,
)
from agentgym.seeds import Lineage
from agentgym.task import Task

TOLERANCE = 1e-6  # of a return
GOLD_TASKS = 20
IDLE_TASKS = 16
CANARY_TASKS = 4
CRAWL = (400, 0.7)  # calls and seconds for one task
KEYS_OF_DATA = ("answer", "answers", "gold", "solution")
SUSPECTS = (
    *("", "answer", "answers", "gold", "solution", "expected", "label", "secret", "target", "task", "task.answer"),
    *("state", "score", "data", "key", "hint", "__dict__", "self", "self.task.answer", "*", "%", ".", "/"),
    *("answer.txt", "answers.json", "solution.txt", "solution.py"),
)


def reward(subject: Subject) -> Iterator[str]:
    """Each reward finite, each return within ``reward_range``."""
    with subject.new() as env:
        low, high = env.reward_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield f"reward_range {(low, high)} must be two finite numbers, the lower first"
        return
    yield from islice(_bad_returns(subject, low, high), 1)


def _bad_returns(subject: Subject, low: float, high: float) -> Iterator[str]:
    for script in subject.scripts:
        repeated = dict.fromkeys(script.actions) if script.task is None and not subject.thrifty else {}
        for filler in ("", *repeated):
            actions = script.actions if not filler else ()
            with subject.new() as env:
                script.reset(env)
                transcript = finish(env, actions, filler)
            where = f"{script}" if not filler else f"{script} replaced by {filler!r} again and again"
            yield from (f"{where}: {problem}" for problem in _bad_return(transcript, low, high))


def _bad_return(transcript: Transcript, low: float, high: float) -> Iterator[str]:
    for turn, seen in enumerate(transcript, start=1):
        if not math.isfinite(seen.reward):
            yield f"the reward of turn {turn} is {seen.reward}. A reward must be a finite number"
            return
        if seen.raised and "not finite" in seen.why:
            yield f"turn {turn}: {seen.why}. A reward must be a finite number"
            return
    value = total(transcript)
    if value is not None and not low - TOLERANCE <= value <= high + TOLERANCE:
        yield f"the return {value:g} is outside reward_range {(low, high)}. Mend the reward or declare its range"


def gold(subject: Subject) -> Iterator[str]:
    """The environment's own solutions score full."""
    known, failed = 0, []
    for task in subject.some_tasks(GOLD_TASKS):
        with subject.new() as env:
            _start(subject, env, task)
            actions = env.gold(task)
            if actions is None:
                continue
            known += 1
            transcript = steps(env, actions)
            value = total(transcript)
            full = value is not None and abs(value - env.reward_range[1]) <= TOLERANCE
        if not full or not transcript[-1].terminated:
            failed.append(f"task {task.id!r} {_ending(transcript, value)}")
    if failed:
        some = "; ".join(failed[:3])
        yield f"gold actions do not score full in {len(failed)} of {known} tasks: {some}. Mend gold() or score()"
    elif not known:
        raise NotCheckedError("gold() gives no actions")


def _ending(transcript: Transcript, value: float | None) -> str:
    last = transcript[-1] if transcript else Seen()
    if last.raised:
        return f"raised {last.raised}: {last.why}"
    how = "terminated" if last.terminated else "was truncated" if last.truncated else "did not end"
    return f"{how} with return {value:g}" if value is not None else how


def idle(subject: Subject) -> Iterator[str]:
    """Empty actions, and ending at once with empty arguments, score at most half of the range on average."""
    tasks = subject.some_tasks(IDLE_TASKS)
    with subject.new() as env:
        low, high = env.reward_range
        ways: dict[str, list[list[str]]] = {"empty actions": [[]], "one empty action, then 'done'": [["", "done"]]}
        for name, parameters, ends in specs(env):
            if ends:
                calls = [Call(name, arguments) for arguments in neutral(parameters)]
                ways[f"{name} at once with empty arguments"] = [[format_action(call)] for call in calls]
    for way, plans in ways.items():
        returns = [value for task in tasks for plan in plans if (value := _return_of(subject, task, plan)) is not None]
        mean = math.fsum(returns) / len(returns) if returns else low
        if mean > low + 0.5 * (high - low) + TOLERANCE:
            yield (
                f"doing nothing scores high: {way} gave a mean return of {mean:.3g} over {len(tasks)} tasks, "
                f"in a range of {low:g} to {high:g}. Make score() ask for what the task asks for"
            )


def _return_of(subject: Subject, task: Task, actions: Sequence[str]) -> float | None:
    with subject.new() as env:
        _start(subject, env, task)
        return total(finish(env, actions))


def _start(subject: Subject, env: AgentEnv, task: Task) -> Seen:
    return opening(env, options={"task": task, "lineage": Lineage.of(subject.seed, "check", task.id)})


def answer(subject: Subject) -> Iterator[str]:
    """A canary in place of the answer must not be seen in anything that the agent can read."""
    canary = "zq" + Lineage.of(subject.seed, "canary").rng().randbytes(4).hex() + "qz"
    tasks = [task for task in subject.some_tasks(CANARY_TASKS) if _planted(task, canary) != task]
    if not tasks:
        raise NotCheckedError("no task has an answer to plant a canary in")
    crawled = 0
    for task in tasks:
        for plant in (_planted(task, canary), _planted(task, canary, numbers=False)):
            try:
                found = _crawl(subject, plant, canary)
            except Exception:  # the environment cannot begin with an answer of this kind
                continue
            crawled += 1
            if found is not None:
                yield f"task {task.id!r}: the answer can be read in {found}. Only score() may read task.answer"
                return
            break
    if not crawled:
        raise NotCheckedError("the environment begins no task whose answer is a canary")


def _planted(task: Task, canary: str, numbers: bool = True) -> Task:
    data = {key: _with(value, canary, numbers) if key in KEYS_OF_DATA else value for key, value in task.data.items()}
    return dataclasses.replace(task, answer=_with(task.answer, canary, numbers), data=data)


def _with(value: Any, canary: str, numbers: bool) -> Any:
    """The same value with the canary in all its texts, and a number made of the canary in its numbers."""
    if isinstance(value, str):
        return canary
    if isinstance(value, int | float) and not isinstance(value, bool) and numbers:
        return type(value)(_number(canary))
    if isinstance(value, dict):
        return {key: _with(item, canary, numbers) for key, item in value.items()}
    if isinstance(value, list | set | frozenset):
        return type(value)(_with(item, canary, numbers) for item in value)
    if isinstance(value, tuple):
        items = [_with(item, canary, numbers) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _with(getattr(value, name), canary, numbers) for name in names})
    return value


def _number(canary: str) -> int:
    return 10**8 + int(canary[2:10], 16) % 10**8


def _crawl(subject: Subject, task: Task, canary: str) -> str | None:
    """Call every tool with every word that was seen, the newest first, and look for the canary."""
    signs = (canary, str(_number(canary)))
    with _tasks_planted(subject, canary), subject.new() as env:
        seen = _start(subject, env, task)
        if _shows(seen, signs):
            return "the opening of the episode"
        queue = deque([*SUSPECTS, task.id, task.prompt, *words_of(task.prompt)])
        known = set(queue)
        tools = specs(env)
        calls, deadline = 0, time.perf_counter() + CRAWL[1]
        actions = iter(["", "answer", *(format_action(call) for call in _fixed_calls(tools))])
        while calls < CRAWL[0] and (time.perf_counter() < deadline or calls < len(tools)):
            batch = list(islice(actions, 1))
            if not batch:
                if not queue:
                    return None
                word = queue.popleft()
                actions = iter([format_action(Call(name, filled(part, word))) for name, part, _ in _texts(tools)])
                continue
            seen = take(env, batch[0])
            calls += 1
            if not seen.terminated and _shows(seen, signs):  # after the end it may be told
                return f"the reply to {batch[0]!r}"
            new = [word for word in words_of(str(seen.observation))[:40] if word not in known]
            known.update(new)
            queue.extendleft(reversed(new[:10]))
            if seen.ended:
                _start(subject, env, task)
    return None


def _fixed_calls(tools: Sequence[tuple[str, dict[str, Any], bool]]) -> Iterator[Call]:
    """Calls whose arguments are no free text."""
    for name, parameters, _ in tools:
        yield from (Call(name, arguments) for arguments in neutral(parameters))


def _texts(tools: Sequence[tuple[str, dict[str, Any], bool]]) -> list[tuple[str, dict[str, Any], bool]]:
    return [tool for tool in tools if filled(tool[1], "a") != filled(tool[1], "b")]


def _shows(seen: Seen, signs: Sequence[str]) -> bool:
    text = f"{seen.observation} {seen.messages} {seen.tools} {seen.info}".casefold()
    return any(sign in text for sign in signs)


def _tasks_planted(subject: Subject, canary: str) -> Any:
    """Tools may look into the list of tasks: there, too, the answers are canaries."""
    with subject.new() as env:
        kind = type(env)
    original: Callable[[AgentEnv, str], Sequence[Task]] = kind.tasks
    return mock.patch.object(kind, "tasks", lambda self, split: [_planted(task, canary) for task in original(self, split)])

