"""Several tasks in one: played one after another and graded together, or questions of which one needs the other's answer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from statistics import fmean
from string import ascii_uppercase
from typing import Any, Protocol, runtime_checkable

from agentgym.action import Action
from agentgym.env import AgentEnv, Reply
from agentgym.errors import AgentGymError, SnapshotMismatch
from agentgym.registry import make
from agentgym.seeds import Lineage
from agentgym.snapshot import Kind, Snapshot, state_digest
from agentgym.task import Task

FULL = 1e-6  # a part counts as solved from this much below the best return
SYMBOLS = ("X", "Y", "Z", *ascii_uppercase[:-3])
_PLAIN = re.compile(r"(?<![\w.,:/#+-])(?!0\d)\d{1,6}(?![\w/-])(?![.,:]\d)")  # an integer that is no part of a word, date or decimal
_NUMERIC = re.compile(r"[+-]?\d+(?:\.\d+)?")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’.-]+[^\W\d_]+)*")


@runtime_checkable
class Feeds(Protocol):
    """An environment whose tasks can build on one another. It is asked between two parts."""

    def artefact(self) -> str:
        """What the episode that just ended has produced: an id, a file name, a number."""

    def receive(self, task: Task, artefact: str) -> Task:
        """The next task, with the artefact in its slot."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Returns and metrics of the parts that ended; turns and calls before the present one began, and what it has earned."""

    returns: tuple[float, ...] = ()
    figures: tuple[Mapping[str, float], ...] = ()
    turns: int = 0
    calls: int = 0
    earned: float = 0.0


