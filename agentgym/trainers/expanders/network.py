"""Small networks that predict success, and learn from the last forests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from agentgym.policy import Prompt
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.allocation import Floats
from agentgym.trainers.expanders.value import Belief

LOW, HIGH = 0.005, 0.995  # so that nothing is starved for ever, and a solved task does not look worth trying
Model = TypeVar("Model", bound=nn.Module)
Rows = tuple[Tensor, Tensor, Tensor]  # features, targets and weights of a forest's anchors


def drawn(build: Callable[[], Model], lineage: Lineage) -> Model:
    """What ``build`` makes of random numbers, with those of ``lineage``; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lineage.seed())
        return build()


class Network:
    """What predictors have in common that learn with a ``model``, by Adam at 1e-3.

    ``confidence``, in rollouts, guards the allocation, see `root_contrasts`; ``prefix_confidence`` is that of a place within an episode.
    """

    def __init__(self, model: nn.Module, confidence: float, prefix_confidence: float, warm_up: int, seed: int) -> None:
        self.confidence, self.prefix_confidence, self.warm_up, self.seed = confidence, prefix_confidence, warm_up, seed
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.updates = 0
        self.memory: list[Rows] = []  # of the last forests

    @property
    def cold(self) -> bool:
        return self.updates < self.warm_up

    def belief(self, anchors: Sequence[Prompt], values: Floats) -> Belief:
        confidence = [self.prefix_confidence if anchor.turn.parent else self.confidence for anchor in anchors]
        return Belief(np.clip(values, LOW, HIGH), np.array(confidence, dtype=np.float64))

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": list(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.memory = state["updates"], list(state["memory"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # or it would go on writing into ``state``
