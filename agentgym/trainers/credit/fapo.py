"""FAPO: a right answer that was reached by a wrong step earns no bonus."""

from __future__ import annotations

import math

import numpy as np

from agentgym.pack import Bools, Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.grpo import group_advantages
from agentgym.trainers.expanders.value import SUCCESS

CLEAN = -1


class FAPO(GroupCredit):
    """GRPO's advantages of +1 for right, -1 for wrong, and 0 for right with a wrong step on the way.

    The first wrong step comes from the metric ``error`` of an episode's last turn, as its verifier found it; -1 says that
    there is none. Where there is no finite metric the verifier has failed, and the episode counts as clean. Right is a reward
    of 0.5 or more [R]. A flawed success is encouraged as long as more episodes are wrong than clean.
    Source: FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning, arXiv 2510.22543 [S-code].
    """

    def __init__(self, error: str = "first_error") -> None:
        super().__init__()
        self.error = error

    def advantages(self, group: Group) -> Floats:
        found = np.array([leaf.metrics.get(self.error, CLEAN) for leaf in group.leaves], dtype=np.float64)
        return group_advantages(outcomes(group.rewards >= SUCCESS, np.isfinite(found) & (found != CLEAN)))


def outcomes(right: Bools, flawed: Bools) -> Floats:
    """+1, 0 or -1 of each episode; both arguments are true or false, of shape (n,)."""
    return np.where(right, 1.0 - np.asarray(flawed, dtype=np.float64), -1.0)


def verifier_reward(true: int, said: int | None, steps: int) -> float:
    """What a verifier earns that said a step of ``steps`` is the first wrong one, -1 for none; None: it cannot be read."""
    if said is None:
        return -1.0
    if true == CLEAN or said == CLEAN:
        return 1.0 if true == said else -1.0
    return 1 - math.fabs(said - true) / steps
