"""Weights that the learner had, and what they say now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.learner import Frozen
from agentgym.turn import Turn, TurnTree

Weights = dict[str, torch.Tensor]


class OldScorer:
    """A copy of the learner's model, made once, that scores with whatever weights it is given."""

    def __init__(self) -> None:
        self._copy: Frozen | None = None

    def scored(self, trees: Sequence[TurnTree], learner: Any, weights: Weights, max_tokens: int) -> Iterator[tuple[Turn, Floats]]:
        self._copy = self._copy or Frozen(learner.model)
        self._copy.model.load_state_dict(weights, strict=False)
        return scored(trees, self._copy.logprobs, max_tokens)


def whole(learner: Any) -> Any:
    """The learner, whose weights can be read. Raises `AgentGymError` for one in several processes."""
    if not hasattr(learner, "model"):
        raise AgentGymError("older weights are kept of a learner in one process, and this one is in several: train with one")
    return learner
