"""InterCode's reward for bash: how alike two trees have changed, and how alike two outputs are.

Source: InterCode: Standardizing and Benchmarking Interactive Coding with Execution Feedback, arXiv 2306.14898 [S: its code].
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from agentgym.envs.bash.tree import Tree, changes

SHARE = 0.33  # of each of the three parts
_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class Score:
    """Each part is at most `SHARE`, rounded to two places."""

    paths: float  # the same places changed
    contents: float  # the new files that both have are equal
    output: float

    @property
    def total(self) -> float:
        return 0.01 + self.paths + self.contents + self.output  # in this order, in which three full parts are exactly 1


def score(before: Tree, after: Tree, output: str, gold_after: Tree, gold_output: str) -> Score:
    """Of a tree and output against those of the gold command, both from the tree ``before``."""
    found, wanted = set(changes(before, after)), set(changes(before, gold_after))
    paths = round(SHARE * (1 - math.erf(len(found ^ wanted))), 2)
    common = [change.path for change in found & wanted if change.code == "??"]
    same = sum(_content(after, path) == _content(gold_after, path) for path in common)
    contents = round(SHARE * same / len(common), 2) if common else SHARE
    return Score(paths, contents, round(SHARE * similarity(output, gold_output), 2))


def similarity(a: str, b: str) -> float:
    """The cosine of two texts by TF-IDF over the two of them: words of two letters or more in lower case, smooth weights.

    Where neither has such a word: 1 if they are equal, else 0.
    """
    counts = [Counter(_WORD.findall(text.lower())) for text in (a, b)]
    words = set().union(*counts)
    if not words:
        return float(a == b)
    weight = {word: 1 + math.log(3 / (1 + sum(word in count for count in counts))) for word in words}
    one, two = ([count[word] * weight[word] for word in sorted(words)] for count in counts)
    norm = math.hypot(*one) * math.hypot(*two)
    return sum(x * y for x, y in zip(one, two, strict=True)) / norm if norm else 0.0


def _content(tree: Tree, path: str) -> bytes | None:
    """As the official comparison sees it: what has no dot in its path, and what is no file, is never looked into."""
    entry = dict(tree).get(f"/{path}") if "." in path else None
    return entry.content if entry is not None else None
