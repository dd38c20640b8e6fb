"""Bringing the learner's weights to the actor, with proof that they arrived."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import pack
from agentgym.policies.transformers import TransformersPolicy
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

TOLERANCE = 1e-3  # nats


class Teaches(Protocol):
    version: int

    def logprobs(self, packed: Any) -> Any: ...


class SharedWeights:
    """The learner trains the actor's own model in place: a push only drops what was computed with the old weights.

    It ends with a canary: the actor must give a fixed prompt the learner's log-probabilities, or the push fails.
    """

    def __init__(self, policy: TransformersPolicy, canary: str = "Which country is it?") -> None:
        self.policy = policy
        self.canary = policy.chat.open([{"role": "user", "content": canary}])

    async def push(self, learner: Teaches) -> None:
        self.policy.new_weights(learner.version)
        tree = TurnTree("canary", Task("canary", ""))
        tree.add(Turn(0, None, "env", 0, ids=self.canary, sampled=[False] * len(self.canary)))
        learnt = learner.logprobs(pack([tree], len(self.canary))[0]).float().cpu().numpy()
        answered = (await self.policy.score(self.canary)).logprobs.float().cpu().numpy()
        gap = float(np.abs(learnt - answered).max())
        if not gap <= TOLERANCE:
            raise AgentGymError(
                f"the actor does not answer with the weights of learner step {learner.version}: its log-probabilities "
                f"differ by {gap:.3g} nats. Training on would be off-policy unnoticed"
            )
