"""Group-relative advantages: an episode is as good as it is better than its siblings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.trainers.credit.verdicts import alike, judged
from agentgym.turn import Turn, TurnTree, path

EPSILON = 1e-6


class GRPO(Stateless):
    """``A = (R - mean) / (std + 1e-6)`` over the episodes of one tree, with the sample standard deviation (n - 1).

    Source: DeepSeekMath, arXiv 2402.03300, in the form of verl's code [S-code]. A group of one has advantage 0 [R].
    Episodes without a verdict are in no mean. A turn that several episodes share gets the mean of their advantages [R].
    """

    apart = True

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        rewards: list[float] = []
        mixed = 0
        for tree in trees:
            own = judged(tree)
            advantages = group_advantages(np.array(list(own.values()), dtype=np.float64))
            rewards.extend(own.values())
            mixed += bool(advantages.any())
            broadcast(tree, dict(zip(own, advantages.tolist(), strict=True)))
        self._metrics = {
            "reward": float(np.mean(rewards)) if rewards else float("nan"),
            "groups_with_signal": mixed / len(trees) if trees else 0.0,
            "contrasts_per_kilotoken": per_kilotoken(mixed, trees),
        }

    def metrics(self) -> dict[str, float]:
        return self._metrics


def group_advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (n,) to shape (n,). Equal rewards, up to rounding, give exactly 0."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise AgentGymError(f"rewards must be finite, not {rewards.tolist()}")
    if alike(rewards):
        return np.zeros(len(rewards))
    advantages: NDArray[np.float64] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)
    return advantages


def per_kilotoken(contrasts: int, trees: Sequence[TurnTree]) -> float:
    """Groups with unequal rewards for each thousand tokens that were sampled: what a budget bought."""
    return 1000 * contrasts / max(1, sum(turn.sampled_tokens for tree in trees for turn in tree.turns))


def broadcast(tree: TurnTree, advantages: Mapping[Turn, float]) -> None:
    """Give each turn the mean advantage of the episodes through it, on its sampled tokens."""
    through: dict[Turn, list[float]] = {}
    for leaf, advantage in advantages.items():
        for turn in path(leaf):
            through.setdefault(turn, []).append(advantage)
    for turn in tree.turns:
        advantage = float(np.mean(through[turn])) if turn in through else 0.0
        turn.streams["advantage"] = np.where(turn.sampled, advantage, 0.0)
