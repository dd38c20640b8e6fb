"""Self-distillation: the policy that knows more teaches the one that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.trainers.credit.hints import checked_hint, filled, hinted
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.teachers import scorer
from agentgym.trainers.learner import Frozen
from agentgym.turn import Turn, TurnTree


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
        self.hint, self.name, self.hinted = checked_hint(hint), teacher, 0.0

    def score(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        teacher, tokenizer = scorer(models, self.name, "logprobs"), models["chat"].tokenizer
        origin: dict[Turn, Turn] = {}
        forest = []
        for tree in trees:
            hint = filled(self.hint, tree.task)
            for turn in tree.turns:
                turn.streams["teacher"] = np.zeros(len(turn.ids))
                turn.streams["trained"] *= hint is not None
            if hint is not None:
                forest.append(hinted(tree, tokenizer.encode(hint, add_special_tokens=False), origin))
        for twin, own in scored(forest, teacher.logprobs, self.max_tokens):
            turn = origin[twin]
            turn.streams["teacher"] = own[len(own) - len(turn.ids) :]  # behind the hint
        self.hinted = len(forest) / max(1, len(trees))

    def metrics(self) -> dict[str, float]:
        return {**self._metrics, "hinted": self.hinted}
