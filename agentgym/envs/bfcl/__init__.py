"""``agentgym/Functions-v0``: the Berkeley Function Calling Leaderboard, version 4: calls in one turn, and in many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from agentgym.action import Action, Call, call, format_action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.bfcl.backends import Backends
from agentgym.envs.bfcl.examples import example
from agentgym.envs.bfcl.matching import fault
from agentgym.envs.bfcl.offers import announcement, described
from agentgym.envs.bfcl.tasks import Benchmark, load, tasks
from agentgym.envs.calls import Offer, tool_name
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, Snapshot, state_digest
from agentgym.task import Task

MOST_STEPS = 20  # with calls, in one turn of the user
OVER = "The conversation is over."


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an episode stands. ``turn``: of the user. ``steps``: actions with calls in it. ``answers``: to all calls so far."""

    backends: Backends
    turn: int = 0
    steps: int = 0
    answers: tuple[str, ...] = ()
    passed: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """One turn of the known calls: the actions, their answers, and what is public of the backends afterwards."""

    actions: tuple[str, ...]
    answers: tuple[str, ...]
    public: dict[str, Any]


class Functions(AgentEnv):
    """Call the functions that a user's words ask for. ``data``: BFCL's folder; each file is a split. Reward: 1 where the answer is right.

    In a task of many turns an action with calls is answered by the backends; one without calls ends the turn, and the user goes on.
    Right are, after each turn for which calls are known, at least one call in it, backends equal to those after the known calls, and
    answers among which are those to the known calls. More than 20 actions with calls in one turn end the episode. In a task of one turn
    the first action is the answer, see `agentgym.envs.bfcl.matching.fault`.

    Source: The Berkeley Function Calling Leaderboard, version 4 [S: its checkers, as read in their program]. A function of the task's
    classes is run when it is called though it is not offered, as there. Raises `AgentGymError` where a file is missing or has a bad line.
    """

    snapshots: Kind = "value"
    state: Standing

    def __init__(self, data: str | Path) -> None:
        super().__init__()
        self._benchmark = load(Path(data))
        self.splits = self._benchmark.splits

    def tasks(self, split: str) -> Sequence[Task]:
        return tasks(self._benchmark.folder, split) if split in self.splits else ()

    def begin(self, task: Task) -> None:
        self.state = Standing(_start(self._benchmark, _form(task)))
        self._offer()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._offer()

    def opening(self) -> list[dict[str, Any]]:
        return [dict(message) for message in self.task.data["turns"][0]]

    def act(self, action: Action) -> Reply:
        outcome = Outcome.OK if action.problem is None else Outcome.MODEL_ERROR
        if "grading" in self.task.data:
            return self._judge(action.calls, outcome)
        return self._call(action.calls) if action.calls else self._end_turn(outcome)

    def score(self) -> float:
        return float(len(self.state.passed) == len(self.task.data["turns"]) and all(self.state.passed))

    def metrics(self) -> dict[str, float]:
        return {"turns_passed": sum(self.state.passed) / len(self.task.data["turns"])}

    def gold(self, task: Task) -> list[str] | None:
        """The known calls of each turn in one action, and a word after them; of a task of one turn, the first values allowed."""
        if "grading" not in task.data:
            return [action for turn in self._known(task) for action in turn.actions]
        functions = task.data["functions"]
        if task.data["grading"] == "match":
            calls = example(functions, task.answer["calls"])
            return None if calls is None else [format_action(*calls)]
        return [call(tool_name(functions[0]["name"])) if task.data["grading"] == "some" else "No function does this."]

    def key(self) -> str:
        """Equal where the same task's backends are equal, in the same turn after the same last answer."""
        return state_digest(self.task.id, self.state.turn, self.state.backends, self.state.answers[-1:])

    def _judge(self, calls: Sequence[Call], outcome: Outcome) -> Reply:
        functions, allowed = self.task.data["functions"], self.task.answer["calls"]
        grading = self.task.data["grading"]
        right = bool(calls) is (grading == "some") if grading != "match" else not fault(calls, functions, allowed)
        self.state = replace(self.state, passed=(right,))
        return Reply(OVER, ends=True, outcome=outcome)

    def _call(self, calls: Sequence[Call]) -> Reply:
        texts, outcome = [], Outcome.OK
        for asked in calls:
            self.calls += 1
            text, done = self._run(asked)
            texts.append(text)
            outcome = outcome if done else Outcome.TOOL_ERROR
        self.state = replace(self.state, steps=self.state.steps + 1)
        messages = [{"role": "tool", "name": asked.name, "content": text} for asked, text in zip(calls, texts, strict=True)]
        return Reply("\n".join(texts), ends=self.state.steps > MOST_STEPS, outcome=outcome, messages=tuple(messages))

    def _run(self, call: Call) -> tuple[str, bool]:
        text, done, backends = self.state.backends.answer(self._benchmark.tables, call)
        self.state = replace(self.state, backends=backends, answers=(*self.state.answers, text))
        return text, done

    def _end_turn(self, outcome: Outcome) -> Reply:
        passed, turn = (*self.state.passed, self._passes()), self.state.turn + 1
        self.state = replace(self.state, passed=passed, turn=turn, steps=0)
        if turn == len(self.task.data["turns"]):
            return Reply(OVER, ends=True, outcome=outcome)
        messages = [dict(message) for message in self.task.data["turns"][turn]]
        if new := self.task.data["missed"].get(str(turn)):
            self._offer()
            messages.append({"role": "user", "content": announcement([one for one in self._functions() if one["name"] in new])})
        return Reply("\n\n".join(message["content"] for message in messages), outcome=outcome, messages=tuple(messages))

    def _passes(self) -> bool:
        known = self._known(self.task)[self.state.turn]
        if not known.answers:
            return True
        found = self.state.steps > 0 and self.state.backends.public() == known.public
        return found and Counter(known.answers) <= Counter(self.state.answers)

    def _known(self, task: Task) -> tuple[Known, ...]:
        return _play(self._benchmark, _form(task), tuple(map(tuple, task.answer["calls"])))

    def _offer(self) -> None:
        """The tools of this task in this turn, and its limit."""
        turns = len(self.task.data["turns"])
        self.max_turns = 1 if "grading" in self.task.data else turns * (MOST_STEPS + 1)
        self.tools = [Offer(function, lambda name, arguments: self._run(Call(name, arguments))[0]) for function in self._functions()]
        self._tool_by_name = {tool.name: tool for tool in self.tools}

    def _functions(self) -> list[Any]:
        if "grading" in self.task.data:
            return [described(function) for function in self.task.data["functions"]]
        missed = {name for turn, names in self.task.data["missed"].items() if int(turn) > self.state.turn for name in names}
        withheld = missed.union(self.task.data["excluded"])
        return [one for owner in self.task.data["classes"] for one in self._benchmark.functions[owner] if one["name"] not in withheld]


def _form(task: Task) -> bytes:
    return orjson.dumps([task.data.get("classes", []), task.data.get("config", {})])


@lru_cache(2048)
def _start(benchmark: Benchmark, form: bytes) -> Backends:
    classes, config = orjson.loads(form)
    return Backends.start(classes, config, benchmark.tables)


@lru_cache(2048)
def _play(benchmark: Benchmark, form: bytes, turns: tuple[tuple[str, ...], ...]) -> tuple[Known, ...]:
    backends, known = _start(benchmark, form), []
    for written in turns:
        calls, answers = [], []
        for text in written:
            asked, backends = backends.read(benchmark.tables, text)
            answer, _, backends = backends.answer(benchmark.tables, asked)
            calls.append(asked)
            answers.append(answer)
        actions = [format_action(*calls)] if calls else []
        known.append(Known((*actions, "Done."), tuple(answers), backends.public()))
    return tuple(known)
