"""Windows over episodes: what they are counted in, how long they may be, and which token lies in which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Extend
from agentgym.pack import Ints
from agentgym.rollout import episode
from agentgym.turn import Turn, TurnTree, path


class Windows(Protocol):
    """What a window is counted in, and the lengths that it may have, shortest first."""

    candidates: Sequence[int]

    def count(self, turn: Turn) -> int:
        """How much of it the policy has written up to and with ``turn``."""

    def extend(self, tree: TurnTree, turn: Turn, left: int, n: int) -> Extend:
        """The next part of an episode that may have ``left`` more."""


class Tokens:
    """Windows in sampled tokens: an action is cut where the window ends. Candidates: ADWIN's [S2]."""

    def __init__(self, candidates: Sequence[int] = (64, 128, 256, 512, 1024, 2048)) -> None:
        self.candidates = _rising(candidates)

    def count(self, turn: Turn) -> int:
        return sum(above.sampled_tokens for above in path(turn))

    def extend(self, tree: TurnTree, turn: Turn, left: int, n: int) -> Extend:
        return Extend(tree, turn, n, max_tokens=left, segment=True)


class Turns:
    """Windows in whole turns, for agents [R]."""

    def __init__(self, candidates: Sequence[int] = (1, 2, 3, 5, 8, 12)) -> None:
        self.candidates = _rising(candidates)

    def count(self, turn: Turn) -> int:
        return len(episode(turn))

    def extend(self, tree: TurnTree, turn: Turn, left: int, n: int) -> Extend:
        return Extend(tree, turn, n)


def _rising(candidates: Sequence[int]) -> tuple[int, ...]:
    if not candidates or candidates[0] < 1 or any(one >= other for one, other in pairwise(candidates)):
        raise AgentGymError(f"windows must be given shortest first, each 1 at least, not {list(candidates)}")
    return tuple(candidates)


def places(tree: TurnTree, turn: Turn) -> Ints:
    """The least window that holds each token of a turn, in its tree's unit, shape (len(ids),); what was not sampled goes with what was."""
    if "counts" not in tree.tags.get("window", {}):
        raise AgentGymError(
            f"task {tree.task.id}: tree {tree.id} was not played in a window: give the training agentgym.trainers.expanders.adwin:ADWIN"
        )
    counts = tree.tags["window"]["counts"]
    before = counts[turn.parent.index] if turn.parent is not None else 0
    sampled = np.cumsum(turn.sampled) if turn.sampled_tokens else np.ones(len(turn.ids), dtype=np.int64)
    found: Ints = before - (before - counts[turn.index]) * sampled // sampled[-1:]
    return found
