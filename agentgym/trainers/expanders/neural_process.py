"""A neural process: chances of success from features and a latent context, which is inferred from a set of anchors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from agentgym.trainers.expanders.features import SCALARS, CommonWords
from agentgym.trainers.expanders.network import Rows


class NeuralProcess(nn.Module):
    """Normal contexts of ``latent`` numbers from the pairs (features, success rate) of a forest's roots, mean-pooled; and a decoder.

    ``posterior`` and ``prior`` are two heads of one form. Source: GPS, arXiv 2602.01970 [S2]; the body [R].
    """

    def __init__(self, common: CommonWords, inputs: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.common = common
        self.embedding = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU())
        self.posterior = nn.Linear(2 * hidden, 2 * latent)
        self.prior = nn.Linear(2 * hidden, 2 * latent)
        self.decoder = nn.Sequential(nn.Linear(hidden + latent, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def context(self, head: nn.Linear, forests: Sequence[Rows]) -> Normal:
        """From one forest, or N(0, 1) from none."""
        if not forests:
            return Normal(torch.zeros(self.latent), torch.ones(self.latent))
        ((features, targets, _),) = forests
        roots = features[:, -SCALARS] == 0  # the depth
        embedded, rates = self._embed(features[roots]), targets[roots, None]
        pooled = torch.cat([embedded * rates, embedded * (1 - rates)], 1).mean(0)
        mean, spread = head(pooled).chunk(2)
        return Normal(mean, 0.1 + 0.9 * spread.sigmoid())

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        """Logits of shape (A,) from features of shape (A, 2 words + 5) and one draw of the context."""
        output: Tensor = self.decoder(torch.cat([self._embed(features), latent.expand(len(features), -1)], 1))
        return output.squeeze(-1)

    def _embed(self, features: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(self.common(features))
        return embedded
