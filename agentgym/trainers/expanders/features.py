"""What predictors of success read of a prefix, words and a few counts, and what they learn of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from agentgym.outcome import Outcome
from agentgym.policy import Prompt
from agentgym.rollout import episode
from agentgym.trainers.expanders.allocation import Floats
from agentgym.trainers.expanders.value import prefixes, rewards_through
from agentgym.turn import TurnTree

WORD = re.compile(r"\w+")
SCALARS = 5
WINDOW = 3  # turns
COMMON, LEAST = 0.01, 3  # a word counts once so many trees have had it: this share of them, and this number


class CommonWords(nn.Module):
    """Leaves out the words that few trees have had [R].

    They are names, which a network would learn by heart and which say nothing about the next task.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.counts: Tensor
        self.trees: Tensor
        self.register_buffer("counts", torch.zeros(2 * words))
        self.register_buffer("trees", torch.zeros(()))

    def learn(self, features: Tensor, anchors: Sequence[Prompt]) -> None:
        names = [anchor.tree.id for anchor in anchors]
        for tree in set(names):
            self.trees += 1
            self.counts += (features[[name == tree for name in names], :-SCALARS] > 0).any(0)

    def forward(self, features: Tensor) -> Tensor:
        common = self.counts >= torch.clamp(COMMON * self.trees, min=LEAST)
        return torch.cat([features[:, :-SCALARS] * common, features[:, -SCALARS:]], 1)


def tree_targets(trees: Sequence[TurnTree]) -> tuple[list[Prompt], list[float], list[float]]:
    """The anchors that were judged, the mean reward of the episodes through each, and their number [S2]."""
    anchors, targets, weights = [], [], []
    for tree in trees:
        through = rewards_through(tree)
        for turn in [turn for turn in (tree.root, *prefixes(through)) if turn in through]:
            anchors.append(Prompt(tree, turn))
            targets.append(float(np.mean(through[turn])))
            weights.append(float(len(through[turn])))
    return anchors, targets, weights


def prefix_features(anchor: Prompt, total: float, visits: int, words: int) -> Floats:
    """Shape (2 words + 5,). ``total`` and ``visits``: the sum of rewards and the number of the task's rollouts so far."""
    acted = episode(anchor.turn)
    recent = "\n".join(f"{turn.action}\n{turn.observation}" for turn in acted[-WINDOW:])
    scalars = [
        math.log1p(len(acted)),  # the most turns that an episode may have are not known here
        math.log1p(anchor.length) / 8,
        float(bool(acted) and acted[-1].outcome is not Outcome.OK),
        total / visits if visits else 0.5,
        math.log1p(visits) / 4,
    ]
    return np.concatenate([hashed_words(anchor.tree.task.prompt, words), hashed_words(recent, words), scalars])


def stacked(rows: Sequence[Floats], words: int) -> Tensor:
    """Features of A anchors, shape (A, 2 words + 5), in float32."""
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), 2 * words + SCALARS))


def hashed_words(text: str, size: int) -> Floats:
    """A bag of words as a vector of shape (size,) with mean square 1, so that few steps learn from it; 0 without words."""
    counts = np.zeros(size)
    for word in WORD.findall(text.lower()):
        counts[_place(word) % size] += 1
    return np.sqrt(counts * (size / max(1.0, float(counts.sum()))))


@lru_cache(maxsize=2**16)
def _place(word: str) -> int:
    return crc32(word.encode())
