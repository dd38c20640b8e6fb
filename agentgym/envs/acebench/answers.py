"""Normal and special tasks: one answer for each row of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentgym.action import Action, Call, format_action
from agentgym.env import Reply
from agentgym.envs.acebench.grading import INCORRECT, LIMITED, MISSING, fault, function_name, telling, tells
from agentgym.envs.acebench.users import Listen
from agentgym.envs.calls import Json, calls_alone, tool_name
from agentgym.outcome import Outcome
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
class Answers:
    """Which answers were right. ``official``: as the benchmark's program grades them."""

    right: tuple[bool, ...] = ()
    official: tuple[bool, ...] = ()

    def instruction(self, task: Task) -> str:
        part = task.data["parts"][0]
        profile = part["profile"] and f"About the user: {part['profile']}"
        words = CALL.format(known=" or that are known about the user" if profile else "").replace("\n", " ")
        special = TELL if task.data["category"].startswith("special_") else ""
        return "\n\n".join(filter(None, (words, special, part["time"], profile)))

    def most_turns(self, task: Task) -> int:
        return len(task.data["parts"])

    def functions(self, task: Task) -> list[Json]:
        """Those of the part that comes."""
        parts: list[Any] = task.data["parts"]
        found: list[Json] = parts[min(len(self.right), len(parts) - 1)]["functions"]
        return found

    def act(self, task: Task, action: Action, listen: Listen | None) -> tuple[Reply, Answers]:
        right, official = (self._is_right(task, action, official) for official in (False, True))
        after = Answers((*self.right, right), (*self.official, official))
        outcome = Outcome.OK if action.problem is None else Outcome.MODEL_ERROR
        if len(after.right) == len(task.answer):
            return Reply(OVER, ends=True, outcome=outcome), after
        before, now = (task.data["parts"][len(after.right) + step]["question"] for step in (-1, 0))
        return Reply(f"The conversation went on:\n{now.removeprefix(before)}", outcome=outcome), after

    def score(self, task: Task) -> float:
        return float(sum(self.right) == len(task.answer))

    def metrics(self, task: Task) -> dict[str, float]:
        passed, answers = sum(self.official), len(task.answer)
        return {"official": float(passed == answers), "process": passed / answers}

    def key(self, task: Task) -> str:
        """Equal at the same place of the same task: what was answered changes nothing of what comes."""
        return f"{task.id}/{len(self.right)}"

    def _is_right(self, task: Task, action: Action, official: bool) -> bool:
        wanted, category = task.answer[len(self.right)], task.data["category"]
        if not category.startswith("normal_"):
            return not action.calls and tells(category, action.content, wanted, official=official)
        calls, functions = action.calls or calls_alone(action.content), task.data["parts"][len(self.right)]["functions"]
        return any(not fault(calls, functions, one, official=official) for one in wanted)


def known_answers(task: Task) -> list[str] | None:
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
