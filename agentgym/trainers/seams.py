"""What plugs into the loop. Plain objects; every stateful one has ``state_dict`` and ``load_state_dict``.

The fifth seam, where rollouts are spent, is `agentgym.expand.Expander`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from agentgym.pack import Packed
from agentgym.rollout import Start
from agentgym.turn import TurnTree

State = dict[str, Any]
Metrics = dict[str, float]


class Stateful(Protocol):
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...
    def metrics(self) -> Metrics: ...


class Source(Stateful, Protocol):
    """Which task comes next."""

    def draw(self, n: int) -> list[Start]: ...
    def observe(self, trees: Sequence[TurnTree]) -> None: ...
    def admit(self, tree: TurnTree) -> str | None:
        """None: train on it; else why it is dropped."""


class Credit(Stateful, Protocol):
    """Writes streams, such as ``advantage``, over the turns of a batch of trees."""

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None: ...


class Heads(Protocol):
    """What a forward pass gives an objective, for each token of a pack."""

    @property
    def logprobs(self) -> Tensor:
        """Log-probability of each token that carries weight, shape (T,), with gradient; 0 elsewhere."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the distribution that each token with weight was drawn from, in nats, shape (T,)."""


class Objective(Protocol):
    """A pure function on one pack. Returns a sum: the weights are normalised already, so packs simply add up.

    ``needs`` names the heads beyond ``logprobs``, such as {"entropy"}; a learner that lacks one refuses the objective.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]: ...


class Schedule(Stateful, Protocol):
    """The only place that knows staleness."""

    async def admit(self, version: int) -> bool: ...
    def select(self, ready: list[TurnTree], version: int) -> list[TurnTree] | None: ...
    def push_due(self, learner_step: int) -> bool: ...


class Learner(Protocol):
    version: int

    def logprobs(self, packed: Packed) -> Tensor: ...
    def accumulate(self, packed: Packed, objective: Objective) -> Metrics: ...
    def step(self) -> Metrics: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


class Sync(Protocol):
    async def push(self, learner: Learner) -> None:
        """Bring the learner's weights to the actor; fails loudly unless the actor then answers with them."""
