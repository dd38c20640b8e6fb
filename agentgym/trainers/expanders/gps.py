"""GPS: a small network that predicts success from a latent context, inferred from how the latest forest went."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from agentgym.errors import AgentGymError
from agentgym.policy import Prompt
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.shared import HIGH, LOW, SCALARS, CommonWords, prefix_features, tree_targets
from agentgym.trainers.expanders.value import Belief
from agentgym.turn import TurnTree

REMEMBERED = 4  # forests that each update learns from
EPOCHS = 4
SAMPLES = 32  # of the latent context, for each prediction
KL_WEIGHT = 1e-3

Rows = tuple[Tensor, Tensor, Tensor]  # features, mean rewards and weights of a forest's anchors


class GPS:
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
        self.latent, self.words, self.warm_up, self.seed = latent, words, warm_up, seed
        self.confidence, self.prefix_confidence = confidence, prefix_confidence
        self.updates = 0
        inputs = 2 * words + SCALARS
        self.common = CommonWords(words)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Lineage.of(seed, "gps").seed())
            self.model = nn.ModuleDict(
                {
                    "common": self.common,
                    "embedding": nn.Sequential(nn.Linear(inputs, hidden), nn.GELU()),
                    "posterior": nn.Linear(2 * hidden, 2 * latent),
                    "prior": nn.Linear(2 * hidden, 2 * latent),
                    "decoder": nn.Sequential(nn.Linear(hidden + latent, hidden), nn.GELU(), nn.Linear(hidden, 1)),
                }
            )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.memory: list[Rows] = []  # of the last forests, and of the one before them
        self._elbo = self._kl = math.nan

    @property
    def cold(self) -> bool:
        return self.updates < self.warm_up

    def predict(self, anchors: Sequence[Prompt]) -> Belief:
        with torch.no_grad():
            prior, draws = self._context("prior", self.memory[-1:]), self._noise(SAMPLES, "predict")
            features = self._features(anchors)
            chances = torch.stack([self._decode(features, prior.mean + prior.stddev * draw).sigmoid() for draw in draws])
        confidence = [self.prefix_confidence if anchor.turn.parent else self.confidence for anchor in anchors]
        return Belief(np.clip(chances.mean(0).double().numpy(), LOW, HIGH), np.array(confidence, dtype=np.float64))

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
        posterior, prior = self._context("posterior", [rows]), self._context("prior", before)
        logits = self._decode(features, posterior.mean + posterior.stddev * noise[0])
        likelihood = -binary_cross_entropy_with_logits(logits, targets, weights / weights.sum(), reduction="sum")
        divergence = kl_divergence(posterior, prior).sum()
        elbo = likelihood - KL_WEIGHT * divergence
        self.optimizer.zero_grad()
        (-elbo).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._elbo, self._kl = elbo.item(), divergence.item()

    def _context(self, head: str, forests: Sequence[Rows]) -> Normal:
        if not forests:
            return Normal(torch.zeros(self.latent), torch.ones(self.latent))
        ((features, targets, _),) = forests
        roots = features[:, -SCALARS] == 0  # the depth
        embedded, rates = self._embed(features[roots]), targets[roots, None]
        pooled = torch.cat([embedded * rates, embedded * (1 - rates)], 1).mean(0)
        mean, spread = self.model[head](pooled).chunk(2)
        return Normal(mean, 0.1 + 0.9 * spread.sigmoid())

    def _decode(self, features: Tensor, latent: Tensor) -> Tensor:
        """Logits of shape (A,) from features of shape (A, 2 words + 5) and one draw of the context."""
        output: Tensor = self.model["decoder"](torch.cat([self._embed(features), latent.expand(len(features), -1)], 1))
        return output.squeeze(-1)

    def _embed(self, features: Tensor) -> Tensor:
        embedded: Tensor = self.model["embedding"](self.common(features))
        return embedded

    def _noise(self, count: int, *purpose: str | int) -> Tensor:
        """Shape (count, latent), the same however often it is asked for between two updates."""
        generator = torch.Generator().manual_seed(Lineage.of(self.seed, "gps", self.updates, *purpose).seed())
        return torch.randn(count, self.latent, generator=generator)

    def _features(self, anchors: Sequence[Prompt]) -> Tensor:
        rows = [prefix_features(anchor, 0.0, 0, self.words) for anchor in anchors]  # what the task itself did is in no context
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), 2 * self.words + SCALARS))

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": list(self.memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.memory = state["updates"], list(state["memory"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # or it would go on writing into ``state``

    def metrics(self) -> dict[str, float]:
        return {"predictor_elbo": self._elbo, "predictor_kl": self._kl, "predictor_updates": float(self.updates)}
