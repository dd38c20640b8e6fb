"""How a batch of trees is laid out for the learner. All give the same gradient where an objective couples no tokens."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentgym.pack import Packed, contexts, pack, pack_turns
from agentgym.turn import TurnTree

Packing = Callable[[Sequence[TurnTree]], list[Packed]]


@dataclass(frozen=True, slots=True)
class ByTree:
    """Each unique turn once, in packs of at most ``max_tokens``: see `pack`."""

    max_tokens: int = 4096

    def __call__(self, trees: Sequence[TurnTree]) -> list[Packed]:
        return pack(trees, self.max_tokens)


@dataclass(frozen=True, slots=True)
class ByWholeTree:
    """Whole trees to a pack, for objectives that couple an episode's tokens; one that is longer by itself makes a larger pack."""

    max_tokens: int = 4096

    def __call__(self, trees: Sequence[TurnTree]) -> list[Packed]:
        parts: list[list[TurnTree]] = []
        room = 0
        for tree in trees:
            size = sum(len(turn.ids) for turn in tree.turns)
            if not parts or size > room:
                parts.append([])
                room = self.max_tokens
            parts[-1].append(tree)
            room -= size
        return [packed for part in parts for packed in pack(part, sys.maxsize)]


@dataclass(frozen=True, slots=True)
class ByPath:
    """Each episode and each label in a pack of its own, as in trainers that know no trees, at their cost.

    The weight of a shared turn is divided among the packs that hold it.
    """

    def __call__(self, trees: Sequence[TurnTree]) -> list[Packed]:
        lines = [line for tree in trees for line in contexts(tree)]
        holders = Counter(turn for line in lines for turn in line)
        packs = [pack_turns(line, set(line)) for line in lines]
        for packed in packs:
            if "weight" in packed.streams:
                packed.streams["weight"] /= np.array([holders[turn] for turn in packed.turns])[packed.turn]
        return packs
