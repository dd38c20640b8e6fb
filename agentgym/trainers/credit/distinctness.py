"""How far a right episode is from a wrong one: callables from a group to a matrix, for DaGRPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, scores
from agentgym.trainers.expanders.lookahead import edit_distance
from agentgym.turn import path

Distinctness = Callable[[Group], Floats]  # shape (n, n): how much more distinct row i is than column j, i right and j wrong


@dataclass(frozen=True)
class ByScore:
    """By how much a fine score in [0, 1], the metric of that name, of the right one lies above that of the wrong one."""

    metric: str = "score"

    def __call__(self, group: Group) -> Floats:
        fine = scores(group, self.metric)
        difference: Floats = fine[:, None] - fine[None, :]
        return difference


@dataclass(frozen=True)
class ByEdits:
    """The share of tokens that must be edited to make one of the other, for where nothing scores finely. Slow for long episodes."""

    def __call__(self, group: Group) -> Floats:
        acted = [[token for turn in path(leaf)[1:] for token in turn.ids[: turn.action_tokens]] for leaf in group.leaves]
        return np.array([[edit_distance(a, b) / max(1, len(a), len(b)) for b in acted] for a in acted])
