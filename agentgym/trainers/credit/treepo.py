"""TreePO's advantages: an episode against its whole tree and against every subtree that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.grpo import broadcast, per_kilotoken
from agentgym.trainers.credit.trace import deviation
from agentgym.trainers.credit.verdicts import judged
from agentgym.turn import Turn, TurnTree, path


class TreePO(Stateless):
    """The mean over depths of ``r - mean(episodes through the same node)``, then whitened over all sampled tokens of the batch.

    Depth 0 is the whole tree; deeper, up to ``depth`` nodes, only nodes with two episodes count; with ``by_size`` they count
    by their number. Whitening is by ``(A - mean) rsqrt(var + 1e-8)`` with the unbiased variance, over every episode's own
    tokens. Source: TreePO, arXiv 2508.17445 [S-code]. A tree whose rewards are all alike is left out of it and has advantage
    0, and so has an episode alone [R]; one without a verdict is in no mean; a shared node gets the mean of its episodes [R].
    """

    def __init__(self, depth: int = 14, by_size: bool = False) -> None:
        self.depth, self.by_size = depth, by_size
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        own = [judged(tree) for tree in trees]
        found = [subgroup_advantages(rewards, self.depth, self.by_size) for rewards in own]
        leaves = [leaf for advantages in found for leaf in advantages]
        tokens = np.array([sum(turn.sampled_tokens for turn in path(leaf)) for leaf in leaves], dtype=np.float64)
        whole = whiten(np.array([a for advantages in found for a in advantages.values()]), tokens)
        whitened = dict(zip(leaves, whole.tolist(), strict=True))
        for tree, advantages in zip(trees, found, strict=True):
            broadcast(tree, {leaf: whitened[leaf] for leaf in advantages})
        self._metrics = {
            "reward": float(np.mean([r for rewards in own for r in rewards.values()])) if any(own) else float("nan"),
            "groups_with_signal": sum(map(bool, found)) / max(1, len(trees)),
            "contrasts_per_kilotoken": per_kilotoken(sum(map(bool, found)), trees),
        }

    def metrics(self) -> dict[str, float]:
        return self._metrics


def subgroup_advantages(rewards: Mapping[Turn, float], depth: int = 14, by_size: bool = False) -> dict[Turn, float]:
    """Of each leaf of one tree, before whitening; of none where the rewards are alike."""
    if not deviation(list(rewards.values())):
        return {}
    below: dict[Turn, list[float]] = {}
    nodes = {leaf: [turn for turn in path(leaf) if not turn.restarts][:depth] for leaf in rewards}
    for leaf, reward in rewards.items():
        for turn in nodes[leaf]:
            below.setdefault(turn, []).append(reward)
    advantages = {}
    for leaf, reward in rewards.items():
        groups = [below[turn] for turn in nodes[leaf] if len(below[turn]) > 1]
        sizes = [len(group) if by_size else 1 for group in groups]
        advantages[leaf] = float(np.average([reward - np.mean(group) for group in groups], weights=sizes))
    return advantages


def whiten(values: Floats, counts: Floats) -> Floats:
    """``values``, each of which stands on so many tokens, to mean 0 and variance 1; 0 where there are fewer than two tokens."""
    if counts.sum() < 2:
        return np.zeros(len(values))
    centred = values - np.average(values, weights=counts)
    whitened: Floats = centred / np.sqrt((counts * centred**2).sum() / (counts.sum() - 1) + 1e-8)
    return whitened
