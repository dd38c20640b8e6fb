"""When two states are the same: callables from the state keys of one task to the number of each key's cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from agentgym.errors import AgentGymError

Match = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Exact:
    """Equal keys."""

    def __call__(self, keys: Sequence[str]) -> list[int]:
        numbers: dict[str, int] = {}
        return [numbers.setdefault(key, len(numbers)) for key in keys]


@dataclass(frozen=True)
class Normalised:
    """Equal but for case, white space and what matches ``ignore``, such as clocks and turn counters. ``match`` compares the rest."""

    ignore: str = r"\d+(:\d+)+|\b(step|turn) \d+\b"
    match: Match = Exact()

    def __call__(self, keys: Sequence[str]) -> list[int]:
        ignored = re.compile(self.ignore, re.IGNORECASE)
        plain = {key: " ".join(ignored.sub(" ", key).casefold().split()) for key in dict.fromkeys(keys)}
        return self.match([plain[key] for key in keys])


@dataclass(frozen=True)
class Similar:
    """First fit: the first cluster whose first key has a `difflib` ratio of ``threshold`` or more with it, else a new one.

    The time grows with the square of the number of different keys of one task. Source: GiGPO, arXiv 2505.10978: 0.95 [S-code];
    the paper says more than 0.9 [S2].
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise AgentGymError(f"threshold is {self.threshold}: a ratio of likeness must lie above 0, and be 1 at most")

    def __call__(self, keys: Sequence[str]) -> list[int]:
        numbers: dict[str, int] = {}
        firsts: list[str] = []
        for key in dict.fromkeys(keys):
            fit = next((number for number, first in enumerate(firsts) if self._alike(first, key)), len(firsts))
            if fit == len(firsts):
                firsts.append(key)
            numbers[key] = fit
        return [numbers[key] for key in keys]

    def _alike(self, one: str, other: str) -> bool:
        matcher = SequenceMatcher(None, one, other)
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # the cheap ones are never below the true one
        return all(ratio() >= self.threshold for ratio in bounds)
