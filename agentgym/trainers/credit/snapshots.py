"""What the very weights that sampled say of it, once the learner has moved on: the centre of a trust region for stale data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import behaviour
from agentgym.trainers.credit.older_weights import OldScorer, Weights, whole
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.credit.tokens import drawn_by
from agentgym.trainers.seams import Credit, State
from agentgym.turn import TurnTree


class Snapshots(Around):
    """``credit``, and the stream ``old``: each token's log-probability under the very weights that drew it, by the trainer's own forward.

    ``keep`` sets of weights are held, those that began the newest steps. Of a token whose weights are gone, the sampler's own
    log-probability stands in [R]; ``old_missing`` is their share. Source: Missing Old Logits in Asynchronous Agentic RL, arXiv
    2605.12070 [S-paper].
    """

    adds = frozenset({"old"})
    apart = False

    def __init__(self, credit: Credit, keep: int = 4, max_tokens: int = 4096) -> None:
        super().__init__(credit)
        if keep < 1:
            raise AgentGymError(f"keep is {keep}: it is a number of sets of weights, 1 at least")
        self.keep, self.max_tokens = keep, max_tokens
        self.held: dict[int, Weights] = {}  # by version, the oldest first
        self._scorer = OldScorer()

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        learner = whole(models["learner"])
        self.held[learner.version] = {name: weight.clone() for name, weight in learner.weights().items()}
        for version in list(self.held)[: -self.keep]:
            del self.held[version]
        turns = [turn for tree in trees for turn in tree.turns]
        for turn in turns:
            turn.streams["old"] = behaviour(turn)
        missing = 0
        for version in {version for turn in turns for version, _ in turn.versions}:
            if version not in self.held:
                missing += sum(int(drawn_by(turn, version).sum()) for turn in turns)
                continue
            for turn, found in self._scorer.scored(trees, learner, self.held[version], self.max_tokens):
                turn.streams["old"] = np.where(drawn_by(turn, version), found, turn.streams["old"])
        self._metrics = {"old_missing": missing / max(1, sum(turn.sampled_tokens for turn in turns))}

    def state_dict(self) -> State:
        return {"credit": self.credit.state_dict(), "held": self.held}

    def load_state_dict(self, state: State) -> None:
        self.credit.load_state_dict(state["credit"])
        self.held = dict(state["held"])
