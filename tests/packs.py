"""Packs and forward passes that a test chose token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from forests import add_turn
from torch import Tensor

from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.training import Training
from agentgym.trainers.updates import Updates
from agentgym.turn import Turn, TurnTree, context_ids

BEHAVIOUR = -3.0


@dataclass
class Given:
    """Heads with chosen values; ``norms`` stands for the squared gradient norms of episodes."""

    logprobs: Tensor
    entropy: Any = None
    norms: Any = field(default=None)

    def gradient_norms(self, values: Tensor) -> Tensor:
        return torch.tensor(self.norms, dtype=torch.float64)


def group(lengths: Sequence[int], rewards: Sequence[float] | None = None, **streams: Any) -> Packed:
    """One tree whose episodes have one turn each, in order after a prompt of one token. Streams are over all sampled tokens."""
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [0])
    parts = {name: np.split(np.broadcast_to(np.asarray(v, float), (sum(lengths),)), np.cumsum(lengths)[:-1]) for name, v in streams.items()}
    for place, length in enumerate(lengths):
        turn = add_turn(tree, root, [1] * length, length, end="done", reward=rewards[place] if rewards else 0.0)
        turn.logprobs = [BEHAVIOUR] * length
        turn.streams = {"weight": np.ones(length), **{name: values[place].copy() for name, values in parts.items()}}
    return pack([tree], 10**6)[0]


def heads(ratios: Sequence[float], **others: Any) -> Given:
    """Ratios to the behaviour policy, for the sampled tokens of a `group`."""
    logprobs = torch.tensor([0.0, *np.log(ratios) + BEHAVIOUR], dtype=torch.float64)
    return Given(logprobs.requires_grad_(), **others)


def gradient(objective: Any, given: Given, packed: Packed) -> list[float]:
    """Of the loss in the log-probability of each sampled token of a `group`."""
    (found,) = torch.autograd.grad(objective(given, packed)[0], given.logprobs)
    return found[1:].tolist()


def loss(objective: Any, given: Given, packed: Packed) -> float:
    return float(objective(given, packed)[0].detach())


def differences(of: Callable[[Given], Tensor], given: Given, step: float = 1e-6) -> list[float]:
    """Finite differences in the log-probability of each sampled token of a `group`."""
    found = []
    for place in range(1, len(given.logprobs)):
        values = []
        for sign in (1, -1):
            moved = given.logprobs.detach().clone()
            moved[place] += sign * step
            values.append(float(of(Given(moved, given.entropy, given.norms))))
        found.append((values[0] - values[1]) / (2 * step))
    return found


def turn_logprobs(model: torch.nn.Module, turn: Turn) -> Tensor:
    """Of each token that a turn adds, by a plain forward pass over its context; 0 for the first of all."""
    context = context_ids(turn)
    if not context:
        return torch.zeros(0, dtype=torch.float64)
    before = model(input_ids=torch.tensor([context])).logits[0, :-1].log_softmax(-1)
    logprobs = torch.cat([before.new_zeros(1), before[torch.arange(len(context) - 1), context[1:]]])
    return logprobs[len(context) - len(turn.ids) :]


def learn(run: Training, step: int, trees: Sequence[TurnTree]) -> dict[str, float]:
    """What the loop does with a batch that has its streams."""
    updates = Updates(run, step)
    updates.add(trees)
    return updates.end()
