"""An environment from a handful of typed functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from agentgym.action import call
from agentgym.env import AgentEnv
from agentgym.task import Task
from agentgym.tool import tool

Grader = Callable[[str, Task], float]


class FunctionEnv(AgentEnv):
    """Your functions as tools, a tool ``answer`` that ends the episode, and ``grade(answer, task)`` for its reward.

    The functions keep no state between calls; an environment with state is a class of its own. ``blocking``: they wait for
    something, such as a server, so they run in threads, and those declared ``@tool(effect="read")`` together.
    """

    snapshots = "value"
    state: str | None

    def __init__(
        self,
        tools: Sequence[Callable[..., Any]],
        tasks: Sequence[Task],
        grade: Grader,
        *,
        system: str = "",
        max_turns: int = 16,
        blocking: bool = False,
    ) -> None:
        super().__init__(tools)
        self.splits = tuple(dict.fromkeys(task.split for task in tasks))
        self.system, self.max_turns, self.blocking = system, max_turns, blocking
        self._tasks, self._grade = list(tasks), grade

    def tasks(self, split: str) -> Sequence[Task]:
        return [task for task in self._tasks if task.split == split]

    def begin(self, task: Task) -> None:
        self.state = None

    @tool(ends=True)
    def answer(self, text: str) -> str:
        """Give the final answer.

        Args:
            text: the answer alone.
        """
        self.state = text
        return "Answered."

    def score(self) -> float:
        return 0.0 if self.state is None else float(self._grade(self.state, self.task))

    def gold(self, task: Task) -> list[str] | None:
        return [call("answer", text=task.answer)] if isinstance(task.answer, str) else None


def register_functions(
    id: str, tools: Sequence[Callable[..., Any]], tasks: Sequence[Task], grade: Grader, **settings: Any
) -> None:
    """Register a `FunctionEnv` with Gymnasium under ``id``. ``settings`` are its own: ``system``, ``max_turns``, ``blocking``."""
    arguments = {"tools": tools, "tasks": tasks, "grade": grade, **settings}
    gymnasium.register(id, entry_point=f"{__name__}:FunctionEnv", kwargs=arguments)
