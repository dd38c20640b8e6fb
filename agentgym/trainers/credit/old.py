"""What older weights say of what they sampled, once the learner has moved on: the centre of a trust region for stale data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agentgym.errors import AgentGymError
from agentgym.pack import Bools, Floats, behaviour
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.learner import Frozen
from agentgym.trainers.objectives.masked import kept
from agentgym.trainers.seams import Credit, State
from agentgym.turn import Turn, TurnTree

Weights = dict[str, torch.Tensor]


class Snapshots(Around):
    """``credit``, and the stream ``old``: each token's log-probability under the very weights that drew it, by the trainer's own forward.

    ``keep`` sets of weights are held, those that began the newest steps. Of a token whose weights are gone, the sampler's own
    log-probability stands in [R]; ``old_missing`` is their share. Source: Missing Old Logits in Asynchronous Agentic RL, arXiv
    2605.12070 [S-paper].
    """

    adds = frozenset({"old"})

    def __init__(self, credit: Credit, keep: int = 4, max_tokens: int = 4096) -> None:
        super().__init__(credit)
        if keep < 1:
            raise AgentGymError(f"keep is {keep}: it is a number of sets of weights, 1 at least")
        self.keep, self.max_tokens = keep, max_tokens
        self.held: dict[int, Weights] = {}  # by version, the oldest first
        self._scorer: Frozen | None = None  # a copy of the model, for weights that it is given

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        learner = _whole(models["learner"])
        self.held[learner.version] = {name: weight.clone() for name, weight in learner.weights().items()}
        for version in list(self.held)[: -self.keep]:
            del self.held[version]
        turns = [turn for tree in trees for turn in tree.turns]
        for turn in turns:
            turn.streams["old"] = behaviour(turn)
        scorer = self._scorer = self._scorer or Frozen(learner.model)
        missing = 0
        for version in {version for turn in turns for version, _ in turn.versions}:
            if version not in self.held:
                missing += sum(int(_drawn_by(turn, version).sum()) for turn in turns)
                continue
            scorer.model.load_state_dict(self.held[version], strict=False)
            for turn, found in scored(trees, scorer.logprobs, self.max_tokens):
                turn.streams["old"] = np.where(_drawn_by(turn, version), found, turn.streams["old"])
        self._metrics = {"old_missing": missing / max(1, sum(turn.sampled_tokens for turn in turns))}

    def state_dict(self) -> State:
        return {"credit": self.credit.state_dict(), "held": self.held}

    def load_state_dict(self, state: State) -> None:
        self.credit.load_state_dict(state["credit"])
        self.held = dict(state["held"])


class Averaged(Around):
    """``credit``, and the stream ``old``: log-probabilities of an exponential average of the learner's weights.

    PPO-EWMA (arXiv 2110.00641): ``w <- 1 + beta w``, ``average <- (weights + beta w average) / w``, at the start of every step; with
    ``beta = W / (W + 2)`` its centre of mass is half of a staleness W. Where less than ``least`` of the sampled tokens would pass both
    tests of `agentgym.trainers.objectives.masked.Masked` with these bounds, the average begins anew from the learner's weights. Source:
    Missing Old Logits, arXiv 2605.12070 [S-paper]; that the share is taken before the update, over all tokens, is ours [R].
    """

    adds = frozenset({"old"})

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
        self._scorer: Frozen | None = None  # a copy of the model, for weights that it is given

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        learner = _whole(models["learner"])
        self.follow(learner.weights())
        scorer = self._scorer = self._scorer or Frozen(learner.model)
        scorer.model.load_state_dict(self.average, strict=False)
        found = dict(scored(trees, scorer.logprobs, self.max_tokens))
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


def _whole(learner: Any) -> Any:
    if not hasattr(learner, "model"):
        raise AgentGymError("older weights are kept of a learner in one process, and this one is in several: train with one")
    return learner


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


def _drawn_by(turn: Turn, version: int) -> Bools:
    """Which of a turn's tokens these weights drew; shape (T,)."""
    found = np.zeros(len(turn.ids), dtype=bool)
    versions = np.repeat([drawn_by for drawn_by, _ in turn.versions], [count for _, count in turn.versions])[: turn.sampled_tokens]
    found[: len(versions)] = versions == version
    return found
