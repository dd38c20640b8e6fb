"""RLOO: an episode is as good as it is better than the mean of the others."""

from __future__ import annotations

import numpy as np

from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.verdicts import alike


class RLOO(GroupCredit):
    """``A_i = R_i - mean of R_j, j != i``, which is ``(R_i - mean) n / (n - 1)``. No deviation.

    Source: Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback, arXiv 2402.14740, in the
    form of verl's code [S-code]. A group of one has advantage 0 [R]; the code passes its reward on.
    """

    def advantages(self, group: Group) -> Floats:
        return leave_one_out(group.rewards)


def leave_one_out(rewards: Floats) -> Floats:
    """Shape (n,) to shape (n,). Equal rewards, up to rounding, give exactly 0."""
    rewards = np.asarray(rewards, dtype=np.float64)
    n = len(rewards)
    return np.zeros(n) if alike(rewards) else (rewards - rewards.mean()) * (n / (n - 1))