class Composed(AgentEnv):
    """``k`` tasks of one environment in one episode. Reward: 1 where every part earns its full return, else 0.

    ``env`` is an id, ``module:Class`` or what makes an environment, and ``settings`` go to it. The tasks of each split are put together
    at random by ``seed``, each into one composition. A part that ended, solved or not, is followed by the next, whose prompt stands
    below the last reply. Where the environment `Feeds`, what a part made goes into the next task. Limits are those of the parts.

    Source: Composition-RL, arXiv 2602.12036, composes questions, as `compose` does [S]; whole tasks with artefacts that go on [R].
    """

    snapshots: Kind = "value"
    state: Progress

    def __init__(self, env: str | Callable[..., AgentEnv], k: int = 2, seed: int = 0, **settings: Any) -> None:
        if k < 1:
            raise AgentGymError(f"k is {k}: a composition has one part at least")
        self._make = partial(make, env, **settings) if isinstance(env, str) else partial(env, **settings)
        self.inner = self._make()
        super().__init__()
        self.k, self.seed = k, seed
        self.system, self.splits, self.blocking = self.inner.system, self.inner.splits, self.inner.blocking
        self.state = Progress()
        self._composed: dict[str, list[Task]] = {}
        self._adopt(k)

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self._composed:
            parts = list(self.inner.tasks(split))
            Lineage.of(self.seed, "composed", split).rng().shuffle(parts)
            firsts = range(0, len(parts) - self.k + 1, self.k)
            self._composed[split] = [_composition(parts[first : first + self.k]) for first in firsts]
        return self._composed[split]

    def begin(self, task: Task) -> None:
        self.state = Progress()
        self._enter(_part(task, 0))

    def act(self, action: Action) -> Reply:
        text, reward, terminated, truncated, info = self.inner.step(action.text)
        self.calls = self.state.calls + self.inner.calls
        self.state = replace(self.state, earned=self.state.earned + float(reward))
        messages = tuple(info["messages"])
        if not (terminated or truncated):
            return Reply(text, outcome=info["outcome"], messages=messages)
        self._settle(info["metrics"], self.turn + 1)
        if len(self.state.returns) == self._count:
            return Reply(text, ends=terminated, outcome=info["outcome"], messages=messages)
        prompt = self._go_on()
        return Reply(f"{text}\n\n{prompt}", outcome=info["outcome"], messages=(*messages, {"role": "user", "content": prompt}))

    def stop(self, reason: str) -> tuple[float, dict[str, float]]:
        if self.inner.ended is None:
            earned, metrics = self.inner.stop(reason)
            self.state = replace(self.state, earned=self.state.earned + earned)
            self._settle(metrics, self.turn)
        return super().stop(reason)

    def score(self) -> float:
        return float(self._solved() == self._count)

    def metrics(self) -> dict[str, float]:
        """The return of each part, ``part/1`` and so on, the share that is solved, and the means of the parts' own metrics."""
        returns = [*self.state.returns, *[self.inner.reward_range[0]] * (self._count - len(self.state.returns))]
        own: dict[str, list[float]] = defaultdict(list)
        for figures in self.state.figures:
            for name, value in figures.items():
                own[name].append(value)
        means = {name: fmean(values) for name, values in own.items()}
        return {**means, **{f"part/{number}": value for number, value in enumerate(returns, 1)}, "parts": self._solved() / self._count}

    def gold(self, task: Task) -> list[str] | None:
        """The gold actions of the parts, played: what a part makes may change the next."""
        env = Composed(self._make, self.k)
        env.reset(seed=0, options={"task": task})
        actions: list[str] = []
        while env.ended is None:
            begun, part = len(env.state.returns), env.inner.gold(env.inner.task)
            for action in part or ():
                actions.append(action)
                env.step(action)
            if len(env.state.returns) == begun:
                return None
        return actions

    def key(self) -> str | None:
        key = self.inner.key()
        return None if key is None else state_digest(self.task.id, self.state.returns, key)

    def snapshot(self) -> Snapshot:
        inner = self.inner.snapshot()
        return Snapshot("value", self.task, self.lineage, self.turn, self.calls, self.ended, (self.state, inner), self._digest(inner))

    def restore(self, snapshot: Snapshot) -> None:
        self.state, inner = snapshot.state
        self.inner.restore(inner)
        self.task, self.lineage = snapshot.task, snapshot.lineage
        self.turn, self.calls, self.ended = snapshot.turn, snapshot.calls, snapshot.ended
        self._adopt(self._count)
        if (digest := self._digest(inner)) != snapshot.digest:
            changed = f"{digest}, saved {snapshot.digest}"
            raise SnapshotMismatch(f"Composed, task {self.task.id}, turn {self.turn}: the state was changed after its snapshot ({changed})")

    def close(self) -> None:
        self.inner.close()

    def _digest(self, inner: Snapshot) -> str:
        return state_digest(self.task.id, self.turn, self.calls, self.ended, self.state, inner.digest)

    def _settle(self, metrics: Mapping[str, float], turns: int) -> None:
        """The present part has ended."""
        now = self.state
        self.state = Progress((*now.returns, now.earned), (*now.figures, dict(metrics)), turns, self.calls)

    def _go_on(self) -> str:
        number, told = len(self.state.returns), self.inner.tool_specs
        part = _part(self.task, number)
        if isinstance(self.inner, Feeds):
            part = self.inner.receive(part, self.inner.artefact())
        self._enter(part)
        if self.inner.tool_specs != told:
            raise AgentGymError(f"task {part.id} has other tools than the part before it: compose tasks with equal tools")
        return _announced(part, number, self._count)

    def _enter(self, part: Task) -> None:
        self.inner.reset(options={"task": part, "lineage": self.lineage / "part" / len(self.state.returns)})
        self._adopt(self._count)

    @property
    def _count(self) -> int:
        return len(self.task.data["parts"])

    def _adopt(self, count: int) -> None:
        """Tools, and the limits of the parts that are left."""
        left = max(1, count - len(self.state.returns))
        self.tools, self._tool_by_name = self.inner.tools, {tool.name: tool for tool in self.inner.tools}
        self.max_turns = self.state.turns + left * self.inner.max_turns
        self.max_calls = None if self.inner.max_calls is None else self.state.calls + left * self.inner.max_calls

    def _solved(self) -> int:
        return sum(value >= self.inner.reward_range[1] - FULL for value in self.state.returns)


def _composition(parts: Sequence[Task]) -> Task:
    data = [{"id": part.id, "prompt": part.prompt, "split": part.split, "data": part.data} for part in parts]
    prompt = _announced(parts[0], 0, len(parts))
    return Task("+".join(part.id for part in parts), prompt, [part.answer for part in parts], parts[0].split, {"parts": data})


def _part(task: Task, number: int) -> Task:
    return Task(**task.data["parts"][number], answer=task.answer[number])


def _announced(part: Task, number: int, count: int) -> str:
    return f"Task {number + 1} of {count}:\n{part.prompt}"


class NotComposable(ValueError):
    """Two questions that cannot become one, and why."""


