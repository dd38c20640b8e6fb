"""Tree-GRPO's advantages: within each tree, and across all trees of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.expand import Stateless
from agentgym.trainers.credit.groups import by_task
from agentgym.trainers.credit.grpo import broadcast, group_advantages
from agentgym.trainers.credit.verdicts import judged
from agentgym.turn import TurnTree


class TreeGRPO(Stateless):
    """``A = A_inter + A_intra``: ``(r - mean) / (std + 1e-6)`` over all episodes of a task in the batch, and over the tree's own.

    With the sample standard deviation (n - 1). An episode alone in a group has advantage 0 there [R]; the released code takes
    its reward. Episodes without a verdict are in no mean. A turn that several episodes share gets the mean of their
    advantages [R]. Source: Tree Search for LLM Agent Reinforcement Learning, arXiv 2509.21240 [S-code].

    ``groups_with_signal`` and ``trees_with_signal``: share of tasks, and of trees, whose rewards differ.
    """

    apart = True

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        tasks = by_task(trees)
        rewards: list[float] = []
        mixed_tasks = mixed_trees = 0
        for of_task in tasks.values():
            episodes = [judged(tree) for tree in of_task]
            own = [np.array(list(episode.values()), dtype=np.float64) for episode in episodes]
            together = np.concatenate(own)
            inter = group_advantages(together)
            intra = [group_advantages(group) for group in own]
            advantages = iter((inter + np.concatenate(intra)).tolist())
            for tree, leaves in zip(of_task, episodes, strict=True):
                broadcast(tree, {leaf: next(advantages) for leaf in leaves})
            rewards.extend(together)
            mixed_tasks += bool(inter.any())
            mixed_trees += sum(bool(group.any()) for group in intra)
        self._metrics = {
            "reward": float(np.mean(rewards)) if rewards else float("nan"),
            "groups_with_signal": mixed_tasks / max(1, len(tasks)),
            "trees_with_signal": mixed_trees / max(1, len(trees)),
        }

    def metrics(self) -> dict[str, float]:
        return self._metrics
