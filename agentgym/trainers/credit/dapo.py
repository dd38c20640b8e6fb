"""DAPO's rewards: an answer that runs up to the limit costs something before it is cut off."""

from __future__ import annotations

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, GroupCredit
from agentgym.trainers.credit.grpo import group_advantages
from agentgym.turn import path


class DAPO(GroupCredit):
    """GRPO's advantages of ``R + overlong(L)``, L the number of an episode's sampled tokens.

    ``longest`` is the length from which the penalty is 1, and it sets in ``cache`` tokens below. DAPO's other parts are
    `agentgym.trainers.schedules.dynamic.DynamicSampling`, the upper bound of `ClippedSurrogate` and the divisor
    `token_mean`. Source: DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476 [S-code].
    """

    def __init__(self, longest: int, cache: int) -> None:
        super().__init__()
        if not 0 < cache <= longest:
            raise AgentGymError(f"cache is {cache} tokens: it must lie above 0, and be longest at most, which is {longest}")
        self.longest, self.cache = longest, cache

    def advantages(self, group: Group) -> Floats:
        lengths = np.array([sum(turn.sampled_tokens for turn in path(leaf)) for leaf in group.leaves])
        return group_advantages(group.rewards + overlong(lengths, self.longest, self.cache))


def overlong(lengths: Floats, longest: int, cache: int) -> Floats:
    """0 up to ``longest - cache`` tokens, from there linearly down to -1 at ``longest`` and beyond. Shape (n,) to shape (n,)."""
    return np.clip((longest - cache - np.asarray(lengths, dtype=np.float64)) / cache, -1.0, 0.0)
