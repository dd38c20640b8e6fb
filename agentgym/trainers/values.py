"""A value learner: a copy of the policy's model with one output in place of the vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentgym.pack import Floats, Packed, pack
from agentgym.trainers.learner import LearningRate, PackedHeads, TorchLearner
from agentgym.trainers.seams import Metrics
from agentgym.turn import Turn, TurnTree


class ValueHeads(PackedHeads):
    """The values of the states in which the tokens that ``wanted`` marks were drawn."""

    def _read(self, logits: Tensor) -> None:
        self.values = logits.new_zeros(self._size).index_put((self._tokens,), logits[self._rows, 0])


class ValueLearner(TorchLearner):
    """Predicts returns: ``V`` of the context before a token, from the last hidden state by a linear head that begins at 0.

    ``model`` is copied, its transformer included [S-code]. Settings are those of `TorchLearner`.
    """

    heads = frozenset({"values"})
    view = ValueHeads

    def __init__(self, model: Any, rate: float | LearningRate, **settings: Any) -> None:
        model = copy.deepcopy(model).requires_grad_(True)
        old = model.get_output_embeddings().weight
        head = torch.nn.Linear(old.shape[1], 1, bias=False, device=old.device, dtype=old.dtype)
        torch.nn.init.zeros_(head.weight)
        model.config.get_text_config().tie_word_embeddings = False
        model.set_output_embeddings(head)
        super().__init__(model, rate, **settings)

    def values(self, packed: Packed) -> Tensor:
        """Of every sampled token's state, shape (T,), without gradient; 0 at other tokens."""
        with torch.no_grad():
            return ValueHeads(self.model, packed, packed.sampled).values


@dataclass(frozen=True)
class SquaredError:
    """``(V - return)^2 / 2`` over the stream ``weight``. PPO's clipping of values is left out [R]."""

    needs: frozenset[str] = frozenset({"values", "return"})

    def __call__(self, heads: Any, packed: Packed) -> tuple[Tensor, Metrics]:
        target, weight = (torch.from_numpy(packed.streams[name]).to(heads.values) for name in ("return", "weight"))
        return 0.5 * (weight * (heads.values - target).square()).sum(), {}


def learn_values(learner: Any, trees: Sequence[TurnTree], returns: Mapping[Turn, Floats], epochs: int, max_tokens: int) -> float:
    """``epochs`` steps towards ``returns``, those of each turn's first sampled tokens; all count the same. Gives the last step's loss."""
    n = sum(map(len, returns.values()))
    for turn in (turn for tree in trees for turn in tree.turns):
        turn.streams["return"], turn.streams["weight"] = np.zeros((2, len(turn.ids)))
        own = returns.get(turn, np.zeros(0))
        turn.streams["return"][: len(own)], turn.streams["weight"][: len(own)] = own, 1 / n
    packs = pack(trees, max_tokens)
    loss = float("nan")
    for _ in range(epochs):
        loss = sum(learner.accumulate(packed, SquaredError()).get("loss", 0.0) for packed in packs)
        learner.step()
    return loss


def explained_variance(errors: Mapping[Turn, Floats], returns: Mapping[Turn, Floats]) -> float:
    """1: values said all returns beforehand; 0: no more than their mean. ``errors`` are returns less values."""
    error, target = (np.concatenate(list(parts.values())) for parts in (errors, returns))
    spread = float(target.var())
    return 1 - float(error.var()) / spread if spread > 1e-12 else 0.0
