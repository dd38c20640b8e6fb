"""What a teacher may know that the policy does not: a template of the task, and the trees with it in front of each context."""

from __future__ import annotations

import string
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

FIELDS = ("task.id", "task.prompt", "task.answer", "task.data[")


def checked_hint(hint: str) -> str:
    """Raises `AgentGymError` for a template of anything but the task."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(hint) if field is not None]
    except ValueError as error:
        raise AgentGymError(f"hint {hint!r}: {error}") from None
    if unknown := [field for field in fields if not field.startswith(FIELDS)]:
        raise AgentGymError(f"hint {hint!r}: there is no field {unknown[0]!r}; fields: {', '.join(FIELDS)}…]")
    return hint


class _Nothing(Exception):
    pass


class _Filled(string.Formatter):
    def format_field(self, value: Any, spec: str) -> str:
        if value is None:
            raise _Nothing
        return str(super().format_field(value, spec))


def filled(hint: str, task: Task) -> str | None:
    """The hint for a task; None where the task has none to give."""
    try:
        return _Filled().format(hint, task=task)
    except _Nothing:
        return None
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise AgentGymError(f"task {task.id}: the hint {hint!r} cannot be filled ({error!r}): give it that field, or None") from None


def hinted(tree: TurnTree, hint: list[int], origin: dict[Turn, Turn]) -> TurnTree:
    """The same tree with ``hint`` in front of each context. ``origin`` hears which turn each new one stands for."""
    twins = TurnTree(tree.id, tree.task)
    found: dict[Turn | None, Turn] = {}
    for turn in tree.turns:
        ids = [*hint, *turn.ids] if turn.parent is None or turn.restarts else turn.ids
        twin = found[turn] = twins.add(Turn(-1, found.get(turn.parent), turn.author, turn.seed, ids=ids, restarts=turn.restarts))
        origin[twin] = turn
    return twins
