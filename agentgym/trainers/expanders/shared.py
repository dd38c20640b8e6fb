"""One small network that predicts success from any prefix of any task, from words and a few counts."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.policy import Prompt
from agentgym.rollout import episode
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.allocation import Floats
from agentgym.trainers.expanders.value import Belief, bare_rewards, prefixes, rewards_through
from agentgym.turn import TurnTree

WORD = re.compile(r"\w+")
SCALARS = 5
WINDOW = 3  # turns
LOW, HIGH = 0.005, 0.995  # so that nothing is starved for ever, and a solved task does not look worth trying
COMMON, LEAST = 0.01, 3  # a word counts once so many trees have had it: this share of them, and this number
REMEMBERED = 4  # forests
EPOCHS, ROWS = 2, 64


class SharedPredictor:
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
        self.words, self.warm_up, self.seed = words, warm_up, seed
        self.confidence, self.prefix_confidence = confidence, prefix_confidence
        self.updates = 0
        self.records: dict[str, tuple[float, int]] = {}  # of each task: sum of rewards, number of bare rollouts
        inputs = 2 * words + SCALARS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Lineage.of(seed, "predictor").seed())
            self.common = CommonWords(words)
            self.model = nn.Sequential(self.common, nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.memory: list[tuple[Tensor, Tensor, Tensor]] = []  # features, targets and weights of the last forests
        self._loss = math.nan

    @property
    def cold(self) -> bool:
        return self.updates < self.warm_up

    def predict(self, anchors: Sequence[Prompt]) -> Belief:
        with torch.no_grad():
            own = self._forward(self._features(anchors)).double().numpy()
        trust = min(1.0, self.updates / self.warm_up)
        value = np.clip((1 - trust) * self._mean() + trust * own, LOW, HIGH)
        confidence = [self.prefix_confidence if anchor.turn.parent else self.confidence for anchor in anchors]
        return Belief(value, np.array(confidence, dtype=np.float64))

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
        """Shape (A, 2 words + 5)."""
        rows = [prefix_features(anchor, *self._record(anchor.tree), self.words) for anchor in anchors]
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), 2 * self.words + SCALARS))

    def _record(self, tree: TurnTree) -> tuple[float, int]:
        return self.records.get(tree.task.id, (0.0, 0))

    def _mean(self) -> float:
        """Of all bare rollouts so far."""
        visits = sum(visits for _, visits in self.records.values())
        return sum(total for total, _ in self.records.values()) / visits if visits else 0.5

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "records": dict(self.records),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": list(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.records, self.memory = state["updates"], dict(state["records"]), list(state["memory"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # or it would go on writing into ``state``

    def metrics(self) -> dict[str, float]:
        return {"predictor_loss": self._loss, "predictor_updates": float(self.updates)}


class CommonWords(nn.Module):
    """Leaves out the words that few trees have had [R].

    They are names, which a network would learn by heart and which say nothing about the next task.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.counts: Tensor
        self.trees: Tensor
        self.register_buffer("counts", torch.zeros(2 * words))
        self.register_buffer("trees", torch.zeros(()))

    def learn(self, features: Tensor, anchors: Sequence[Prompt]) -> None:
        names = [anchor.tree.id for anchor in anchors]
        for tree in set(names):
            self.trees += 1
            self.counts += (features[[name == tree for name in names], :-SCALARS] > 0).any(0)

    def forward(self, features: Tensor) -> Tensor:
        common = self.counts >= torch.clamp(COMMON * self.trees, min=LEAST)
        return torch.cat([features[:, :-SCALARS] * common, features[:, -SCALARS:]], 1)


def tree_targets(trees: Sequence[TurnTree]) -> tuple[list[Prompt], list[float], list[float]]:
    """The anchors that were judged, the mean reward of the episodes through each, and their number [S2]."""
    anchors, targets, weights = [], [], []
    for tree in trees:
        through = rewards_through(tree)
        for turn in [turn for turn in (tree.root, *prefixes(through)) if turn in through]:
            anchors.append(Prompt(tree, turn))
            targets.append(float(np.mean(through[turn])))
            weights.append(float(len(through[turn])))
    return anchors, targets, weights


def prefix_features(anchor: Prompt, total: float, visits: int, words: int) -> Floats:
    """Shape (2 words + 5,). ``total`` and ``visits``: the sum of rewards and the number of the task's rollouts so far."""
    acted = episode(anchor.turn)
    recent = "\n".join(f"{turn.action}\n{turn.observation}" for turn in acted[-WINDOW:])
    scalars = [
        math.log1p(len(acted)),  # the most turns that an episode may have are not known here
        math.log1p(anchor.length) / 8,
        float(bool(acted) and acted[-1].outcome is not Outcome.OK),
        total / visits if visits else 0.5,
        math.log1p(visits) / 4,
    ]
    return np.concatenate([hashed_words(anchor.tree.task.prompt, words), hashed_words(recent, words), scalars])


def hashed_words(text: str, size: int) -> Floats:
    """A bag of words as a vector of shape (size,) with mean square 1, so that few steps learn from it; 0 without words."""
    counts = np.zeros(size)
    for word in WORD.findall(text.lower()):
        counts[_place(word) % size] += 1
    return np.sqrt(counts * (size / max(1.0, float(counts.sum()))))


@lru_cache(maxsize=2**16)
def _place(word: str) -> int:
    return crc32(word.encode())
