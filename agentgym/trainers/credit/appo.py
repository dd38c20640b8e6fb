"""APPO's advantages: the episodes played first are taught, by their own outcome and by how their branches end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from agentgym.expand import Stateless
from agentgym.trainers.credit.grpo import EPSILON, per_kilotoken
from agentgym.trainers.credit.trace import deviation
from agentgym.trainers.credit.verdicts import judged
from agentgym.turn import Turn, TurnTree, path


class APPO(Stateless):
    """``A(initial episode, token) = A_initial + mean A_branch`` over its branches that leave it at that token or later.

    A branch is an episode that leaves another one below the root; it is not trained itself, its advantage is 0. Initial
    episodes and branches are two groups, ``(r - mean) / (std + 1e-6)`` each, with the population deviation. Source: APPO,
    arXiv 2606.12384, in the form of its code [S-code]. An episode without a verdict is in no mean, and teaches none [R].
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        rewards: list[float] = []
        for tree in trees:
            own = judged(tree)
            left = {leaf: place for leaf in own if (place := _where_it_left(leaf)) is not None}
            initial = _normalised({leaf: reward for leaf, reward in own.items() if leaf not in left})
            branches = _normalised({leaf: own[leaf] for leaf in left})
            future: dict[Turn, list[float]] = {}
            for leaf, advantage in branches.items():
                for turn in path(left[leaf]):
                    future.setdefault(turn, []).append(advantage)
            first = {turn: advantage for leaf, advantage in initial.items() for turn in path(leaf)[1:]}
            for turn in tree.turns:
                advantage = first[turn] + float(np.mean(future.get(turn, [0.0]))) if turn in first else 0.0
                turn.streams["advantage"] = np.where(turn.sampled, advantage, 0.0)
            rewards.extend(reward for leaf, reward in own.items() if leaf not in left)
        signal = [any(turn.streams["advantage"].any() for turn in tree.turns) for tree in trees]
        self._metrics = {
            "reward": float(np.mean(rewards)) if rewards else float("nan"),
            "groups_with_signal": sum(signal) / max(1, len(trees)),
            "contrasts_per_kilotoken": per_kilotoken(sum(signal), trees),
        }

    def metrics(self) -> dict[str, float]:
        return self._metrics


def _where_it_left(leaf: Turn) -> Turn | None:
    """The last turn that a branch shares with an earlier episode; None for one that is first from the root's children on."""
    line = path(leaf)[1:]
    return next((above for above, turn in pairwise(line) if turn is not above.children[0]), None)


def _normalised(rewards: Mapping[Turn, float]) -> dict[Turn, float]:
    spread = deviation(list(rewards.values()))
    if not spread:
        return dict.fromkeys(rewards, 0.0)
    mean = float(np.mean(list(rewards.values())))
    return {leaf: (reward - mean) / (spread + EPSILON) for leaf, reward in rewards.items()}
