"""Two ways on from one place, compared token by token: whether they are two, and whether they stay so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agentgym.turn import Turn


class Line:
    """What was sampled from a turn on, along first children; ``seen`` of its tokens were there before the last round."""

    def __init__(self, first: Turn) -> None:
        nodes = [first]
        while nodes[-1].children:
            nodes.append(nodes[-1].children[0])
        self.tip = nodes[-1]
        acted = [turn for turn in nodes if turn.author != "env"]
        self.tokens = [token for turn in acted for token in turn.ids[: turn.sampled_tokens]]
        self.logprobs = [logprob for turn in acted for logprob in turn.logprobs]
        self.seen = len(self.tokens) - acted[-1].sampled_tokens

    @property
    def goes_on(self) -> bool:
        return self.tip.end is None

    def overlap(self, other: Line) -> int:
        return min(len(self.tokens), len(other.tokens))

    def new(self, other: Line) -> range:
        """The places that both have since the last round."""
        return range(min(self.seen, other.seen), self.overlap(other))

    def leaves(self, other: Line) -> int | None:
        """Where they first differ."""
        return next((place for place in range(self.overlap(other)) if self.tokens[place] != other.tokens[place]), None)


@dataclass(frozen=True)
class Lookahead:
    """When a fork is worth a place. ``lengths`` in tokens, rising; ``distance`` in edits for each token."""

    lengths: Sequence[int] = (20, 30, 50)
    absolute: float = 0.25
    relative: float = 0.15
    distance: float = 0.4

    def may_fork(self, turn: Turn) -> bool:
        """Whether beside one of its tokens there may be another that is likely enough."""
        return any(math.exp(logprob) < min(1 - self.absolute, (1 + self.relative) / 2) for logprob in turn.logprobs)

    def gives_up(self, fork: Line, before: Line) -> bool:
        """For what both have written since the last round."""
        new, left = fork.new(before), fork.leaves(before)
        if left is not None and left in new:
            ways = math.exp(fork.logprobs[left]), math.exp(before.logprobs[left])
            if not uncertain(*ways, self.absolute, self.relative):
                return True
        due = [n for n in self.lengths if n - 1 in new]
        return any(edit_distance(fork.tokens[:n], before.tokens[:n]) < self.distance * n for n in due)

    def is_over(self, fork: Line, before: Line) -> bool:
        return fork.overlap(before) >= self.lengths[-1]


def uncertain(one: float, other: float, absolute: float = 0.25, relative: float = 0.15) -> bool:
    """Whether two ways with these probabilities make a fork: the less likely above ``absolute``, and ``relative`` near."""
    return min(one, other) > absolute and abs(one - other) < relative


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Insertions, deletions and substitutions that make one of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, token in enumerate(one, start=1):
        diagonal, row[0] = row[0], place
        for column, against in enumerate(other, start=1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (token != against))
    return row[-1]
