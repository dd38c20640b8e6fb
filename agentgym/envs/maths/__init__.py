"""``agentgym/Maths-v0``: questions in mathematics, answered with a Python interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from agentgym.action import Action, call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.code import shared_sandbox, shown
from agentgym.envs.maths.grading import boxed, equivalent, is_copied, right_or_wrong
from agentgym.envs.maths.tasks import SIZES, code_of, maths_tasks
from agentgym.envs.rows import Rows, name_of, read
from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sandbox import Backend, Sandbox

_BLOCK = re.compile(r"```(?:python|py)\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MathsState:
    cells: tuple[str, ...] = ()  # that ended well: their variables are known to the next
    answer: str | None = None
    right: bool = False


class Maths(AgentEnv):
    """Answer a question with an interpreter that keeps its variables. Reward: 1 if `math-verify` finds the answer right.

    A policy calls the tools ``python`` and ``answer``, or writes as in ReTool: a block of three backticks and ``python`` runs, and what it
    prints comes back as a block ``output``; ``\\boxed{…}`` is the answer. Of both in one message, the last counts. ``data``: JSON lines
    or rows with ``problem`` and ``answer``, and perhaps ``id`` and ``split``. ``reward(right, turns)``: `right_or_wrong`, or
    `agentgym.envs.maths.grading.retool`.
    Source of the interleaving: ReTool, arXiv 2504.11536 [S2].
    """

    system = "Answer the question. Compute with the tool python; give the final answer with the tool answer."
    snapshots: Kind = "value"
    blocking = True
    reward_range = (-1.0, 1.0)
    state: MathsState

    def __init__(
        self,
        data: Rows | None = None,
        *,
        sandbox: Sandbox | Backend | None = None,
        reward: Callable[[bool, int], float] = right_or_wrong,
        max_turns: int = 8,
    ) -> None:
        super().__init__()
        self.max_turns, self.reward, self._chosen = max_turns, reward, sandbox
        self._tasks = None if data is None else _file(Path(data)) if isinstance(data, str | Path) else read_problems(data)
        self.splits = tuple(SIZES if self._tasks is None else self._tasks)

    @property
    def sandbox(self) -> Sandbox:
        chosen = self._chosen
        return shared_sandbox(chosen) if chosen is None or isinstance(chosen, str) else chosen

    def tasks(self, split: str) -> Sequence[Task]:
        return maths_tasks(split) if self._tasks is None else self._tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = MathsState()

    def act(self, action: Action) -> Reply:
        if action.calls or action.problem is not None:
            return super().act(action)
        block = next(reversed(list(_BLOCK.finditer(action.content))), None)
        answer = boxed(action.content[block.end() :] if block else action.content)
        if answer is not None:
            return Reply(self.answer(answer), ends=True)
        if block is not None:
            return Reply(f"```output\n{self.python(block[1])}\n```")
        return Reply("Error: write a block ```python to compute, or the answer as \\boxed{…}.", outcome=Outcome.MODEL_ERROR)

    @tool
    def python(self, code: str) -> str:
        """Run Python and read what it prints. Variables stay from call to call, unless one fails.

        Args:
            code: what to run. Print what you want to know.
        """
        done = self.sandbox.run(code, history=("", *self.state.cells))  # with a history, the sandbox keeps what comes of the cell
        if done.status == 0 and not done.stopped:
            self.state = replace(self.state, cells=(*self.state.cells, code))
        return shown(done)

    @tool(ends=True)
    def answer(self, text: str) -> str:
        """Give the final answer.

        Args:
            text: the answer alone, as a number or in LaTeX.
        """
        self.state = replace(self.state, answer=text)
        return "Answered."

    def score(self) -> float:
        answer = self.state.answer
        right = answer is not None and self._is_right(answer)
        self.state = replace(self.state, right=right)
        return self.reward(right, self.turn)

    def _is_right(self, answer: str) -> bool:
        expected = str(self.task.answer)
        return answer.strip() == expected.strip() or (not is_copied(answer, self.task.prompt) and equivalent(answer, expected))

    def metrics(self) -> dict[str, float]:
        return {"right": float(self.state.right), "cells": float(len(self.state.cells))}

    def gold(self, task: Task) -> list[str]:
        code = code_of(task.prompt)
        return [*([call("python", code=f"print({code})")] if code else []), call("answer", text=str(task.answer))]

    def key(self) -> str:
        """Equal where the same question has been computed on by the same cells."""
        return state_digest(self.task.id, self.state.cells, self.state.answer)


class Problem(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    problem: str
    answer: str = Field(min_length=1)
    id: str | None = None
    split: str = "test"


def read_problems(rows: Rows) -> dict[str, list[Task]]:
    """Rows with ``problem`` and ``answer``, by split."""
    found: dict[str, dict[str, Task]] = {}
    for place, row in read(rows, Problem):
        task = Task(row.id or f"maths: {row.problem}", row.problem, row.answer, row.split)
        if task.id in found.setdefault(task.split, {}):
            raise AgentGymError(f"{place}: there is a task {task.id!r} already: give each its own id")
        found[task.split][task.id] = task
    if not found:
        raise AgentGymError(f"{name_of(rows)} holds no problems")
    return {split: list(tasks.values()) for split, tasks in found.items()}


@cache
def _file(path: Path) -> dict[str, list[Task]]:
    return read_problems(path)
