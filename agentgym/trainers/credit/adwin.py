"""ADWIN's audit: which window has a gradient that points where that of whole episodes does, and nothing beyond it trains."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Ints, pack
from agentgym.trainers.credit.streams import Around, written
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.seams import Credit, Learner, Objective
from agentgym.turn import Turn, TurnTree, path

ROUNDING = 1e-12  # of the sum of all inner products: a gradient below it is none


class ADWIN(Around):
    """``credit``, with nothing trained beyond the window in which `agentgym.trainers.expanders.adwin.ADWIN` played.

    On the probes, by their trees' tag ``window``: one gradient of ``objective`` for the trained tokens between each two candidates, as
    sums over tokens; then the cosine between each window's gradient and that of whole episodes. The window ``next`` in force, written
    into that tag, is the shortest candidate with a cosine of at least ``rho``, else the longest [R]. At sqrt(1/2) a window's direction
    is worth half of the best one's gain, its signal to noise ratio 1. A probe that ended in an error is not audited [R].

    ``credit`` writes ``trained`` and what ``objective`` needs, on tokens beyond the window too. Given up episodes have no outcome: this
    is for distillation. Source: ADWIN, arXiv 2605.28396 [S2]; cosines from inner products of buckets, in the plain metric [R].

    Metrics: those of ``credit``; ``cosine_<candidate>`` and ``window_next``, after an audit; ``probe_tokens``, sampled beyond the
    window (among ``sampled_tokens`` already); ``audit_tokens``, which went forward and backward through the learner for the audit.
    """

    gradients = True

    def __init__(self, credit: Credit, rho: float = 0.5**0.5, objective: Objective | None = None, max_tokens: int = 4096) -> None:
        if "trained" not in written(credit):
            raise AgentGymError(
                f"{type(credit).__name__} does not say which tokens train, and an episode that a window cuts has no verdict to say it: "
                "ADWIN needs a credit that writes trained"
            )
        super().__init__(credit)
        self.rho, self.max_tokens = rho, max_tokens
        self.objective: Objective = objective or ClippedSurrogate()

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        played = [tree for tree in trees if tree.root.end is None]
        self._metrics = self._audit(played, models["learner"])
        beyond = 0
        for tree in played:
            for turn in tree.turns:
                inside = places(tree, turn) <= tree.tags["window"]["length"]
                beyond += int(sum(turn.sampled & ~inside))
                for name in {"advantage", "trained"} & turn.streams.keys():
                    turn.streams[name] = turn.streams[name] * inside
        self._metrics["probe_tokens"] = beyond

    def _audit(self, trees: Sequence[TurnTree], learner: Learner) -> dict[str, float]:
        probed = {tree: turns for tree in trees if (turns := _audited(tree))}
        if not probed:
            return {}
        candidates = next(iter(probed)).tags["window"]["candidates"]
        gradients, tokens = bucket_gradients(probed, candidates, learner, self.objective, self.max_tokens)
        found = cosines(np.array([[float(one.double() @ other.double()) for other in gradients] for one in gradients]))
        window = next_window(candidates, found, self.rho)
        for tree in probed:
            tree.tags["window"]["next"] = window
        named = {f"cosine_{candidate}": cosine for candidate, cosine in zip(candidates, found, strict=True)}
        return {**named, "window_next": window, "audit_tokens": tokens}


def bucket_gradients(
    probed: Mapping[TurnTree, Collection[Turn]], candidates: Sequence[int], learner: Learner, objective: Objective, max_tokens: int
) -> tuple[list[Tensor], int]:
    """One flat gradient for the trained tokens of ``probed`` up to each candidate and one for the rest, and the tokens computed for them.

    They add up to the gradient of all those tokens: the divisor is one for all buckets.
    """
    for tree, turns in probed.items():
        for turn in tree.turns:
            bucket = np.searchsorted(candidates, places(tree, turn)) if turn in turns else np.full(len(turn.ids), -1)
            turn.streams["bucket"] = bucket.astype(np.float64)
    packs = pack(list(probed), max_tokens)
    total = sum(packed.streams["trained"][packed.streams["bucket"] >= 0].sum() for packed in packs)
    gradients, tokens = [], 0
    for number in range(len(candidates) + 1):
        for packed in packs:
            packed.streams["weight"] = packed.streams["trained"] * (packed.streams["bucket"] == number) / (total or 1.0)
            tokens += len(packed) * bool(packed.streams["weight"].any())
        gradients.append(learner.gradient(packs, objective))
    return gradients, tokens


def cosines(inner: Floats) -> list[float]:
    """Of the first j buckets' gradient and that of all, j = 1 ... k, from the buckets' inner products, shape (k + 1, k + 1).

    0 where either gradient is none.
    """
    inner = np.asarray(inner, dtype=np.float64)
    full, least = float(inner.sum()), ROUNDING * float(np.abs(inner).sum())
    found = []
    for j in range(1, len(inner)):
        own = float(inner[:j, :j].sum())
        found.append(float(inner[:j].sum()) / math.sqrt(own * full) if min(own, full) > least else 0.0)
    return found


def next_window(candidates: Sequence[int], cosines: Sequence[float], rho: float) -> int:
    """The shortest candidate that points well enough, else the longest."""
    return next((window for window, cosine in zip(candidates, cosines, strict=True) if cosine >= rho), candidates[-1])


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


def _audited(tree: TurnTree) -> set[Turn]:
    """The turns of its probes that came to their end."""
    marked = {tree.turns[index] for index in tree.tags.get("window", {}).get("probes", ())}
    ended = [path(leaf) for leaf in tree.leaves() if leaf.end != "error"]
    return {turn for line in ended if marked & set(line) for turn in line}
