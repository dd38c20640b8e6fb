"""Bringing the learner's weights to the actor, with proof that they arrived."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agentgym.chat import Chat
from agentgym.errors import AgentGymError
from agentgym.pack import pack
from agentgym.policies.transformers import TransformersPolicy
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1  # nats: in float32, and where the learner or the actor multiplies in 16 bits
CANARY = "Which country is it?"


class Teaches(Protocol):
    @property
    def version(self) -> int: ...

    def logprobs(self, packed: Any) -> Any: ...
    def weights(self) -> dict[str, Any]:
        """Those that train, by their names, whole."""


class SharedWeights:
    """The learner trains the actor's own model in place: a push only drops what was computed with the old weights.

    It ends with a canary: the actor must give a fixed prompt the learner's log-probabilities, or the push fails.
    """

    def __init__(self, policy: TransformersPolicy) -> None:
        self.policy = policy
        self.model = policy.model  # for the learner

    async def push(self, learner: Teaches) -> None:
        self.policy.new_weights(learner.version)
        await answers_as_learnt(self.policy, learner)


class CopiedWeights:
    """The learner trains a copy of the actor's model, and a push copies it back: between pushes the actor keeps its old weights.

    What does not train is in both models once. The actor keeps its own precision. Its old weights are in every checkpoint, so that a run
    which samples by old weights goes on with them. It ends with the same canary.
    """

    def __init__(self, policy: TransformersPolicy) -> None:
        self.policy = policy
        fixed = {name: weight for name, weight in policy.model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
        self._fixed = fixed.keys()
        self.model = copy.deepcopy(policy.model, {id(weight): weight for weight in fixed.values()})

    async def push(self, learner: Teaches) -> None:
        self.policy.model.load_state_dict(learner.weights(), strict=False)
        self.policy.new_weights(learner.version)
        await answers_as_learnt(self.policy, learner)

    def state_dict(self) -> dict[str, Any]:
        state = self.policy.model.state_dict()
        return {"model": {name: weight for name, weight in state.items() if name not in self._fixed}, "version": self.policy.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.model.load_state_dict(state["model"], strict=False)
        self.policy.new_weights(state["version"])

    def metrics(self) -> dict[str, float]:
        return {"actor_version": float(self.policy.version)}


async def answers_as_learnt(policy: TransformersPolicy, learner: Teaches) -> None:
    """Raises `AgentGymError` unless the policy gives a fixed prompt the learner's log-probabilities."""
    canary = Canary.of(policy.chat, learner)
    half = getattr(learner, "half", False) or any(weight.dtype.itemsize == 2 for weight in policy.model.parameters())
    canary.hear((await policy.score(canary.ids)).logprobs, HALF_TOLERANCE if half else TOLERANCE)


@dataclass(frozen=True)
class Canary:
    """A fixed prompt, and what the learner's weights at ``version`` say of it: log-probabilities, shape (T,)."""

    ids: list[int]
    learnt: NDArray[np.float32]
    version: int

    @classmethod
    def of(cls, chat: Chat, learner: Teaches) -> Canary:
        ids = cls.prompt(chat)
        tree = TurnTree("canary", Task("canary", ""))
        tree.add(Turn(0, None, "env", 0, ids=ids))
        return cls(ids, learner.logprobs(pack([tree], len(ids))[0]).float().cpu().numpy(), learner.version)

    @staticmethod
    def prompt(chat: Chat) -> list[int]:
        return chat.open([{"role": "user", "content": CANARY}])

    def hear(self, answered: Any, tolerance: float = TOLERANCE, who: str = "the actor") -> float:
        """The largest difference, in nats. Raises `AgentGymError` where it is above ``tolerance``."""
        gap = float(np.abs(self.learnt - answered.float().cpu().numpy()).max())
        if not gap <= tolerance:
            raise AgentGymError(
                f"{who} does not answer with the weights of learner step {self.version}: its log-probabilities "
                f"differ by {gap:.3g} nats. Training on would be off-policy unnoticed"
            )
        return gap
