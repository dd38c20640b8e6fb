"""What the policy tries at demonstrated turns, and what was found of it, noted on the turns for whoever plans next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from agentgym.pack import Floats
from agentgym.policy import Prompt
from agentgym.trainers.demonstrations import demonstrated
from agentgym.turn import Turn, TurnTree

EQUIVALENT, PIVOT = "equivalent", "pivot"  # what is noted among the metrics of a tried and of a demonstrated turn


def tried(trees: Sequence[TurnTree]) -> list[tuple[Turn, list[Turn], bool]]:
    """The demonstrated turns, the policy's tries at each that no fault ended, and whether it is known as a pivot.

    Of turns in the same context, the first.
    """
    found: dict[bytes, tuple[Turn, list[Turn], bool]] = {}
    for tree in trees:
        for turn in demonstrated(tree):
            assert turn.parent is not None
            tries = [one for one in turn.parent.children if one.author == "policy" and one.end != "error"]
            if tries:
                messages = orjson.dumps(Prompt(tree, turn.parent).messages, default=str)
                found.setdefault(messages, (turn, tries, "pivots" in tree.tags))
    return list(found.values())


def is_cut_off(turn: Turn, stops: frozenset[int] | None) -> bool:
    """Whether the policy was stopped before it had ended its action."""
    return stops is not None and turn.sampled_tokens > 0 and turn.ids[turn.action_tokens - 1] not in stops


def equivalents(turn: Turn) -> Floats:
    """The rewards of the tries at a demonstrated turn, as a credit noted them; empty where it did not."""
    siblings = turn.parent.children if turn.parent is not None else ()
    return np.array([one.metrics[EQUIVALENT] for one in siblings if EQUIVALENT in one.metrics], dtype=np.float64)
