"""Old log-probabilities without a forward pass of old weights: a guess between the sampler's and the learner's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Packed
from agentgym.trainers.seams import Heads, Metrics, Objective

Form = Literal["log", "linear"]


@dataclass(frozen=True)
class Interpolated:
    """``objective``, with ``old`` between the sampler's log-probabilities and those of the running forward pass.

    Of a token that was drawn ``lag`` versions ago, 1 / (lag + 1) is the sampler's: of the log-probability, as in AReaL
    (arXiv 2505.24298 [S-code]), or of the probability (``linear``). Streams: ``lag`` from `agentgym.trainers.credit.lags.WithLags`, and
    those of ``objective`` but ``old``. It knows nothing of the old weights: it widens the bounds of the objective's tests by the lag, and
    is the cheap baseline (Missing Old Logits, arXiv 2605.12070 [S-paper]). Without lag, ``old`` is the sampler's.
    """

    objective: Objective
    form: Form = "log"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise AgentGymError(f"form is {self.form!r}: choose one of {', '.join(get_args(Form))}")

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs - {"old"} | {"lag"}

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        now = heads.logprobs.detach().double().cpu().numpy()
        old = between(packed.logprobs, now, packed.streams["lag"], self.form)
        return self.objective(heads, replace(packed, streams={**packed.streams, "old": old}))


def between(sampler: Floats, now: Floats, lag: Floats, form: Form) -> Floats:
    """Log-probabilities, in nats; all of one shape."""
    old: Floats = sampler.copy()
    late = lag > 0
    share, sampler, now = 1 / (lag[late] + 1), sampler[late], now[late]
    if form == "log":
        old[late] = share * sampler + (1 - share) * now
    else:
        old[late] = np.logaddexp(np.log(share) + sampler, np.log(1 - share) + now)
    return old
