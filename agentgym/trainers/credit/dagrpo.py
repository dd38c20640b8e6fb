"""DaGRPO, our variant: episodes that are hardly distinct, though one is right and one is wrong, do not pull both ways."""

from __future__ import annotations

import numpy as np

from agentgym.pack import Bools, Floats
from agentgym.trainers.credit.distinctness import ByScore, Distinctness
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.grpo import group_advantages
from agentgym.trainers.expanders.value import SUCCESS


class DaGRPO(GroupCredit):
    """``A = u A_GRPO``, u the share of the episodes with the opposite outcome that are distinct from it by ``delta`` or more.

    Right is a reward of 0.5 or more. Expert solutions as anchors where all are wrong are left out: such a group has advantage 0.
    Source of the idea: DaGRPO: Rectifying Gradient Conflict in Reasoning via Distinctiveness-Aware Group Relative Policy
    Optimization, arXiv 2512.06337 [S-abs]; this form, and ``delta`` [R].
    """

    def __init__(self, distinctness: Distinctness | None = None, delta: float = 0.2) -> None:
        super().__init__()
        self.distinctness, self.delta = distinctness or ByScore(), delta

    def advantages(self, group: Group) -> Floats:
        right = group.rewards >= SUCCESS
        if right.all() or not right.any():
            return np.zeros(len(right))
        return shares(right, self.distinctness(group), self.delta) * group_advantages(group.rewards)


def shares(right: Bools, distinctness: Floats, delta: float = 0.2) -> Floats:
    """u, shape (n,), from outcomes of shape (n,), some right and some wrong, and distinctness of shape (n, n)."""
    pairs = distinctness[np.ix_(right, ~right)] >= delta - 1e-9  # .9 - .7 is less than .2
    found = np.zeros(len(right))
    found[right], found[~right] = pairs.mean(axis=1), pairs.mean(axis=0)
    return found
