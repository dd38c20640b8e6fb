"""How like two values are, and how many of several can be matched with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def like(expected: Any, actual: Any, similar: Callable[[str, str], bool]) -> bool:
    """Whether JSON values are equal in type and form, floats up to 1e-6, and their texts ``similar``."""
    if type(expected) is not type(actual):
        return False
    match expected:
        case dict():
            return expected.keys() == actual.keys() and all(like(value, actual[key], similar) for key, value in expected.items())
        case list():
            return len(expected) == len(actual) and all(like(*pair, similar) for pair in zip(expected, actual, strict=True))
        case float():
            return bool(abs(expected - actual) < 1e-6)
        case str():
            return similar(expected, actual)
        case _:
            return bool(expected == actual)


def similarity(expected: str, actual: str) -> float:
    """Words in common over the words of both, from 0 to 0.5, whatever their order and case [S-code]."""
    one, other = Counter(expected.lower().split()), Counter(actual.lower().split())
    return (one & other).total() / max(1, one.total() + other.total())


def most_matches(candidates: Sequence[Sequence[int]]) -> int:
    """How many rows can each have one of their candidates, no two the same: a maximum matching, by augmenting paths."""
    row_of: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for candidate in candidates[row]:
            if candidate not in seen:
                seen.add(candidate)
                if candidate not in row_of or place(row_of[candidate], seen):
                    row_of[candidate] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(candidates)))
