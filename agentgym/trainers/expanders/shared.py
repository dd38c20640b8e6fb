"""One small network that predicts success from any prefix of any task, from words and a few counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agentgym.errors import AgentGymError
from agentgym.policy import Prompt
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.features import SCALARS, CommonWords, prefix_features, stacked, tree_targets
from agentgym.trainers.expanders.network import Network, drawn
from agentgym.trainers.expanders.value import Belief, bare_rewards
from agentgym.turn import TurnTree

REMEMBERED = 4  # forests
EPOCHS, ROWS = 2, 64


class SharedPredictor(Network):
    """One hidden layer of GELUs on hashed words of the task and of the last three turns, and on the turn's depth, its tokens,
    whether its tool call failed, and the task's own success rate and visits.

    Trained by mean-squared error on recursive tree targets, the mean reward of the episodes below a node, with their number
    as its weight [S2]. For the first ``warm_up`` forests, predictions lean on the mean success rate of all tasks. The body, Adam
    1e-3, two epochs over the last four forests, `CommonWords`, limits of 0.005 and 0.995 [R]. ``confidence``, in rollouts, guards the
    allocation, see `root_contrasts`; ``prefix_confidence`` is lower, as what is to come is often settled by what was done, which
    words show badly.
    """

    def __init__(
        self,
        hidden: int = 256,
        words: int = 512,
        confidence: float = 4.0,
        prefix_confidence: float = 1.0,
        warm_up: int = 20,
        seed: int = 0,
    ) -> None:
        if min(hidden, words, warm_up) < 1 or min(confidence, prefix_confidence) <= 0:
            raise AgentGymError(
                "SharedPredictor needs hidden, words and warm_up of at least 1 and confidences above 0, not "
                f"{hidden}, {words}, {warm_up}, {confidence} and {prefix_confidence}"
            )
        self.words, self.common = words, CommonWords(words)
        model = drawn(partial(_perceptron, self.common, 2 * words + SCALARS, hidden), Lineage.of(seed, "predictor"))
        super().__init__(model, confidence, prefix_confidence, warm_up, seed)
        self.records: dict[str, tuple[float, int]] = {}  # of each task: sum of rewards, number of bare rollouts
        self._loss = math.nan

    def predict(self, anchors: Sequence[Prompt]) -> Belief:
        with torch.no_grad():
            own = self._forward(self._features(anchors)).double().numpy()
        trust = min(1.0, self.updates / self.warm_up)
        return self.belief(anchors, (1 - trust) * self._mean() + trust * own)

    def learn(self, trees: Sequence[TurnTree]) -> None:
        anchors, targets, weights = tree_targets(trees)
        if anchors:
            # The records are those from before this forest, as they are when the predictor is asked.
            features = self._features(anchors)
            self.common.learn(features, anchors)
            self.memory = [*self.memory[1 - REMEMBERED :], (features, torch.tensor(targets), torch.tensor(weights))]
        for tree in trees:
            rewards = bare_rewards(tree)
            total, visits = self._record(tree)
            self.records[tree.task.id] = total + sum(rewards), visits + len(rewards)
        self.updates += 1
        self._fit()

    def _fit(self) -> None:
        if not self.memory:
            return
        features, targets, weights = (torch.cat(columns) for columns in zip(*self.memory, strict=True))
        for epoch in range(EPOCHS):
            order = list(range(len(targets)))
            Lineage.of(self.seed, "predictor", self.updates, epoch).rng().shuffle(order)
            losses = []
            for rows in (order[first : first + ROWS] for first in range(0, len(order), ROWS)):
                errors = (self._forward(features[rows]) - targets[rows]) ** 2
                loss = (weights[rows] * errors).sum() / weights[rows].sum()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                losses.append(loss.item())
            self._loss = sum(losses) / len(losses)

    def _forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.model(features)
        return output.squeeze(-1).sigmoid()

    def _features(self, anchors: Sequence[Prompt]) -> Tensor:
        return stacked([prefix_features(anchor, *self._record(anchor.tree), self.words) for anchor in anchors], self.words)

    def _record(self, tree: TurnTree) -> tuple[float, int]:
        return self.records.get(tree.task.id, (0.0, 0))

    def _mean(self) -> float:
        """Of all bare rollouts so far."""
        visits = sum(visits for _, visits in self.records.values())
        return sum(total for total, _ in self.records.values()) / visits if visits else 0.5

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "records": dict(self.records)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.records = dict(state["records"])

    def metrics(self) -> dict[str, float]:
        return {"predictor_loss": self._loss, "predictor_updates": float(self.updates)}


def _perceptron(first: nn.Module, inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(first, nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 1))
