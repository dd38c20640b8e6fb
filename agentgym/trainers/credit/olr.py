"""OLR: where labels may be wrong, the policy's own answer is the label once it is stable and grows more frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.pack import Floats
from agentgym.trainers.credit.answers import Answer, FinalCall
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.grpo import group_advantages
from agentgym.turn import TurnTree


class OLR(GroupCredit):
    """GRPO's advantages, of agreement with the majority (1 or 0) for a task whose label is refined, else of the rewards as given.

    From the visit after ``start`` on: refined if the majority's share has risen by ``slope`` or more a visit (least squares over
    all of them), and the present majority is the most frequent one of the earlier visits. It is decided anew at each visit; a
    visit is a batch with the task in it. Source: Can LLMs Learn to Reason Robustly under Noisy Supervision?, arXiv 2604.03993
    [S-code]. ``refined``: the share of tasks that were judged by their majority. ``reward`` is still by the labels as given.
    """

    def __init__(self, start: int = 4, slope: float = 0.05, answer: Answer | None = None) -> None:
        super().__init__()
        self.start, self.slope, self.answer = start, slope, answer or FinalCall()
        self.visits: dict[str, list[tuple[str | None, float]]] = {}  # to each task: the majority, None on a tie, and its share
        self._refined: list[bool] = []

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        self._refined = []
        await super().assign(trees, models)
        self._metrics["refined"] = sum(self._refined) / max(1, len(self._refined))

    def advantages(self, group: Group) -> Floats:
        answers = [self.answer(leaf) for leaf in group.leaves]
        visits = self.visits.setdefault(group.task.id, [])
        majority, earlier = mode(answers), [before for before, _ in visits]
        visits.append((majority, max(Counter(a for a in answers if a is not None).values(), default=0) / len(answers)))
        refined = len(visits) > self.start and is_refined([share for _, share in visits], earlier, majority, self.slope)
        self._refined.append(refined)
        agrees = np.array([answer == majority for answer in answers], dtype=np.float64)
        return group_advantages(agrees if refined else group.rewards)

    def state_dict(self) -> dict[str, Any]:
        return {"visits": {task: list(visits) for task, visits in self.visits.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.visits = {task: list(visits) for task, visits in state["visits"].items()}


def is_refined(shares: Sequence[float], majorities: Iterable[str | None], majority: str | None, slope: float = 0.05) -> bool:
    """Whether the present ``majority`` takes the label's place; ``shares`` are of all visits, ``majorities`` of earlier ones."""
    return majority is not None and trend(shares) >= slope - 1e-9 and mode(majorities) == majority


def trend(values: Sequence[float]) -> float:
    """The least-squares slope against 0, 1, 2, …; 0 for fewer than two."""
    return float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def mode(answers: Iterable[str | None]) -> str | None:
    """The most frequent answer; None on a tie, or where there is none."""
    first, second = [*Counter(answer for answer in answers if answer is not None).most_common(2), (None, 0), (None, 0)][:2]
    return first[0] if first[1] > second[1] else None
