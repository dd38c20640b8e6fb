"""EntroPIC: a controller holds the policy's entropy by the weight of the tokens that it is sure of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.tokens import Tokens
from agentgym.trainers.seams import Heads, Metrics, Objective, State

LARGEST_INTEGRAL = 100.0


@dataclass
class EntroPIC:
    """``objective + alpha mean(-r |A|)`` over tokens with ``p > confident``; streams: advantage, weight.

    ``alpha = clip(proportional e + integral sum e, -1, 1)`` with ``e = entropy - target`` in nats; each pack is one measurement, which
    joins the sum after its use, times the pack's share of the batch (its weight, at most 1). Too little entropy pushes sure tokens
    down. Source: EntroPIC, arXiv 2511.15248 [S-code]; the sum is held within 100 [R].
    """

    objective: Objective = field(default_factory=lambda: ClippedSurrogate(0.2, 0.2, dual=3.0))
    target: float = 0.1
    proportional: float = 1.0
    integral: float = 0.01
    confident: float = 0.95
    error: float = 0.0  # the sum of past errors

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs | {"entropy"}

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        loss, metrics = self.objective(heads, packed)
        tokens = Tokens(heads, packed)
        if not len(tokens.place):
            return loss, metrics
        entropy, share = float(heads.entropy[tokens.place].detach().mean()), float(tokens.weight.sum())
        alpha = self.measure(entropy, min(1.0, share))
        sure = tokens.weight * (tokens.logprobs.detach() > math.log(self.confident))
        control = -(sure * tokens.log_ratio.exp() * tokens.advantage.abs()).sum() / sure.sum().clamp(min=1e-12)
        return loss + alpha * share * control, {**metrics, "entropy": entropy, "alpha": alpha}

    def measure(self, entropy: float, share: float) -> float:
        """The coefficient for this measurement, which is then remembered."""
        error = entropy - self.target
        alpha = max(-1.0, min(1.0, self.proportional * error + self.integral * self.error))
        self.error = max(-LARGEST_INTEGRAL, min(LARGEST_INTEGRAL, self.error + error * share))
        return alpha

    def state_dict(self) -> State:
        return {"error": self.error}

    def load_state_dict(self, state: State) -> None:
        self.error = state["error"]

    def metrics(self) -> Metrics:
        return {"entropy_error": self.error}
