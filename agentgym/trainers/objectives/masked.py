"""Two tests of one ratio: how far the sampler was from the weights it had, and how far the learner has moved since."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO, Tokens
from agentgym.trainers.seams import Heads, Metrics


@dataclass(frozen=True)
class Masked:
    """``-keep exp(logp - sampler's) A``: the whole ratio is the weight, its factors are tested apart; streams: advantage, old, weight.

    ``keep`` where ``old / sampler`` lies in [1 / band, band], and ``logp / old`` is at most ``1 + high`` for A >= 0, at least ``1 - low``
    for A < 0. ``old`` are log-probabilities of the weights that sampled, or their best stand-in: `Snapshots`, `Averaged`. Source:
    Missing Old Logits in Asynchronous Agentic RL, arXiv 2605.12070 [S-paper].
    """

    band: float = 1.01
    low: float = 0.003
    high: float = 0.004
    needs: frozenset[str] = frozenset({"advantage", "old"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = Tokens(heads, packed)
        old = tokens.of(packed.streams["old"])
        keep = kept(tokens.behaviour, old, tokens.logprobs.detach(), tokens.advantage, self.band, self.low, self.high)
        loss = -tokens.log_ratio.exp() * tokens.advantage
        metrics = {
            "kept": tokens.average(keep.to(loss)),
            "gap_sampler": tokens.average(_ratio(old, tokens.behaviour)),
            "gap_moved": tokens.average(_ratio(tokens.logprobs, old)),
        }
        return (tokens.weight * torch.where(keep, loss, 0.0)).sum(), metrics


def kept(sampler: Tensor, old: Tensor, now: Tensor, advantage: Tensor, band: float, low: float, high: float) -> Tensor:
    """Which tokens pass both tests; all of shape (K,), log-probabilities in nats."""
    gap, moved = _ratio(old, sampler), _ratio(now, old)
    within = (gap <= band) & (gap >= 1 / band)
    return within & torch.where(advantage >= 0, moved <= 1 + high, moved >= 1 - low)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return (over - under).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
