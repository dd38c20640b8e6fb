"""ADWIN's audit: which window has a gradient that points where that of whole episodes does, and nothing beyond it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.trainers.credit.buckets import bucket_gradients, cosines
from agentgym.trainers.credit.streams import Around, written
from agentgym.trainers.expanders.windows import places
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.seams import Credit, Learner, Objective
from agentgym.turn import Turn, TurnTree, path


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

    apart = False
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


def next_window(candidates: Sequence[int], cosines: Sequence[float], rho: float) -> int:
    """The shortest candidate that points well enough, else the longest."""
    return next((window for window, cosine in zip(candidates, cosines, strict=True) if cosine >= rho), candidates[-1])


def _audited(tree: TurnTree) -> set[Turn]:
    """The turns of its probes that came to their end."""
    marked = {tree.turns[index] for index in tree.tags.get("window", {}).get("probes", ())}
    ended = [path(leaf) for leaf in tree.leaves() if leaf.end != "error"]
    return {turn for line in ended if marked & set(line) for turn in line}
