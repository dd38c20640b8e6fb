"""How alike two results are, by InterCode's metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

Rows = Sequence[tuple[Any, ...]]


def alike(rows: Rows, expected: Rows, ordered: bool = False) -> float:
    """Rows in common over rows in either, as multisets of their texts; 1 for two empty results.

    ``ordered``: times Kendall's tau of the order of the common rows, where there are two of them or more, and 0 where it is negative.
    InterCode (arXiv 2306.14898) has such a factor in its paper and source [S], but none of its recorded rewards shows it: see
    docs/environments/sql.md. Its source pairs the texts by place and rounds to 2 digits; here ranks are paired [R].
    """
    found, wanted = Counter(map(str, rows)), Counter(map(str, expected))
    either = (found | wanted).total()
    share = (found & wanted).total() / either if either else 1.0
    return share * max(0.0, _tau(list(map(str, rows)), list(map(str, expected)))) if ordered else share


def _tau(texts: Sequence[str], expected: Sequence[str]) -> float:
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    places = [first[text] for text in dict.fromkeys(expected) if text in first]
    pairs = list(combinations(places, 2))
    return sum(1 if later > earlier else -1 for earlier, later in pairs) / len(pairs) if pairs else 1.0
