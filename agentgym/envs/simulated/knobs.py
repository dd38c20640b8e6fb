"""What a scalar difficulty means for a task: seven knobs, each with its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

LEAST, MOST = 1.0, 100.0  # of the difficulty
FREE = 0.5  # of the tasks: their knobs are drawn within what the difficulty allows
NUMBERS = {"tools": (1, 10), "calls": (1, 3), "turns": (1, 2), "strictness": (1, 5)}
KINDS = {
    "prompt": ("detailed", "brief", "none"),
    "persona": ("expert", "beginner", "novice"),
    "ambiguity": ("clear", "partial", "vague"),
}


@dataclass(frozen=True, slots=True)
class Knobs:
    """``tools`` offered, ``calls`` that the plan takes, ``turns`` of talk expected, ``strictness`` of the judge; kinds as in `KINDS`."""

    tools: int
    calls: int
    turns: int
    strictness: int
    prompt: str
    persona: str
    ambiguity: str


def knobs(difficulty: float, rng: Random) -> Knobs:
    """The knobs at a difficulty in [1, 100]; for half of the tasks each is drawn evenly from its least to that value.

    The seven knobs and that half are TRUSTEE's [S-2nd]; the mapping to numbers and to thirds is ours [R], as is that a plan has no
    more calls than there are tools.
    """
    free = rng.random() < FREE
    drawn: dict[str, Any] = {name: _drawn(low, value(low, high, difficulty), free, rng) for name, (low, high) in NUMBERS.items()}
    drawn |= {name: ways[_drawn(0, value(0, len(ways) - 1, difficulty), free, rng)] for name, ways in KINDS.items()}
    return Knobs(**{**drawn, "calls": min(drawn["calls"], drawn["tools"])})


def value(low: int, high: int, difficulty: float) -> int:
    """An integer knob at a difficulty: its range is cut into equal parts."""
    return min(high, low + int((high - low + 1) * (difficulty - LEAST) / MOST))


def _drawn(low: int, high: int, free: bool, rng: Random) -> int:
    return rng.randint(low, high) if free else high
