"""What a loss is divided by. Each function writes the stream ``weight``, so that the objective's sum is the loss.

Weight falls on the stream ``trained`` where credit wrote it; else on the sampled tokens of turns that lie on an episode with a
verdict, each unique turn once however many episodes share it: labels lie on no episode. Names and worked numbers:
``loss_agg_mode`` of verl [S-code].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.turn import Stream, Turn, TurnTree, path, total_reward

Divisor = Callable[[Sequence[TurnTree]], None]


def token_mean(trees: Sequence[TurnTree]) -> None:
    """Every trained token of the batch counts the same (DAPO, arXiv 2503.14476)."""
    total = sum(mask.sum() for mask in _masks(trees).values())
    _write(trees, lambda turn, mask: mask / total)


def turn_mean(trees: Sequence[TurnTree]) -> None:
    """Every trained turn counts the same, and so does every token within it."""
    turns = len(_masks(trees))
    _write(trees, lambda turn, mask: mask / (turns * mask.sum()))


def sequence_mean(trees: Sequence[TurnTree]) -> None:
    """Every episode counts the same, and so does every token within it (GRPO, arXiv 2402.03300).

    A turn that several episodes share carries the sum of its weights in them.
    """
    masks = _masks(trees)
    episodes = [path(tip) for tree in trees for tip in _tips(tree)]
    share: dict[Turn, float] = {}
    sizes = [sum(float(masks[turn].sum()) for turn in turns if turn in masks) for turns in episodes]
    counted = sum(size > 0 for size in sizes)
    for turns, size in zip(episodes, sizes, strict=True):
        for turn in turns:
            if turn in masks:
                share[turn] = share.get(turn, 0.0) + 1 / (counted * size)
    _write(trees, lambda turn, mask: mask * share[turn])


@dataclass(frozen=True)
class Constant:
    """A fixed divisor, as in Dr.GRPO (arXiv 2503.20783), so that long episodes are not favoured or punished."""

    divisor: float
    apart: ClassVar[bool] = True  # a tree's weights hang on no other tree

    def __post_init__(self) -> None:
        if not (math.isfinite(self.divisor) and self.divisor > 0):
            raise AgentGymError(f"divisor is {self.divisor}: it must be finite and above 0")

    def __call__(self, trees: Sequence[TurnTree]) -> None:
        _write(trees, lambda turn, mask: mask / self.divisor)


def _masks(trees: Sequence[TurnTree]) -> dict[Turn, Stream]:
    """How much each token counts, for each turn that has any that do."""
    masks: dict[Turn, Stream] = {}
    for tree in trees:
        for turn in (turn for tip in _tips(tree) for turn in path(tip)):
            mask = turn.streams["trained"] if "trained" in turn.streams else turn.sampled.astype(np.float64)
            if mask.any():
                masks[turn] = mask
    return masks


def _tips(tree: TurnTree) -> list[Turn]:
    """Where the lines end that train: all of them, labels too, where credit says which of their tokens do."""
    if "trained" in tree.root.streams:
        return [turn for turn in tree.turns if not turn.children]
    return [leaf for leaf in tree.leaves() if total_reward(leaf) is not None]


def _write(trees: Sequence[TurnTree], weigh: Callable[[Turn, Stream], Stream]) -> None:
    masks = _masks(trees)
    for tree in trees:
        for turn in tree.turns:
            turn.streams["weight"] = weigh(turn, masks[turn]) if turn in masks else np.zeros(len(turn.ids))
