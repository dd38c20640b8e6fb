"""Generalised advantage estimation: an action is as good as it turns out better than a value learner expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.credit.tokens import whitened_together, write_tokens
from agentgym.trainers.credit.verdicts import judged, mean_reward
from agentgym.trainers.values import ValueLearner, explained_variance, learn_values
from agentgym.turn import Turn, TurnTree

Values = Mapping[Turn, Floats]


class GAE(Stateless):
    """``A_t = d_t + discount decay A_(t+1)``, ``d_t = r_t + discount V_(t+1) - V_t``; then V learns ``A_t + V_t`` in ``epochs`` steps.

    A step is a sampled token (``per="token"``) or an action (``per="turn"`` [R]: the value before its first token, one advantage on
    all). What others wrote is passed over. A turn's reward falls on its last step, or on the one before where it has none [R].
    Where episodes part, what follows is the mean over them, so that a shared turn has their mean return [R]. After the end the value
    is 0, truncated or not: a limit is part of the task [R]. Within an action in segments ``per="turn"`` discounts nothing [R].
    Episodes without a verdict are in no statistics. ``whiten``: over the steps of the batch. An epoch is one step on the batch [R].

    Source: High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv 1506.02438; mask and whitening
    of verl [S-code], defaults [R]. Metrics: ``value_loss``, and ``explained_variance`` of the returns before V learnt them.
    """

    def __init__(
        self,
        rate: float = 1e-5,
        discount: float = 1.0,
        decay: float = 1.0,
        per: Literal["token", "turn"] = "token",
        whiten: bool = True,
        epochs: int = 1,
        max_tokens: int = 4096,
    ) -> None:
        if not (0 <= discount <= 1 and 0 <= decay <= 1 and epochs >= 1):
            raise AgentGymError(f"discount is {discount}, decay {decay}: both must lie between 0 and 1; epochs is {epochs}: 1 at least")
        if per not in ("token", "turn"):
            raise AgentGymError(f"per is {per!r}: choose 'token' or 'turn'")
        self.discount, self.decay, self.per, self.whiten, self.epochs, self.max_tokens = discount, decay, per, whiten, epochs, max_tokens
        self.models: dict[str, Callable[[Any], Any]] = {"value": partial(ValueLearner, rate=rate)}
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        learner: Any = models.get("value")
        if not hasattr(learner, "values"):
            raise AgentGymError(f"GAE asks for a model 'value' with values(packed), a ValueLearner; models: {', '.join(models) or 'none'}")
        steps = 1 if self.per == "turn" else None
        states = {turn: own[: turn.sampled_tokens][:steps] for turn, own in scored(trees, learner.values, self.max_tokens)}
        advantages: dict[Turn, Floats] = {}
        for tree in trees:
            advantages |= estimated(tree, states, self.discount, self.decay, self.per)
        write_tokens(trees, "advantage", whitened_together(advantages) if self.whiten else advantages)
        self._metrics = {"reward": mean_reward(trees)}
        if advantages:
            targets = {turn: own + states[turn] for turn, own in advantages.items()}
            self._metrics["value_loss"] = learn_values(learner, trees, targets, self.epochs, self.max_tokens)
            self._metrics["explained_variance"] = explained_variance(advantages, targets)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def estimated(tree: TurnTree, values: Values, discount: float, decay: float, per: str = "token") -> dict[Turn, Floats]:
    """The advantages of the steps of each turn on an episode with a verdict, from their values, one array for each turn."""
    ends = judged(tree)
    sums = np.zeros((len(tree.turns), 4))  # over the episodes through a turn: their number; reward, value and advantage after it
    found: dict[Turn, Floats] = {}
    for turn in reversed(tree.turns):
        sums[turn.index, 0] += turn in ends
        episodes = sums[turn.index, 0]
        if not episodes:
            continue
        reward, value, advantage = (sums[turn.index, 1:] / episodes).tolist()
        reward += turn.reward or 0.0
        ahead, further = (1.0, 1.0) if turn.partial and per == "turn" else (discount, decay)
        own = np.zeros(len(values[turn]))
        for step in reversed(range(len(own))):
            now = float(values[turn][step])
            own[step] = advantage = reward + ahead * value - now + ahead * further * advantage
            reward, value, ahead, further = 0.0, now, discount, decay
        if len(own):
            found[turn] = own
        if turn.parent is not None:
            sums[turn.parent.index] += episodes * np.array([1.0, reward, value, advantage])
    return found
