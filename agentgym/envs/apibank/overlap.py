"""ROUGE-L: how much of a sentence's course another has."""

from __future__ import annotations


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of two texts over their words, as they are parted by spaces; 0 where one is empty.

    Source: ROUGE (Lin 2004), with precision and recall of equal weight.
    """
    wanted, given = reference.split(), text.split()
    if not wanted or not given:
        return 0.0
    return 2 * _common(wanted, given) / (len(wanted) + len(given))


def _common(first: list[str], second: list[str]) -> int:
    longest = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, longest[place] = longest[place], diagonal + 1 if word == other else max(longest[place], longest[place - 1])
    return longest[-1]
