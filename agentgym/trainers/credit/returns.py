"""What comes after each token of a tree; where episodes part, the mean over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agentgym.pack import Floats
from agentgym.turn import Turn, TurnTree


def to_go(tree: TurnTree, rewards: Mapping[Turn, Floats], discount: float, turn_discount: float) -> dict[Turn, Floats]:
    """Rewards of tokens from each on, discounted at every position and again where a turn ends; shapes as ``rewards``.

    Where episodes part, the mean over those below; labels and turns that failed are no part of it.
    """
    ahead = np.zeros((len(tree.turns), 2))  # of the episodes below each turn: their number, and the sum of their returns
    found = {}
    for turn in reversed(tree.turns):
        episodes, total = ahead[turn.index]
        value = float(total / episodes) if episodes else 0.0
        if turn.sampled_tokens and not turn.partial:
            value *= turn_discount
        own = np.zeros(len(turn.ids))
        for place in reversed(range(len(own))):
            own[place] = value = rewards[turn][place] + discount * value
        found[turn] = own
        if turn.parent is not None and turn.end != "error" and (turn.executed or turn.partial):
            ahead[turn.parent.index] += max(1, episodes) * np.array([1.0, value])
    return found
