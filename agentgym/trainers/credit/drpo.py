"""DRPO: to be short is worth something among right answers only."""

from __future__ import annotations

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Bools, Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.turn import path


class DRPO(GroupCredit):
    """The gradient of ``J = sum over right of w s - tau log mean over wrong of exp(s / tau)``, s an episode's mean log-probability.

    ``w = exp((1 - L / longest) / sharpness)`` over right episodes, normalised; L counts sampled tokens. An episode's advantage is
    n times its coefficient, so that under the divisor `sequence_mean` the loss is ``-J``, averaged over the groups with right
    and wrong ones; the rest have advantage 0. The softmax over the wrong ones is of the behaviour policy [R]: the reference's follows
    the policy within a batch, and its divisor counts groups without contrast too. Its bound on the KL belongs to the objective.
    Rewards must be 0 or 1. Source: DRPO: Efficient Reasoning via Decoupled Reward Policy Optimization, arXiv 2510.04474 [S-code].
    """

    def __init__(self, longest: int, tau: float = 10.0, sharpness: float = 0.1) -> None:
        super().__init__()
        if min(longest, tau, sharpness) <= 0:
            raise AgentGymError(f"longest, tau and sharpness must lie above 0, not {longest}, {tau} and {sharpness}")
        self.longest, self.tau, self.sharpness = longest, tau, sharpness

    def advantages(self, group: Group) -> Floats:
        lengths, scores = np.zeros(len(group.leaves)), np.zeros(len(group.leaves))
        for i, leaf in enumerate(group.leaves):
            logprobs = [logprob for turn in path(leaf) for logprob in turn.logprobs]
            where = f"task {group.task.id}: the episode that ends in turn {leaf.index}"
            if not logprobs:
                raise AgentGymError(f"{where} has no sampled token, so no mean log-probability: play it with a policy that samples")
            if group.rewards[i] not in (0, 1):
                raise AgentGymError(f"{where} has reward {group.rewards[i]}, but DRPO divides episodes into right, 1, and wrong, 0")
            lengths[i], scores[i] = len(logprobs), np.mean(logprobs)
        found = coefficients(scores, group.rewards == 1, lengths / self.longest, self.tau, self.sharpness)
        return len(found) * found


def coefficients(scores: Floats, right: Bools, share: Floats, tau: float = 10.0, sharpness: float = 0.1) -> Floats:
    """``dJ / ds``, shape (n,); all 0 without a right or without a wrong episode. ``share`` is of the longest length."""
    found = np.zeros(len(scores))
    if right.any() and not right.all():
        found[right] = _softmax((1 - share[right]) / sharpness)
        found[~right] = -_softmax(scores[~right] / tau)
    return found


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max())
    share: Floats = powers / powers.sum()
    return share
