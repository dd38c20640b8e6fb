"""Contrasts at the root and at each fork, for trees that TRACE or any other plan has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.trainers.credit.grpo import EPSILON, per_kilotoken
from agentgym.trainers.credit.verdicts import alike
from agentgym.trainers.expanders.value import outcomes, rewards_through
from agentgym.turn import Turn, TurnTree, path


class TRACE(Stateless):
    """A turn is as good as the episodes through it are better than all of the tree, and than those below the last fork above.

    ``A(y) = c(y, root) + weight c(y, b)``, b the deepest forked turn above y other than the root, and ``c(y, b) =
    (mean below y - mean below b) / (std below b + 1e-6)`` with the population deviation. Without forks it is GRPO but for the
    kind of deviation. Source: TRACE, arXiv 2606.11119: contrasts at both levels [S2]; this form, and ``weight`` of 1 [R].

    ``effective_ratio``: share of all trees that hold a success and a failure. ``groups_with_signal``: share of contrasts, at
    roots with a judged episode and at forks, whose rewards differ; ``contrasts_per_kilotoken``: their number for each thousand
    sampled tokens. ``filtered``: share of trees without a judged episode.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        forest = [(tree, rewards_through(tree)) for tree in trees]
        for tree, below in forest:
            for turn in tree.turns:
                advantage = self._advantage(turn, below) if turn in below else 0.0
                turn.streams["advantage"] = np.where(turn.sampled, advantage, 0.0)
        roots = [below[tree.root] for tree, below in forest if below]
        groups = [*roots, *(below[turn] for _, below in forest for turn in below if _forked(turn, below))]
        mixed = sum(deviation(group) > 0 for group in groups)
        self._metrics = {
            "reward": float(np.mean([reward for group in roots for reward in group])) if roots else float("nan"),
            "effective_ratio": sum(len(outcomes(group)) == 2 for group in roots) / max(1, len(trees)),
            "groups_with_signal": mixed / max(1, len(groups)),
            "contrasts_per_kilotoken": per_kilotoken(mixed, trees),
            "filtered": 1 - len(roots) / max(1, len(trees)),
        }

    def _advantage(self, turn: Turn, below: Mapping[Turn, Sequence[float]]) -> float:
        root, *above = path(turn)
        forks = [anchor for anchor in above[:-1] if _forked(anchor, below)]
        deepest = self.weight * contrast(below[turn], below[forks[-1]]) if forks else 0.0
        return contrast(below[turn], below[root]) + deepest

    def metrics(self) -> dict[str, float]:
        return self._metrics


def contrast(rewards: Sequence[float], group: Sequence[float]) -> float:
    """The mean of (r - mean) / (std + 1e-6) over ``rewards``, some of the group's; exactly 0 where the group is all alike."""
    spread = deviation(group)
    return float(np.mean(rewards) - np.mean(group)) / (spread + EPSILON) if spread else 0.0


def deviation(group: Sequence[float]) -> float:
    """The population deviation; exactly 0 for rewards that are equal up to rounding, and for fewer than two."""
    rewards = np.array(group, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise AgentGymError(f"rewards must be finite, not {rewards.tolist()}")
    return 0.0 if alike(rewards) else float(rewards.std())


def _forked(turn: Turn, below: Mapping[Turn, Sequence[float]]) -> bool:
    """Whether episodes with a verdict leave it by two ways or more. The root is no fork: its contrast is the tree's own."""
    return turn.parent is not None and sum(child in below for child in turn.children) > 1
