"""The rewards that may be compared, and whether they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.turn import Turn, TurnTree, total_reward


def judged(tree: TurnTree) -> dict[Turn, float]:
    """The reward of each episode with a verdict, by its last turn. Raises `AgentGymError` for one that is not finite."""
    rewards = {leaf: reward for leaf in tree.leaves() if (reward := total_reward(leaf)) is not None}
    for leaf, reward in rewards.items():
        if not math.isfinite(reward):
            raise AgentGymError(
                f"task {tree.task.id}: the reward of the episode that ends in turn {leaf.index} of tree {tree.id} must be finite, "
                f"not {reward}: give None for an episode without a verdict"
            )
    return rewards


def mean_reward(trees: Sequence[TurnTree]) -> float:
    """Over all episodes with a verdict; nan where there is none."""
    rewards = [reward for tree in trees for reward in judged(tree).values()]
    return float(np.mean(rewards)) if rewards else float("nan")


def alike(values: Floats) -> bool:
    """Whether values of shape (n,) are equal up to rounding, or fewer than two."""
    return len(values) < 2 or float(np.ptp(values)) <= 1e-6 * max(1.0, float(np.abs(values).max()))
