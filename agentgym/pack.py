"""Forests packed into flat arrays, each unique token once: a shared prefix is computed once, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentgym.turn import Turn, TurnTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Packed:
    """T tokens of a forest in depth-first order; every array has shape (T,), a stream (T, k) where it has k values for each.

    Query q sees key k iff ``k <= q < end[k]``. A token's position is its ``depth``. Its logits stand at ``parent``, which
    is -1 at a root: siblings share one predicting place, so labels are not a shift by one.
    """

    token: Ints
    parent: Ints
    depth: Ints
    end: Ints
    sampled: Bools
    logprobs: Floats  # under the behaviour policy; 0 where not sampled
    turn: Ints  # index into ``turns``
    turns: Sequence[Turn]
    streams: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.token)


def pack(trees: Sequence[TurnTree], max_tokens: int) -> list[Packed]:
    """Fill packs of at most ``max_tokens``, in order. Only an episode that is longer by itself makes a larger pack.

    A tree that does not fit is cut between its episodes. The turns that they share are context in each piece, but have their
    streams in the first alone: however a forest is cut, the sums over its packs are the same.
    """
    packs: list[list[Turn]] = []
    carriers: dict[Turn, int] = {}
    room = 0
    for turns in (piece for tree in trees for piece in _pieces(tree, max_tokens) if any(turn.ids for turn in piece)):
        size = sum(len(turn.ids) for turn in turns)
        if not packs or size > room:
            packs.append([])
            room = max_tokens
        packs[-1].extend(turns)
        room -= size
        for turn in turns:
            carriers.setdefault(turn, len(packs) - 1)
    return [pack_turns(turns, {turn for turn in turns if carriers[turn] == number}) for number, turns in enumerate(packs)]


def _pieces(tree: TurnTree, max_tokens: int) -> list[list[Turn]]:
    """Whole lines from a root to a tip, in depth-first order, as many to a piece as fit."""
    pieces: list[dict[Turn, None]] = [{}]
    room = max_tokens
    for line in contexts(tree):
        size = sum(len(node.ids) for node in line if node not in pieces[-1])
        if pieces[-1] and size > room:
            pieces.append({})
            size, room = sum(len(node.ids) for node in line), max_tokens
        pieces[-1].update(dict.fromkeys(line))
        room -= size
    return [list(piece) for piece in pieces]


def contexts(tree: TurnTree) -> Iterator[list[Turn]]:
    """The turns of each context that nothing goes on from, from its root on."""
    return (_line(turn) for turn in _in_order(tree) if all(child.restarts for child in turn.children))


def _line(turn: Turn) -> list[Turn]:
    """The turns of one context, from its root to ``turn``."""
    line = [turn]
    while not line[-1].restarts and line[-1].parent is not None:
        line.append(line[-1].parent)
    return line[::-1]


def pack_turns(turns: Sequence[Turn], carried: set[Turn]) -> Packed:
    """One pack of ``turns``, parents before children. Those that are not ``carried`` are context, without streams."""
    sizes = np.array([len(turn.ids) for turn in turns], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    total = int(starts[-1])
    place = {turn: number for number, turn in enumerate(turns)}
    parent = np.arange(-1, total - 1, dtype=np.int64)
    depth = np.zeros(total, dtype=np.int64)
    end = np.zeros(total, dtype=np.int64)
    for number, turn in enumerate(turns):
        first, last = starts[number], starts[number + 1]
        before = _tail(turn, place, starts)
        if last > first:
            parent[first] = before
            depth[first:last] = (depth[before] + 1 if before >= 0 else 0) + np.arange(last - first)
    until = starts[1:].copy()  # where the subtree of each turn ends
    for number in reversed(range(len(turns))):
        below = [place[child] for child in turns[number].children if not child.restarts and child in place]
        if below:
            until[number] = until[below[-1]]
        end[starts[number] : starts[number + 1]] = until[number]
    widths = {name: np.shape(stream)[1:] for turn in turns for name, stream in turn.streams.items()}
    return Packed(
        token=np.concatenate([np.asarray(turn.ids, dtype=np.int64) for turn in turns]),
        parent=parent,
        depth=depth,
        end=end,
        sampled=np.concatenate([turn.sampled for turn in turns]),
        logprobs=np.concatenate([behaviour(turn) for turn in turns]),
        turn=np.repeat(np.arange(len(turns)), sizes),
        turns=turns,
        streams={name: np.concatenate([_stream(t, name, t in carried, widths[name]) for t in turns]) for name in sorted(widths)},
    )


def _in_order(tree: TurnTree) -> Iterator[Turn]:
    """Depth first, children in commit order; each context that a template began anew comes after, as a root of its own."""
    roots = [tree.root]
    while roots:
        stack = [roots.pop(0)]
        while stack:
            turn = stack.pop()
            yield turn
            roots.extend(child for child in turn.children if child.restarts)
            stack.extend(child for child in reversed(turn.children) if not child.restarts)


def _tail(turn: Turn, place: dict[Turn, int], starts: Ints) -> int:
    """Where the last token before ``turn`` stands, -1 at a root."""
    node = turn
    while not node.restarts and node.parent is not None:
        node = node.parent
        if node.ids:
            return int(starts[place[node] + 1]) - 1
    return -1


def behaviour(turn: Turn) -> Floats:
    """The behaviour policy's log-probabilities, shape (len(ids),); 0 where it did not sample."""
    logprobs = np.zeros(len(turn.ids))
    logprobs[: turn.sampled_tokens] = turn.logprobs
    return logprobs


def _stream(turn: Turn, name: str, carried: bool, width: tuple[int, ...]) -> Floats:
    found = turn.streams.get(name) if carried else None
    return np.zeros((len(turn.ids), *width)) if found is None else np.asarray(found, dtype=np.float64)
