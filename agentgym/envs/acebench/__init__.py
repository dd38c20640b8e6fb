"""``agentgym/AceBench-v0``: ACEBench: calls that a conversation asks for, and what is to be said where none can be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgym.action import Action, Call, format_action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.acebench.grading import INCORRECT, LIMITED, MISSING, fault, function_name, telling, tells
from agentgym.envs.acebench.tasks import splits, tasks
from agentgym.envs.calls import Offer, calls_alone, schema, tool_name
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, Snapshot
from agentgym.task import Task

OVER = "The conversation is over."
CALL = """You call functions for a user. Below is a conversation so far, in which you are "system". Call all the functions that the user's
last words ask for, at once, and say nothing else. Give the parameters of which the user speaks{known}, in the user's words where the
description asks for no other form, and leave out those that are optional and not spoken of."""
TELL = f"""If something stands in the way, call nothing, and answer with one of these sentences:
- a value has not the type or form that the description asks for: {INCORRECT} (value) for the parameters (name) in the conversation history.
- a required parameter is not given: {MISSING} (name1, name2) for the api (function)
- no function can do it: Due to {LIMITED}, I cannot solve this problem."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Which answers were right. ``official``: as the benchmark's program grades them."""

    right: tuple[bool, ...] = ()
    official: tuple[bool, ...] = ()


class AceBench(AgentEnv):
    """Call the functions that a conversation asks for, or say why none can be called. Reward: 1 where every answer is right.

    ``data``: the folder of ACEBench's data in English; each category of normal and special tasks is a split. Without it, a few
    tasks of our own. An answer is one action; a conversation of several rows asks for one after the other, and shows its true
    course between them. Calls may also be written as ``[name(parameter=value)]``.

    Source: ACEBench (arXiv 2501.12851), the checkers of its program [S], see `agentgym.envs.acebench.grading`.
    Raises `AgentGymError` where a file is missing or has a bad line.
    """

    snapshots: Kind = "value"
    state: Standing

    def __init__(self, data: str | Path | None = None) -> None:
        super().__init__()
        self._folder = None if data is None else Path(data)
        self.splits = splits(self._folder)

    def tasks(self, split: str) -> Sequence[Task]:
        return tasks(self._folder, split) if split in self.splits else ()

    def begin(self, task: Task) -> None:
        self.state = Standing()
        self._offer()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._offer()

    def opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self._instruction()}, {"role": "user", "content": self.task.prompt}]

    def act(self, action: Action) -> Reply:
        right, official = (self._right(action, official) for official in (False, True))
        self.state = Standing((*self.state.right, right), (*self.state.official, official))
        outcome = Outcome.OK if action.problem is None else Outcome.MODEL_ERROR
        if len(self.state.right) == len(self.task.answer):
            return Reply(OVER, ends=True, outcome=outcome)
        before, now = (self.task.data["parts"][len(self.state.right) + step]["question"] for step in (-1, 0))
        self._offer()
        return Reply(f"The conversation went on:\n{now.removeprefix(before)}", outcome=outcome)

    def score(self) -> float:
        return float(sum(self.state.right) == len(self.task.answer))

    def metrics(self) -> dict[str, float]:
        """``official``: 1 where the benchmark's program passes every answer; ``process``: the share of those that it passes."""
        passed, answers = sum(self.state.official), len(self.task.answer)
        return {"official": float(passed == answers), "process": passed / answers}

    def gold(self, task: Task) -> list[str] | None:
        """The known answer of each part; None where the benchmark's own answer is not right by its metric."""
        category, parts = task.data["category"], task.data["parts"]
        if not category.startswith("normal_"):
            return [telling(category, wanted) for wanted in task.answer]
        actions = []
        for part, allowed in zip(parts, task.answer, strict=True):
            calls = [Call(tool_name(function_name(name, part["functions"])), values) for name, values in allowed[0].items()]
            if fault(calls, part["functions"], allowed[0]):
                return None
            actions.append(format_action(*calls))
        return actions

    def key(self) -> str:
        """Equal at the same place of the same task: what was answered changes nothing of what comes."""
        return f"{self.task.id}/{len(self.state.right)}"

    def _right(self, action: Action, official: bool) -> bool:
        number = len(self.state.right)
        wanted, category = self.task.answer[number], self.task.data["category"]
        if not category.startswith("normal_"):
            return not action.calls and tells(category, action.content, wanted, official=official)
        calls, functions = action.calls or calls_alone(action.content), self.task.data["parts"][number]["functions"]
        return any(not fault(calls, functions, one, official=official) for one in wanted)

    def _instruction(self) -> str:
        part = self.task.data["parts"][0]
        profile = part["profile"] and f"About the user: {part['profile']}"
        words = CALL.format(known=" or that are known about the user" if profile else "").replace("\n", " ")
        special = TELL if self.task.data["category"].startswith("special_") else ""
        return "\n\n".join(filter(None, (words, special, part["time"], profile)))

    def _offer(self) -> None:
        """The tools of the part that comes, and the limit of the task."""
        parts = self.task.data["parts"]
        self.max_turns = len(parts)
        functions = parts[min(len(self.state.right), len(parts) - 1)]["functions"]
        self.tools = [Offer(_described(function), lambda name, arguments: OVER) for function in functions]
        self._tool_by_name = {tool.name: tool for tool in self.tools}


def _described(function: dict[str, Any]) -> dict[str, Any]:
    parameters = schema({"type": "object", **function["parameters"]})
    return {"name": tool_name(function["name"]), "description": function["description"], "parameters": parameters}
