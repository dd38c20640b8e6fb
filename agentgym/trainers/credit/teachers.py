"""Which teacher scores which tree, and how much it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.verdicts import mean_reward
from agentgym.trainers.seams import given
from agentgym.turn import TurnTree


@dataclass(frozen=True)
class Routed:
    """Several teachers: ``models`` maps what ``task.data[field]`` says to a model's name."""

    field: str
    models: Mapping[str, str]

    def of(self, task: Task) -> str:
        value = str(task.data.get(self.field))
        if value not in self.models:
            raise AgentGymError(f"task {task.id}: no teacher for {self.field} {value!r}; there are teachers for {', '.join(self.models)}")
        return self.models[value]


def teachers(*names: str | Routed) -> dict[str, Callable[[Any], Any]]:
    """For a credit's ``models``: those that must be given; the learner is there already."""
    found = (name for teacher in names for name in ([teacher] if isinstance(teacher, str) else teacher.models.values()))
    return {name: given(name) for name in found if name != "learner"}


def by_teacher(trees: Sequence[TurnTree], teacher: str | Routed) -> dict[str, list[TurnTree]]:
    """The trees that each teacher scores, by its name."""
    found: dict[str, list[TurnTree]] = {}
    for tree in trees:
        found.setdefault(teacher if isinstance(teacher, str) else teacher.of(tree.task), []).append(tree)
    return found


def scorer(models: Mapping[str, Any], name: str, method: str) -> Any:
    """The model of that name. Raises `AgentGymError` where it is missing or cannot do what is asked."""
    if not hasattr(models.get(name), method):
        known = ", ".join(models) or "none"
        raise AgentGymError(f"a model {name!r} with {method}(packed, …) is needed, such as a policy's; models: {known}")
    return models[name]


def figures(trees: Sequence[TurnTree]) -> dict[str, float]:
    """The mean reward of judged episodes, and how many tokens were scored to be learnt from."""
    tokens = sum(int(np.count_nonzero(turn.streams["trained"])) for tree in trees for turn in tree.turns)
    return {"reward": mean_reward(trees), "teacher_tokens": tokens}
