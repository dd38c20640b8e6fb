"""An average of the weights as the centre of a trust region for stale data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, behaviour
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.credit.older_weights import OldScorer, Weights, whole
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.objectives.masked import kept
from agentgym.trainers.seams import Credit, State
from agentgym.turn import Turn, TurnTree


class Averaged(Around):
    """``credit``, and the stream ``old``: log-probabilities of an exponential average of the learner's weights.

    PPO-EWMA (arXiv 2110.00641): ``w <- 1 + beta w``, ``average <- (weights + beta w average) / w``, at the start of every step; with
    ``beta = W / (W + 2)`` its centre of mass is half of a staleness W. Where less than ``least`` of the sampled tokens would pass both
    tests of `agentgym.trainers.objectives.masked.Masked` with these bounds, the average begins anew from the learner's weights. Source:
    Missing Old Logits, arXiv 2605.12070 [S-paper]; that the share is taken before the update, over all tokens, is ours [R].
    """

    adds = frozenset({"old"})
    apart = False

    def __init__(
        self, credit: Credit, beta: float = 0.75, least: float = 0.9, band: float = 1.01, low: float = 0.003, high: float = 0.004,
        max_tokens: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__(credit)
        if not 0 <= beta < 1:
            raise AgentGymError(f"beta is {beta}: the share of the old average is at least 0 and below 1")
        self.beta, self.least, self.bounds, self.max_tokens = beta, least, (band, low, high), max_tokens
        self.average: Weights = {}
        self.weight, self.resets = 0.0, 0
        self._scorer = OldScorer()

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        learner = whole(models["learner"])
        self.follow(learner.weights())
        found = dict(self._scorer.scored(trees, learner, self.average, self.max_tokens))
        now = dict(scored(trees, learner.logprobs, self.max_tokens))
        share = _share([(turn, old, now[turn]) for turn, old in found.items()], self.bounds)
        if share < self.least:
            self.average, self.weight = {}, 0.0
            self.follow(learner.weights())
            self.resets += 1
        for turn in (turn for tree in trees for turn in tree.turns):
            turn.streams["old"] = (now if share < self.least else found).get(turn, np.zeros(len(turn.ids)))
        self._metrics = {"old_kept": share, "old_resets": float(self.resets)}

    def follow(self, weights: Weights) -> None:
        before, self.weight = self.beta * self.weight, 1 + self.beta * self.weight
        old = self.average or weights
        self.average = {name: (weight + before * old[name]) / self.weight for name, weight in weights.items()}

    def state_dict(self) -> State:
        return {"credit": self.credit.state_dict(), "average": self.average, "weight": self.weight, "resets": self.resets}

    def load_state_dict(self, state: State) -> None:
        self.credit.load_state_dict(state["credit"])
        self.average, self.weight, self.resets = dict(state["average"]), state["weight"], state["resets"]


def _share(turns: Sequence[tuple[Turn, Floats, Floats]], bounds: tuple[float, float, float]) -> float:
    """How much of what was sampled passes the tests, with the learner's weights as they are. 1 where nothing was sampled."""
    passed = total = 0
    for turn, old, now in turns:
        n = turn.sampled_tokens
        advantage = turn.streams.get("advantage", np.zeros(n))
        before, between, after, signs = (torch.from_numpy(values[:n]) for values in (behaviour(turn), old, now, advantage))
        good = kept(before, between, after, signs, *bounds)
        passed, total = passed + int(good.sum()), total + n
    return passed / total if total else 1.0
