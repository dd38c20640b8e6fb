"""Distillation beyond the teacher: further along the way from a reference to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from agentgym.pack import Floats, Packed
from agentgym.trainers.credit.logprobs import write_logprobs
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.teachers import Routed, scorer
from agentgym.trainers.credit.topk import TopK
from agentgym.trainers.learner import Frozen
from agentgym.turn import Turn, TurnTree


class ExOPD(OPD):
    """`OPD` with ``A_t = (teacher - behaviour logp) + (scale - 1) (teacher - reference logp)``.

    Its optimum is in proportion to ``teacher^scale reference^(1 - scale)``: ``scale`` 1 is OPD and asks no reference, 0 pulls to it, and
    above 1 goes beyond the teacher: 1.25 in the paper, where 1.5 made answers grow. ``bound`` is that of ``teacher - reference logp`` [R].
    The reference is a `Frozen` copy of the starting policy, from which teachers of several domains are best grown, or a model given
    under its name: the teacher's own start is the paper's reward correction. Other settings are those of `OPD`.

    Source: Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation, arXiv 2602.12125 [S-code].
    """

    def __init__(
        self,
        scale: float = 1.25,
        teacher: str | Routed = "teacher",
        reference: str = "reference",
        bound: float | None = 5.0,
        **settings: Any,
    ) -> None:
        super().__init__(teacher, **settings)
        self.scale, self.reference = scale, reference
        self.bound = np.inf if bound is None else bound
        self.writes = OPD.writes
        if scale != 1:
            self.models.setdefault(reference, Frozen)
            self.writes |= {"reference"}

    def score(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        super().score(trees, models)
        if self.scale != 1:
            write_logprobs(trees, "reference", models, self.reference, self.max_tokens)

    def signal(self, turn: Turn) -> Floats:
        plain = super().signal(turn)
        if self.scale == 1:
            return plain
        return plain + (self.scale - 1) * np.clip(turn.streams["teacher"] - turn.streams["reference"], -self.bound, self.bound)


class WholeExOPD(TopK):
    """`ExOPD` over the whole vocabulary: for `Distillation`, with softmax(scale log teacher + (1 - scale) log reference) as the teacher.

    By ``ReverseKL`` the expectation of ExOPD's gradient, without its noise [R]; V log-probabilities are kept for each token.
    """

    def __init__(
        self,
        scale: float = 1.25,
        teacher: str | Routed = "teacher",
        reference: str = "reference",
        window: int | None = None,
        max_tokens: int = 4096,
    ) -> None:
        super().__init__(None, teacher, window, max_tokens=max_tokens)
        self.scale, self.reference = scale, reference
        if scale != 1:
            self.models.setdefault(reference, Frozen)

    def support(self, packed: Packed, teacher: str, models: Mapping[str, Any]) -> dict[str, Tensor]:
        found = super().support(packed, teacher, models)
        if self.scale != 1:
            reference = scorer(models, self.reference, "at").at(packed, found["teacher_ids"])
            found["teacher_logprobs"] = (self.scale * found["teacher_logprobs"] + (1 - self.scale) * reference).log_softmax(-1)
        return found
