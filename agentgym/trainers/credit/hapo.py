"""HAPO's advantages, normalised over tokens, and how unsure the policy was at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.grpo import EPSILON, broadcast, group_advantages
from agentgym.trainers.credit.verdicts import judged
from agentgym.trainers.expanders.entropy import known
from agentgym.turn import TurnTree, path

LARGEST_ADVANTAGE = 5.0


class HAPO(Stateless):
    """``A = (R - mean) / (std + 1e-6)`` with population statistics over the tokens of a tree's episodes; also the stream ``heterogeneity``.

    A tree with any ``|A| >= 5`` has GRPO's advantages. Heterogeneity in [-1, 1] ranks the log-entropies of the batch about their 0.8
    quantile. The released code divides its negative side by the signed minimum, which makes sure tokens positive:
    ``reference_sign``; here it is the absolute one [R]. The temperature that follows entropy is left out. Source: From Uniform to
    Heterogeneous: Tailoring Policy Optimization to Every Token's Nature, arXiv 2509.16591 [S-code].
    """

    writes = frozenset({"advantage", "heterogeneity"})

    def __init__(self, reference_sign: bool = False) -> None:
        self.reference_sign = reference_sign
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        rewards: list[float] = []
        mixed = 0
        for tree in trees:
            own = judged(tree)
            group = np.array(list(own.values()), dtype=np.float64)
            lengths = np.array([sum(turn.sampled_tokens for turn in path(leaf)) for leaf in own], dtype=np.float64)
            advantages = token_advantages(group, lengths)
            broadcast(tree, dict(zip(own, advantages.tolist(), strict=True)))
            rewards.extend(own.values())
            mixed += bool(advantages.any())
        turns = [turn for tree in trees for turn in tree.turns]
        scores = iter(heterogeneity(np.array([h for turn in turns if turn.sampled_tokens for h in known(turn)]), self.reference_sign))
        for turn in turns:
            turn.streams["heterogeneity"] = np.array([next(scores) if sampled else 0.0 for sampled in turn.sampled])
        self._metrics = {"reward": float(np.mean(rewards)) if rewards else float("nan"), "groups_with_signal": mixed / max(1, len(trees))}

    def metrics(self) -> dict[str, float]:
        return self._metrics


def token_advantages(rewards: Floats, lengths: Floats) -> Floats:
    """Rewards and sampled tokens of each episode, shapes (n,), to shape (n,)."""
    plain = group_advantages(rewards)
    if not plain.any() or not lengths.any():
        return plain
    mean = np.average(rewards, weights=lengths)
    spread = np.sqrt(np.average((rewards - mean) ** 2, weights=lengths))
    advantages: Floats = (rewards - mean) / (spread + EPSILON)
    return plain if np.abs(advantages).max() >= LARGEST_ADVANTAGE else advantages


def heterogeneity(entropies: Floats, reference_sign: bool = False) -> Floats:
    """Entropies in nats, shape (N,), to scores in [-1, 1] of that shape; 0 at the 0.8 quantile."""
    if not len(entropies):
        return entropies
    logs = np.log(np.maximum(entropies, 1e-8))
    h = logs - np.sort(logs)[round(0.8 * (len(logs) - 1))]
    lowest = float(h.min()) if reference_sign else abs(float(h.min()))
    scores: Floats = np.where(h > 0, h / (h.max() or 1.0), h / (lowest or 1.0))
    return scores
