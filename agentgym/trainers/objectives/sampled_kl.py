"""An estimate of the divergence from a teacher that is differentiated, of the token that was sampled alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.objectives.tokens import LARGEST_LOG_RATIO, Tokens
from agentgym.trainers.seams import Heads, Metrics


@dataclass(frozen=True)
class SampledKL:
    """A squared log-ratio to the teacher at each sampled token, ``d^2 / 2`` with ``d = logp - teacher`` (k2), differentiated.

    In expectation the reverse KL's gradient, as `OPD` has it, and without ratios. ``estimator="k3"``, ``exp(-d) - 1 + d``, is an estimate
    of the reverse KL too, but its gradient is that of the forward KL: not what its value says. Streams: weight, teacher. Both [R].
    """

    estimator: Literal["k2", "k3"] = "k2"
    needs: frozenset[str] = frozenset({"trained", "teacher"})

    def __post_init__(self) -> None:
        if self.estimator not in ("k2", "k3"):
            raise AgentGymError(f"estimator is {self.estimator!r}: choose 'k2' or 'k3'; k1 has no gradient of its own, see OPD")

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        tokens = Tokens(heads, packed)
        d = (tokens.logprobs - tokens.of(packed.streams["teacher"])).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        values = d**2 / 2 if self.estimator == "k2" else (-d).exp() - 1 + d
        return (tokens.weight * values).sum(), {"divergence": tokens.average(values)}
