"""What a step of the loop counts, and means of what its parts say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agentgym.outcome import Outcome
from agentgym.trainers.seams import Metrics
from agentgym.turn import TurnTree, total_reward


def counts(forest: Sequence[TurnTree]) -> Metrics:
    """Episodes and what was spent on them. ``lost``: those without a verdict; what was given up on purpose is no episode."""
    leaves = [leaf for tree in forest for leaf in tree.leaves() if leaf.outcome is not Outcome.CANCELLED]
    acted = [turn for tree in forest for turn in tree.turns if turn.author != "env"]
    return {
        "lost": sum(leaf.reward is None for leaf in leaves),
        "episodes": len(leaves),
        "sampled_tokens": sum(turn.sampled_tokens for turn in acted),
        "rollout_turns": sum(turn.sampled_tokens and not turn.partial for turn in acted),
        "environment_steps": sum(turn.executed for turn in acted),
        "loop_steps": 1,
    }


def verdicts(part: Sequence[TurnTree]) -> int:
    """What the figures of a part's credit count: its episodes with a verdict, or one where there are none."""
    return sum(total_reward(leaf) is not None for tree in part for leaf in tree.leaves()) or 1


def means(weighted: Iterable[tuple[float, Metrics]]) -> Metrics:
    """Of each figure, over those that have it. One that is not a number counts only where no other is there."""
    found: dict[str, list[tuple[float, float]]] = {}
    for weight, metrics in weighted:
        for name, value in metrics.items():
            found.setdefault(name, []).append((weight, value))
    return {name: _mean([pair for pair in pairs if not math.isnan(pair[1])]) for name, pairs in found.items()}


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else math.nan
