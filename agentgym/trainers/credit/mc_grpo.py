"""MC-GRPO: the median as the baseline, for groups so small that one episode moves the mean across another."""

from __future__ import annotations

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.grpo import EPSILON, group_advantages
from agentgym.trainers.credit.verdicts import alike

FLOOR = 1e-3
SCALES = ("guarded", "mad", "std", "none")


class MCGRPO(GroupCredit):
    """``A = (R - m) / scale``, m the lower median; play one episode more than GRPO would: one at the median has advantage 0.

    ``scale``: "mad", the reference's: ``mad + 1e-3``, mad the lower median of ``|R - m|``. It is 0 wherever most rewards are
    alike, always with binary ones, and advantages are then 1000. "guarded" (default) takes ``max(std, 1e-3)`` there [R].
    "std": ``std + 1e-6`` (n - 1); "none": 1. ``reweigh``: times n over the number of advantages that are not 0, as in one of
    its two trainers [S-code]. With fewer than three episodes it is GRPO. The reference drops one episode at the median from the
    batch; here it stays, without gradient, and counts in the divisor [R].

    Source: MC-GRPO: Median-Centered Group Relative Policy Optimization for Small-Rollout Reinforcement Learning,
    arXiv 2601.22582 [S-code].
    """

    def __init__(self, scale: str = "guarded", reweigh: bool = False) -> None:
        super().__init__()
        if scale not in SCALES:
            raise AgentGymError(f"scale is {scale!r}: choose one of {', '.join(SCALES)}")
        self.scale, self.reweigh = scale, reweigh

    def advantages(self, group: Group) -> Floats:
        return median_centred(group.rewards, self.scale, self.reweigh)


def median_centred(rewards: Floats, scale: str = "guarded", reweigh: bool = False) -> Floats:
    """Shape (n,) to shape (n,). Equal rewards, up to rounding, give exactly 0."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if len(rewards) < 3 or alike(rewards):
        return group_advantages(rewards)
    centred = rewards - lower_median(rewards)
    mad = lower_median(np.abs(centred))
    std = float(rewards.std(ddof=1))
    guarded = mad + FLOOR if mad else max(std, FLOOR)
    divisor = {"guarded": guarded, "mad": mad + FLOOR, "std": std + EPSILON, "none": 1.0}[scale]
    factor = len(rewards) / np.count_nonzero(centred) if reweigh else 1.0
    advantages: Floats = centred * (factor / divisor)
    return advantages


def lower_median(values: Floats) -> float:
    """An element of ``values``: the middle one, or the lower of the middle two."""
    return float(np.sort(values)[(len(values) - 1) // 2])
