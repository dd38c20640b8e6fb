"""Streams over single tokens: advantages, and which tokens train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Bools, Floats
from agentgym.trainers.credit.verdicts import alike
from agentgym.turn import Turn, TurnTree, path


def whitened(values: Floats) -> Floats:
    """``(value - mean) / sqrt(var + 1e-8)`` with the sample variance (n - 1), shape (N,). Equal values, up to rounding, give 0."""
    if alike(values):
        return np.zeros(len(values))
    found: Floats = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    return found


def whitened_together(parts: Mapping[Turn, Floats]) -> dict[Turn, Floats]:
    """`whitened` over the values of all turns, each turn once however many episodes share it [R]."""
    values = whitened(np.concatenate([np.zeros(0), *parts.values()]))
    return dict(zip(parts, np.split(values, np.cumsum([len(part) for part in parts.values()])[:-1]), strict=True)) if parts else {}


def mean_through(leaves: Sequence[Turn], values: Sequence[Floats]) -> dict[Turn, Floats]:
    """The mean over the episodes through each turn, at its sampled tokens, of one array for each episode."""
    through: dict[Turn, list[Floats]] = {}
    for leaf, own in zip(leaves, values, strict=True):
        turns = path(leaf)
        for turn, part in zip(turns, np.split(own, np.cumsum([turn.sampled_tokens for turn in turns])[:-1]), strict=True):
            through.setdefault(turn, []).append(part)
    return {turn: np.mean(parts, axis=0) for turn, parts in through.items()}


def write_tokens(trees: Sequence[TurnTree], stream: str, parts: Mapping[Turn, Floats]) -> None:
    """A stream with ``parts`` on the sampled tokens of their turns, one value for all or one for each; 0 elsewhere."""
    for tree in trees:
        for turn in tree.turns:
            turn.streams[stream] = np.zeros(len(turn.ids))
            if turn in parts:
                turn.streams[stream][: turn.sampled_tokens] = parts[turn]


def checked_window(window: int | None) -> int | None:
    if window is not None and window < 1:
        raise AgentGymError(f"window is {window}: train one token of each episode at least, or null for all")
    return window


def mark_sampled(trees: Sequence[TurnTree], window: int | None = None) -> None:
    """Write ``trained``: 1 on sampled tokens, of each episode the first ``window``; a turn that failed has none."""
    for tree in trees:
        before = np.zeros(len(tree.turns), dtype=np.int64)  # sampled tokens above each turn
        for turn in tree.turns:
            if turn.parent is not None:
                before[turn.index] = before[turn.parent.index] + turn.parent.sampled_tokens
            sampled = turn.sampled & (turn.end != "error")
            within = True if window is None else before[turn.index] + np.cumsum(sampled) <= window
            turn.streams["trained"] = (sampled & within).astype(np.float64)


def drawn_by(turn: Turn, version: int) -> Bools:
    """Which of a turn's tokens the weights of that version drew; shape (T,)."""
    found = np.zeros(len(turn.ids), dtype=bool)
    versions = np.repeat([drawer for drawer, _ in turn.versions], [count for _, count in turn.versions])[: turn.sampled_tokens]
    found[: len(versions)] = versions == version
    return found
