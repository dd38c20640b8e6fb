"""The behaviour policy's entropy where it begins to answer, and how much higher it is than at the start of the episode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Extend
from agentgym.pack import Floats
from agentgym.turn import Turn, TurnTree, path

FIRST = 20  # sampled tokens of a turn
PUBLISHED_VOCABULARY = 151_936  # tokens; thresholds and weights were published for entropies as a share of its logarithm


def opening_entropy(turn: Turn, vocabulary: int = PUBLISHED_VOCABULARY) -> float:
    """Mean over a turn's first 20 sampled tokens, as a share of the entropy of ``vocabulary`` equally likely tokens."""
    return float(np.mean(known(turn)[:FIRST])) / math.log(vocabulary)


def entropy_rise(turn: Turn, vocabulary: int = PUBLISHED_VOCABULARY) -> float:
    """The opening entropy of the last action up to ``turn``, less that of the episode's first."""
    acted = [node for node in path(turn)[1:] if not node.restarts]
    return opening_entropy(acted[-1], vocabulary) - opening_entropy(acted[0], vocabulary)


def known(turn: Turn) -> Sequence[float]:
    """The entropies of a turn's sampled tokens, in nats. Raises `AgentGymError` where the actor gave none."""
    if not turn.entropies or len(turn.entropies) != turn.sampled_tokens:
        raise AgentGymError(
            f"actor {turn.author!r} gave {len(turn.entropies)} entropies for the {turn.sampled_tokens} sampled tokens of {turn!r}: "
            "to branch by entropy, play with an actor that fills Generation.entropies, such as the embedded policy"
        )
    return turn.entropies


def beam(tree: TurnTree, going_on: Iterable[tuple[Turn, bool]], budget: int, width: int) -> list[Extend]:
    """Continue each turn, up to ``width`` times where it branches, until ``budget`` episodes have begun.

    While fewer have begun and none goes on, one more begins at the root.
    """
    commands = [(turn, branches) for turn, branches in going_on]
    free = budget - len(tree.leaves()) - len(commands)
    if not commands:
        return [Extend(tree, tree.root)] if free > 0 else []
    extended = []
    for turn, branches in commands:
        more = min(width - 1, free) if branches else 0
        free -= more
        extended.append(Extend(tree, turn, 1 + more))
    return extended


def standard(values: Floats) -> Floats:
    """Standard scores with the population deviation; exactly 0 for values that are equal up to rounding."""
    values = np.asarray(values, dtype=np.float64)
    if np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros(len(values))
    scores: Floats = (values - values.mean()) / values.std()
    return scores
