"""Programming tasks from files and datasets: our own form, and those of HumanEval, MBPP and CodeContests."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from agentgym.envs.rows import Rows, name_of, read
from agentgym.envs.syntax import module_of
from agentgym.errors import AgentGymError
from agentgym.task import Task


class Row(BaseModel):
    """A task: what is asked for, and one kind of hidden tests.

    ``calls``: pairs of arguments and result of the function ``entry``. ``prints``: pairs of input and output. ``check``: a program of
    asserts, run after ``before``, that knows the solution as ``entry`` and as ``candidate``. ``examples`` are shown pairs. ``seconds`` and
    ``memory`` (MiB) are the limits of each of the ``prints``, where they have their own.
    """

    id: str
    prompt: str
    entry: str | None = None
    calls: list[tuple[list[Any], Any]] | None = Field(None, min_length=1)
    prints: list[tuple[str, str]] | None = Field(None, min_length=1)
    check: str | None = None
    before: str = ""
    seconds: float | None = Field(None, gt=0)
    memory: int | None = Field(None, gt=0)
    examples: list[tuple[Any, Any]] = []
    solution: str | None = None
    split: str = "train"

    @model_validator(mode="after")
    def _one_kind_of_tests(self) -> Row:
        kinds = [name for name in ("calls", "prints", "check") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a task has one of calls, prints and check, not {' and '.join(kinds) or 'none of them'}")
        if self.entry is None and kinds != ["prints"]:
            raise ValueError(f"{kinds[0]} need the name of the function as entry")
        return self

    def task(self) -> Task:
        hidden = {name: getattr(self, name) for name in ("calls", "prints", "seconds", "memory") if getattr(self, name) is not None}
        if self.check is not None:
            hidden = {"check": self.check, "before": self.before}
        if self.solution is not None:
            hidden["solution"] = self.solution
        data: dict[str, Any] = {"examples": self.examples} | ({"entry": self.entry} if self.entry is not None else {})
        return Task(self.id, self.prompt, hidden, self.split, data)


def read_rows(rows: Rows) -> dict[str, list[Task]]:
    """The tasks by split."""
    found: dict[str, dict[str, Task]] = {}
    for place, row in read(rows, Row, _translated):
        task = row.task()
        if task.id in found.setdefault(task.split, {}):
            raise AgentGymError(f"{place}: there is a task {task.id!r} already: give each its own id")
        found[task.split][task.id] = task
    if not found:
        raise AgentGymError(f"{name_of(rows)} holds no tasks")
    return {split: list(tasks.values()) for split, tasks in found.items()}


def _translated(value: Any) -> Any:
    """A row of HumanEval, MBPP or CodeContests in our form; any other as it is."""
    if isinstance(value, Mapping) and "canonical_solution" in value:
        return _humaneval(value)
    if isinstance(value, Mapping) and "test_list" in value:
        return _mbpp(value)
    if isinstance(value, Mapping) and "problem" in value and "tests" in value:
        return _contest(value)
    return value


def _humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, entry = str(row.get("prompt", "")), str(row.get("entry_point", ""))
    return {
        "id": row.get("task_id"),
        "prompt": f"Complete this function, and write the whole of it.\n{prompt}",
        "entry": entry,
        "before": prompt,
        "check": f"{row.get('test', '')}\ncheck(candidate)\n",
        "solution": prompt + str(row.get("canonical_solution", "")),
        "split": row.get("split", "test"),
    }


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = [str(test) for test in row["test_list"]]
    solution = str(row.get("code", "")).replace("\r\n", "\n")
    return {
        "id": f"mbpp/{row.get('task_id')}",
        "prompt": f"{row.get('text', row.get('prompt', ''))} It must pass this test:\n{tests[0] if tests else ''}",
        "entry": _called(tests[0], solution) if tests else None,
        "before": f"{solution}\n{row.get('test_setup_code', '')}",  # tests use what it imports and defines
        "check": "\n".join(tests),
        "solution": solution,
        "split": row.get("split", "test"),
    }


def _contest(row: Mapping[str, Any]) -> dict[str, Any]:
    problem, tests = str(row["problem"]), row["tests"]
    time, memory = re.search(r"Time Limit: \{'seconds': (\d+), 'nanos': (\d+)\}", problem), re.search(r"Memory Limit: (\d+) Bytes", problem)
    if len(tests.get("inputs", ())) != len(tests.get("outputs", ())):
        raise TypeError("tests: there are not as many outputs as inputs")
    return {
        "id": row.get("id"),
        "prompt": f"Write a program that reads from standard input and prints to standard output.\n{problem.strip()}",
        "prints": list(zip(tests.get("inputs", ()), tests.get("outputs", ()), strict=True)),
        "seconds": int(time[1]) + int(time[2]) / 1e9 if time else None,
        "memory": int(memory[1]) // 2**20 if memory else None,
        "split": row.get("split", "test"),
    }


def _called(test: str, solution: str) -> str | None:
    """The function of the solution that a test calls; of one without a solution, the first that is not Python's own."""
    try:
        with warnings.catch_warnings(action="ignore", category=Warning):
            asked, given = module_of(test), module_of(solution)
    except SyntaxError:
        return None
    calls = [node.func.id for node in ast.walk(asked) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    made = {node.name for node in given.body if isinstance(node, ast.FunctionDef)}
    return next((name for name in calls if name in made or (not made and not hasattr(builtins, name))), None)
