"""The clipped surrogate of PPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentgym.pack import Packed
from agentgym.trainers.seams import Heads, Metrics

LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True)
class ClippedSurrogate:
    """``-min(r A, clip(r, 1 - low, 1 + high) A)`` with ``r = exp(logp - behaviour logp)``; streams: advantage, weight.

    PPO, arXiv 1707.06347; the wider upper bound is DAPO's clip-higher, arXiv 2503.14476 [S-code]. ``dual`` bounds the loss
    of a negative advantage at ``-dual A`` (dual clip, arXiv 1912.09729). Tokens that were not sampled have no ratio.
    With ``needs = {"entropy"}`` the metrics say the policy's entropy in nats.
    """

    low: float = 0.2
    high: float = 0.28
    dual: float | None = None
    needs: frozenset[str] = frozenset()

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]:
        kept = torch.from_numpy(packed.sampled & (packed.streams["weight"] != 0))
        logprobs = heads.logprobs[kept.to(heads.logprobs.device)]
        behaviour, advantage, weight = (
            torch.from_numpy(values).to(logprobs)[kept]
            for values in (packed.logprobs, packed.streams["advantage"], packed.streams["weight"])
        )
        ratio = (logprobs - behaviour).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        plain = -ratio * advantage
        clipped = -ratio.clamp(1 - self.low, 1 + self.high) * advantage
        loss = torch.maximum(plain, clipped)
        if self.dual is not None:
            loss = torch.where(advantage < 0, torch.minimum(loss, -self.dual * advantage), loss)
        with torch.no_grad():
            share = weight / weight.sum()
            metrics = {
                "clip_fraction": float((share * (clipped > plain)).sum()),
                "kl": float((share * (ratio - 1 - ratio.log())).sum()),
            }
            if "entropy" in self.needs:
                metrics["entropy"] = float((share * heads.entropy.to(logprobs)[kept.to(logprobs.device)]).sum())
        return (weight * loss).sum(), metrics
