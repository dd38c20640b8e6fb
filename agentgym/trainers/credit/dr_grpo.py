"""Dr. GRPO: GRPO without its deviation."""

from __future__ import annotations

import numpy as np

from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.verdicts import alike


class DrGRPO(GroupCredit):
    """``A = R - mean``: groups that are nearly solved or nearly hopeless do not count for more than others.

    Its other half is a fixed divisor of the loss, `agentgym.trainers.divisors.Constant`. Source: Understanding R1-Zero-Like
    Training: A Critical Perspective, arXiv 2503.20783 [S-code].
    """

    def advantages(self, group: Group) -> Floats:
        return mean_centred(group.rewards)


def mean_centred(rewards: Floats) -> Floats:
    """Shape (n,) to shape (n,). Equal rewards, up to rounding, give exactly 0."""
    rewards = np.asarray(rewards, dtype=np.float64)
    return np.zeros(len(rewards)) if alike(rewards) else rewards - rewards.mean()