def compose(first: Task, second: Task) -> Task:
    """One question with the answer of ``second``, of which a number is hidden behind the answer of ``first``.

    X is the answer of ``first``, or of words the number of their letters; Y = X + d takes the place of the smallest plain integer that
    ``second`` has once. Raises `NotComposable` where there is no such value, number or symbol, or the text does not give back ``second``.

    Source: Composition-RL, arXiv 2602.12036 [S]; how a number is chosen, and letters as the value of words [R].
    """
    if first.id == second.id:
        raise NotComposable(f"task {first.id} cannot be composed with itself")
    value, meaning = _value(first)
    place = min(_numbers(second), key=lambda found: int(found[0]), default=None)
    if place is None:
        raise NotComposable(f"task {second.id} has no plain integer that stands in it once")
    x, y = _symbols(first.prompt + second.prompt)
    relation = _relation(x, y, int(place[0]) - value)
    rest = second.prompt[: place.start()] + y + second.prompt[place.end() :]
    if _solved_for(relation, x, y, value, rest) != second.prompt:
        raise NotComposable(f"the composition of {first.id} and {second.id} does not give back the second question")
    text = f"{first.prompt}\n\nLet {x} be {meaning}. {relation}\n\n{rest}"
    data = {**second.data, "composed": [*first.data.get("composed", [first.id]), second.id]}
    return Task(f"{first.id}+{second.id}", text, second.answer, second.split, data)


def compositions(tasks: Sequence[Task], depth: int = 2, seed: int = 0) -> list[Task]:
    """Chains of ``depth`` questions, each of which is in one at most, in an order drawn by ``seed``. What does not fit is left out."""
    if depth < 2:
        raise AgentGymError(f"depth is {depth}: a composition has two questions at least")
    order = list(tasks)
    Lineage.of(seed, "compositions").rng().shuffle(order)
    return list(_chains(order, depth))


def _chains(tasks: Sequence[Task], depth: int) -> Iterator[Task]:
    chain, length = None, 0
    for task in tasks:
        try:
            longer = task if chain is None else compose(chain, task)
            if length + 1 < depth:
                _value(longer)  # another question must be able to build on it
        except NotComposable:
            continue
        chain, length = longer, length + 1
        if length == depth:
            yield chain
            chain, length = None, 0


def _value(task: Task) -> tuple[Decimal, str]:
    """A number that the answer decides, and how it is called."""
    accepted = task.answer if isinstance(task.answer, list | tuple) else [task.answer]
    if all(isinstance(answer, str | int | float) and not isinstance(answer, bool) for answer in accepted):
        texts = [str(answer).strip() for answer in accepted]
        numbers = {Decimal(number) for text in texts if _NUMERIC.fullmatch(number := text.replace(",", ""))}
        if len(numbers) == 1:
            return numbers.pop(), "the answer to this question"
        letters = {Decimal(sum(map(str.isalpha, text))) for text in texts}
        if len(letters) == 1 and all(isinstance(answer, str) for answer in accepted) and all(map(_WORDS.fullmatch, texts)):
            return letters.pop(), "the number of letters in the answer to this question"
    raise NotComposable(f"the answer of task {task.id} decides no one number: {task.answer!r}")


def _numbers(task: Task) -> list[re.Match[str]]:
    found = list(_PLAIN.finditer(task.prompt))
    return [match for match in found if len(re.findall(rf"(?<!\d){match[0]}(?!\d)", task.prompt)) == 1]


def _symbols(text: str) -> tuple[str, str]:
    free = [symbol for symbol in SYMBOLS if not re.search(rf"\b{symbol}\b", text)]
    if len(free) < 2:
        raise NotComposable("all letters are taken as symbols")
    return free[0], free[1]


def _relation(x: str, y: str, difference: Decimal) -> str:
    if difference == 0:
        return f"{y} equals {x}."
    return f"{y} is {abs(difference)} {'more' if difference > 0 else 'less'} than {x}."


def _solved_for(relation: str, x: str, y: str, value: Decimal, rest: str) -> str:
    """The second question again, from the relation as it is written."""
    found = re.fullmatch(rf"{y} is (\S+) (more|less) than {x}\.", relation)
    difference = Decimal(0) if found is None else Decimal(found[1]) * (1 if found[2] == "more" else -1)
    number = value + difference
    return re.sub(rf"\b{y}\b", str(int(number) if number == int(number) else number), rest)
