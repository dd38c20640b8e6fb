"""What a teacher would write in place of each token: its distribution, on the tokens that carry most of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats, Packed, pack
from agentgym.trainers.credit.logprobs import by_turn
from agentgym.trainers.credit.teachers import Routed, by_teacher, figures, scorer, teachers
from agentgym.trainers.credit.tokens import checked_window, mark_sampled
from agentgym.turn import Turn, TurnTree


class TopK(Stateless):
    """The teacher's ``k`` likeliest tokens in place of each that trains, and their log-probabilities; of the whole vocabulary with k None.

    For `agentgym.trainers.objectives.distillation.Distillation`. Streams ``teacher_ids`` and ``teacher_logprobs``, shapes (len(ids), k),
    and ``trained`` as in `agentgym.trainers.credit.opd.OPD`. Metrics: ``reward``, ``teacher_tokens``, ``teacher_mass`` (the probability
    that the teacher gives its k) and, where ``overlap`` is true, ``overlap``: the share of them that are the learner's k likeliest too,
    for one more pass of the learner; below 0.6 a pair is far apart [S2]. Source: arXiv 2306.13649 (GKD), 2603.25562 (top k) [S2].
    """

    writes = frozenset({"trained", "teacher_ids", "teacher_logprobs"})

    def __init__(
        self,
        k: int | None = 16,
        teacher: str | Routed = "teacher",
        window: int | None = None,
        overlap: bool = False,
        max_tokens: int = 4096,
    ) -> None:
        if k is not None and k < 1:
            raise AgentGymError(f"k is {k}: ask for one token at least, or null for the whole vocabulary")
        self.k, self.teacher, self.window, self.overlap, self.max_tokens = k, teacher, checked_window(window), overlap, max_tokens
        self.models: dict[str, Callable[[Any], Any]] = teachers(teacher)
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        mark_sampled(trees, self.window)
        for name, own in by_teacher(trees, self.teacher).items():
            for packed in pack(own, self.max_tokens):
                for stream, values in self.support(packed, name, models).items():
                    for turn, part in by_turn(packed, values.double().cpu().numpy()):
                        turn.streams[stream] = part
        turns = [turn for tree in trees for turn in tree.turns if turn.ids]
        masses = [np.exp(turn.streams["teacher_logprobs"]).sum(-1) for turn in turns]
        self._metrics = {**figures(trees), **_mean("teacher_mass", masses, turns)}
        if self.overlap:
            self._metrics |= _mean("overlap", [turn.streams["overlap"] for turn in turns], turns)

    def support(self, packed: Packed, teacher: str, models: Mapping[str, Any]) -> dict[str, Tensor]:
        """The streams of one pack, shapes (T, k)."""
        ids, logprobs = scorer(models, teacher, "topk").topk(packed, self.k)
        found = {"teacher_ids": ids, "teacher_logprobs": logprobs}
        return {**found, "overlap": common(ids, likeliest(models, packed, self.k)[0])} if self.overlap else found

    def metrics(self) -> dict[str, float]:
        return self._metrics


class StudentTopK(TopK):
    """`TopK` on the learner's ``k`` likeliest tokens before its update, whose log-probabilities are then the stream ``student_logprobs``.

    ``teacher_ids`` are these tokens, so that `Distillation` fits too; `TokenRewards` is made for them. Source: Rethinking On-Policy
    Distillation, arXiv 2604.13016 (there ``only_stu`` and 16) [S-code].
    """

    writes = TopK.writes | {"student_logprobs"}

    def support(self, packed: Packed, teacher: str, models: Mapping[str, Any]) -> dict[str, Tensor]:
        ids, logprobs = likeliest(models, packed, self.k)
        asked = scorer(models, teacher, "at")
        found = {"teacher_ids": ids, "teacher_logprobs": asked.at(packed, ids), "student_logprobs": logprobs}
        return {**found, "overlap": common(ids, asked.topk(packed, self.k)[0])} if self.overlap else found


def likeliest(models: Mapping[str, Any], packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
    """The learner's k likeliest tokens in place of every token, and their log-probabilities, shapes (T, k)."""
    found: tuple[Tensor, Tensor] = scorer(models, "learner", "topk").topk(packed, k)
    return found


def common(own: Tensor, other: Tensor) -> Tensor:
    """The share of ids that two top k have in common, shapes (T, k) to (T,)."""
    return (own[:, :, None] == other[:, None, :]).any(-1).double().mean(-1)


def _mean(name: str, values: Sequence[Floats], turns: Sequence[Turn]) -> dict[str, float]:
    """Over the tokens that train, none where there are none."""
    found = np.concatenate([np.zeros(0), *(own[turn.streams["trained"] > 0] for own, turn in zip(values, turns, strict=True))])
    return {name: float(found.mean())} if len(found) else {}
