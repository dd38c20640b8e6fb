"""Self-distillation: the policy that knows more teaches the one that does not."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.teachers import scorer
from agentgym.trainers.learner import Frozen
from agentgym.turn import Turn, TurnTree

FIELDS = ("task.id", "task.prompt", "task.answer", "task.data[")


class OPSD(OPD):
    """`OPD` with the learner itself as the teacher, which reads the same tokens after a ``hint`` that the policy never sees.

    ``hint`` is a template of the task, put in front of every context as plain text [R]; where a field of it is None, the tree does not
    train. ``teacher`` "learner" is the live policy before its update; any other name a `Frozen` copy of the starting policy, which the
    code recommends, or a model given under it. Metric ``hinted``: the share of trees with a hint. The paper's own loss is a JSD over
    the vocabulary; this is its sampled form. Source: Self-Distilled Reasoner, arXiv 2601.18734 [S-code]. Other settings are
    those of `OPD`.
    """

    def __init__(
        self,
        hint: str = "The answer is {task.answer}.\n",
        teacher: str = "learner",
        **settings: Any,
    ) -> None:
        super().__init__(teacher, **settings)
        self.models = dict.fromkeys(self.models, Frozen)
        self.hint, self.name, self.hinted = checked(hint), teacher, 0.0

    def score(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        teacher, tokenizer = scorer(models, self.name, "logprobs"), models["chat"].tokenizer
        origin: dict[Turn, Turn] = {}
        forest = []
        for tree in trees:
            hint = _filled(self.hint, tree.task)
            for turn in tree.turns:
                turn.streams["teacher"] = np.zeros(len(turn.ids))
                turn.streams["trained"] *= hint is not None
            if hint is not None:
                forest.append(hinted(tree, tokenizer.encode(hint, add_special_tokens=False), origin))
        for twin, own in scored(forest, teacher, self.max_tokens):
            turn = origin[twin]
            turn.streams["teacher"] = own[len(own) - len(turn.ids) :]  # behind the hint
        self.hinted = len(forest) / max(1, len(trees))

    def metrics(self) -> dict[str, float]:
        return {**self._metrics, "hinted": self.hinted}


def hinted(tree: TurnTree, hint: list[int], origin: dict[Turn, Turn]) -> TurnTree:
    """The same tree with ``hint`` in front of each context. ``origin`` hears which turn each new one stands for."""
    twins = TurnTree(tree.id, tree.task)
    found: dict[Turn | None, Turn] = {}
    for turn in tree.turns:
        ids = [*hint, *turn.ids] if turn.parent is None or turn.restarts else turn.ids
        twin = found[turn] = twins.add(Turn(-1, found.get(turn.parent), turn.author, turn.seed, ids=ids, restarts=turn.restarts))
        origin[twin] = turn
    return twins


def checked(hint: str) -> str:
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


def _filled(hint: str, task: Task) -> str | None:
    """The hint for a task; None where the task has none to give."""
    try:
        return _Filled().format(hint, task=task)
    except _Nothing:
        return None
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise AgentGymError(f"task {task.id}: the hint {hint!r} cannot be filled ({error!r}): give it that field, or None") from None
