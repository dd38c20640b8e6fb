"""GPS: a small network that predicts success from a latent context, inferred from how the latest forest went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from agentgym.errors import AgentGymError
from agentgym.policy import Prompt
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.features import SCALARS, CommonWords, prefix_features, stacked, tree_targets
from agentgym.trainers.expanders.network import Network, Rows, drawn
from agentgym.trainers.expanders.neural_process import NeuralProcess
from agentgym.trainers.expanders.value import Belief
from agentgym.turn import TurnTree

REMEMBERED = 4  # forests that each update learns from
EPOCHS = 4
SAMPLES = 32  # of the latent context, for each prediction
KL_WEIGHT = 1e-3


class GPS(Network):
    """A latent context z says how strong the policy is now, and on what; a decoder gives p(success | features, z).

    The posterior of z reads the mean-pooled pairs (task features, success rate) of a forest, its prior those of the forest before;
    at first the prior is N(0, 1). Both and the decoder maximise the ELBO at every update; a prediction is the mean
    over draws of z from the prior given the latest forest. Source: GPS, arXiv 2602.01970 [S2]; the body, hashed words as
    features, prefixes beside tasks, and the last forests learnt again [R].
    """

    def __init__(
        self,
        hidden: int = 128,
        latent: int = 8,
        words: int = 512,
        confidence: float = 4.0,
        prefix_confidence: float = 1.0,
        warm_up: int = 5,
        seed: int = 0,
    ) -> None:
        if min(hidden, latent, words, warm_up) < 1 or min(confidence, prefix_confidence) <= 0:
            raise AgentGymError(
                "GPS needs hidden, latent, words and warm_up of at least 1 and confidences above 0, not "
                f"{hidden}, {latent}, {words}, {warm_up}, {confidence} and {prefix_confidence}"
            )
        self.words, self.common = words, CommonWords(words)
        build = partial(NeuralProcess, self.common, 2 * words + SCALARS, hidden, latent)
        self.process = drawn(build, Lineage.of(seed, "gps"))
        super().__init__(self.process, confidence, prefix_confidence, warm_up, seed)
        self._elbo = self._kl = math.nan

    def predict(self, anchors: Sequence[Prompt]) -> Belief:
        with torch.no_grad():
            prior, features = self.process.context(self.process.prior, self.memory[-1:]), self._features(anchors)
            chances = torch.stack(
                [self.process.decode(features, prior.mean + prior.stddev * draw).sigmoid() for draw in self._noise(SAMPLES, "predict")]
            )
        return self.belief(anchors, chances.mean(0).double().numpy())

    def learn(self, trees: Sequence[TurnTree]) -> None:
        anchors, targets, weights = tree_targets(trees)
        if anchors:
            rows = self._features(anchors), torch.tensor(targets).clamp(0.0, 1.0), torch.tensor(weights)
            self.memory = [*self.memory[-REMEMBERED:], rows]
            self.common.learn(rows[0], anchors)
        self.updates += 1
        for epoch in range(EPOCHS):
            pairs = list(enumerate(self.memory))[max(0, len(self.memory) - REMEMBERED) :]
            Lineage.of(self.seed, "gps", self.updates, epoch).rng().shuffle(pairs)
            for place, rows in pairs:
                self._step(self.memory[max(0, place - 1) : place], rows, self._noise(1, "learn", epoch, place))

    def _step(self, before: Sequence[Rows], rows: Rows, noise: Tensor) -> None:
        features, targets, weights = rows
        process = self.process
        posterior, prior = process.context(process.posterior, [rows]), process.context(process.prior, before)
        logits = process.decode(features, posterior.mean + posterior.stddev * noise[0])
        likelihood = -binary_cross_entropy_with_logits(logits, targets, weights / weights.sum(), reduction="sum")
        divergence = kl_divergence(posterior, prior).sum()
        elbo = likelihood - KL_WEIGHT * divergence
        self.optimizer.zero_grad()
        (-elbo).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(process.parameters(), 1.0)
        self.optimizer.step()
        self._elbo, self._kl = elbo.item(), divergence.item()

    def _noise(self, count: int, *purpose: str | int) -> Tensor:
        """Shape (count, latent), the same however often it is asked for between two updates."""
        generator = torch.Generator().manual_seed(Lineage.of(self.seed, "gps", self.updates, *purpose).seed())
        return torch.randn(count, self.process.latent, generator=generator)

    def _features(self, anchors: Sequence[Prompt]) -> Tensor:
        # what the task itself did is in no context
        return stacked([prefix_features(anchor, 0.0, 0, self.words) for anchor in anchors], self.words)

    def metrics(self) -> dict[str, float]:
        return {"predictor_elbo": self._elbo, "predictor_kl": self._kl, "predictor_updates": float(self.updates)}
