"""The second stage of TRACE: what is continued within one tree, and whether contrast came where it was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agentgym.policy import Prompt
from agentgym.trainers.expanders.allocation import root_contrasts
from agentgym.trainers.expanders.continuations import allocate_prefixes, flip_probability, prefix_contrast
from agentgym.trainers.expanders.value import Predictor, bare_rewards, first_rewards, outcomes, prefixes, rewards_through
from agentgym.turn import Turn, TurnTree


@dataclass(frozen=True, slots=True)
class Bet:
    """``n`` continuations of ``turn``, its children from ``first`` on, against an outcome that all ``agreed`` had ``before``."""

    turn: Turn
    first: int
    n: int
    flip: float
    before: bool
    agreed: int
    confidence: float


@dataclass(slots=True)
class Growth:
    """One tree while it grows: the belief about its root, the episodes commanded so far, and the local budget left."""

    value: float
    confidence: float
    episodes: int
    left: int
    waves: int
    bets: list[Bet] = field(default_factory=list)

    def continuations(self, tree: TurnTree, predictor: Predictor) -> list[tuple[Turn, int]]:
        """Where the next wave continues, and how often; nothing where no prefix may bring contrast, or all is spent."""
        if self.left == 0 or self.waves == 0:
            return []
        through = rewards_through(tree)
        places = prefixes(through)
        seen = [outcomes(through[turn]) for turn in places]
        agreed = [len(through[turn]) for turn in places]
        values, confidence = predictor.predict([Prompt(tree, turn) for turn in places])
        counts = allocate_prefixes(values, seen, -(-self.left // self.waves), agreed, confidence).tolist()
        chosen = [(place, n) for place, n in enumerate(counts) if n]
        for place, n in chosen:
            turn, flip = places[place], flip_probability(float(values[place]), seen[place])
            bet = Bet(turn, len(turn.children), n, flip, True in seen[place], agreed[place], float(confidence[place]))
            self.bets.append(bet)
        self.waves -= 1
        self.left -= sum(counts)
        self.episodes += sum(counts)
        return [(places[place], n) for place, n in chosen]

    def judge(self, tree: TurnTree, calibration: Calibration) -> None:
        """Compare what was predicted with what came."""
        calibration.root(self.value, self.confidence, bare_rewards(tree))
        for bet in self.bets:
            calibration.prefix(bet, first_rewards(bet.turn.children[bet.first : bet.first + bet.n]))


class Calibration:
    """Predicted and realised contrast of one forest, over the episodes that have a verdict.

    Metrics: the mean predicted chance of mixed outcomes, the share that was mixed, and the mean squared difference (Brier
    score), for root groups of two or more and for continued prefixes.
    """

    def __init__(self) -> None:
        self._pairs: dict[str, list[tuple[float, float]]] = {"root": [], "prefix": []}

    def root(self, value: float, confidence: float, rewards: Sequence[float]) -> None:
        if (n := len(rewards)) > 1:
            predicted = root_contrasts([value], n, confidence)[0, n]
            self._pairs["root"].append((float(predicted), float(len(outcomes(rewards)) == 2)))

    def prefix(self, bet: Bet, rewards: Sequence[float]) -> None:
        """``rewards`` of the new continuations."""
        if rewards:
            predicted = prefix_contrast(bet.flip, len(rewards), bet.agreed, bet.confidence)
            self._pairs["prefix"].append((predicted, float((not bet.before) in outcomes(rewards))))

    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for kind, pairs in self._pairs.items():
            if pairs:
                predicted, realised = np.array(pairs, dtype=np.float64).T
                metrics[f"{kind}_contrast_predicted"] = float(predicted.mean())
                metrics[f"{kind}_contrast_realised"] = float(realised.mean())
                metrics[f"{kind}_contrast_brier"] = float(((predicted - realised) ** 2).mean())
        return metrics
