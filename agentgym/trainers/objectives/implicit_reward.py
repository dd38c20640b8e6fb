"""The loss of PRIME's reward model: the log-ratio of an episode says whether it is right."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import PathTokens
from agentgym.trainers.seams import Heads, Metrics


@dataclass(frozen=True)
class ImplicitReward:
    """``BCE(sigmoid(beta * sum over an episode's tokens of (logp - reference)), R)``, the sum over episodes by ``episodes``.

    R lies in [0, 1]. ``episodes`` is the number of those in the batch: packs add up to its mean. Source: Process Reinforcement
    through Implicit Rewards, arXiv 2502.01456 [S-code].
    """

    episodes: int
    beta: float = 0.05
    needs: frozenset[str] = frozenset({"paths", "reference"})

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = PathTokens(heads, packed)
        kept = tokens.lengths > 0
        logits = self.beta * tokens.sum(tokens.logprobs - tokens.of(packed.streams["reference"]))[kept]
        loss = binary_cross_entropy_with_logits(logits, tokens.rewards[kept].to(logits), reduction="sum")
        right = ((logits.detach() > 0) == (tokens.rewards[kept] > 0.5)).sum()
        return loss / self.episodes, {"process_accuracy": float(right) / self.episodes}
