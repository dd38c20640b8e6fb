"""Forked trees of tokens drawn at random, in the shapes that searches and groups have."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

# How many continuations each turn of a level has. Paths have 1.4 to 6 times as many tokens as the tree.
TREES = {
    "8 episodes of 4 turns, no forks": (8, 1, 1, 1),
    "2 episodes, forked twice": (2, 1, 2, 1, 2, 1),
    "1 episode, forked thrice": (1, 1, 2, 1, 2, 1, 2, 1),
    "4 episodes, all forked in two": (4, 2, 2, 2),
    "turn 4 continued 8 times": (1, 1, 1, 1, 8, 1),
    "turn 6 continued 16 times": (1, 1, 1, 1, 1, 1, 16),
}
PROMPT, ACTION, OBSERVATION = 120, 24, 40  # tokens, about those of the search environment


def grown(copies: Sequence[int], vocabulary: int, times: int = 1) -> TurnTree:
    """A tree whose every turn at level i has ``copies[i]`` continuations, with ``times`` as many tokens as the search environment's."""
    rng = random.Random(0)
    tree = TurnTree("tree", Task("task", ""))
    tips = [tree.add(_turn(rng, None, 0, times * PROMPT, vocabulary))]
    for count in copies:
        tips = [tree.add(_turn(rng, tip, times * ACTION, times * OBSERVATION, vocabulary)) for tip in tips for _ in range(count)]
    for tip in tips:
        tip.end = "done"
    return tree


def _turn(rng: random.Random, parent: Turn | None, sampled: int, said: int, vocabulary: int) -> Turn:
    ids = [rng.randrange(vocabulary) for _ in range(sampled + said)]
    trained = (np.arange(len(ids)) < sampled).astype(np.float64)
    streams = {"trained": trained, "weight": trained / 1000}
    return Turn(0, parent, "policy" if parent else "env", 0, ids, sampled, [-3.0] * sampled, streams=streams)
