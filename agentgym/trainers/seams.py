"""What plugs into the loop. Plain objects; every stateful one has ``state_dict`` and ``load_state_dict``.

The fifth seam, where rollouts are spent, is `agentgym.expand.Expander`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.rollout import Start
from agentgym.turn import TurnTree

State = dict[str, Any]
Metrics = dict[str, float]


@runtime_checkable
class Stateful(Protocol):
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...
    def metrics(self) -> Metrics: ...


class Source(Stateful, Protocol):
    """Which task comes next."""

    def draw(self, n: int) -> list[Start]: ...
    def observe(self, trees: Sequence[TurnTree]) -> None:
        """All trees of a step, once its last was played; ``admit`` may have been asked about each before."""

    def admit(self, tree: TurnTree) -> str | None:
        """None: train on it; else why it is dropped."""


@runtime_checkable
class Hosts(Protocol):
    """A source whose tasks need an environment beside the training's."""

    def host(self, make_env: Callable[[], AgentEnv]) -> Callable[[], AgentEnv]:
        """What makes an environment that plays both."""


class Credit(Stateful, Protocol):
    """Writes streams over the turns of a batch of trees: ``advantage``, or those that its attribute ``writes`` names.

    ``trained`` says how much each token counts; where it is not written, those count that the policy sampled in episodes with a
    verdict. ``models`` has the training's own, the learner as "learner" and the chat format as "chat". One that can be asked about each
    task's trees by themselves, and then writes what it would have written on the whole batch, says ``apart = True``; one that asks the
    learner for a ``gradient`` says ``gradients = True``.
    """

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None: ...


def asked(*plugins: Any) -> dict[str, Callable[[Any], Any]]:
    """The models that plug-ins cannot do without, from their attributes ``models``: by name, what makes each from the policy's model.

    One that is no copy of it, such as a teacher, must be given: what stands there in its place raises `AgentGymError`.
    """
    return {name: make for plugin in plugins for name, make in getattr(plugin, "models", {}).items()}


def given(name: str) -> Callable[[Any], Any]:
    """For ``models`` of a plug-in: a model that nothing but the training's author can provide."""

    def missing(model: Any) -> Any:
        raise AgentGymError(f"a model {name!r} is needed: give it among the models of the training or the recipe")

    return missing


def apart(plugin: Any) -> bool:
    """Whether a credit, a divisor or an expander says of itself that what it does with one task's trees hangs on no other's."""
    return bool(getattr(plugin, "apart", False))


def stacked(credit: Credit) -> Iterator[Credit]:
    """A credit and those that it adds to, outermost first."""
    layer: Credit | None = credit
    while layer is not None:
        yield layer
        layer = getattr(layer, "credit", None)


class Heads(Protocol):
    """What a forward pass gives an objective, for each token of a pack."""

    @property
    def logprobs(self) -> Tensor:
        """Log-probability of each token that carries weight, shape (T,), with gradient; 0 elsewhere."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the distribution that each token with weight was drawn from, in nats, shape (T,)."""

    def at(self, ids: Tensor) -> Tensor:
        """Log-probabilities of ``ids`` in place of each token that carries weight, shapes (T, k) to (T, k); 0 elsewhere."""

    def gradient_norms(self, values: Tensor) -> Tensor:
        """Squared norm of each value's gradient in the weights, shape (n,) to shape (n,): a backward pass for each."""


class Objective(Protocol):
    """A pure function on one pack. Returns a sum: the weights are normalised already, so packs simply add up.

    ``needs`` names heads beyond ``logprobs``, and streams beyond weight. "paths" stands for whole trees in each pack, with
    ``logprobs`` of all their sampled tokens. What nothing gives is refused. An objective may be `Stateful` or `Paced`, and one that wraps
    another calls it ``objective``. One that measures a pack, so that it matters what lies in one, says ``apart = False``.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, heads: Heads, packed: Packed) -> tuple[Tensor, Metrics]: ...


@runtime_checkable
class Paced(Protocol):
    """An objective that says how far an update may go."""

    def pace(self) -> float:
        """The factor on the learning rate of the step that ends an update; asked once, after all packs of the update."""


def layers(objective: Objective) -> Iterator[Objective]:
    """An objective and those that it wraps, outermost first."""
    layer: Objective | None = objective
    while layer is not None:
        yield layer
        layer = getattr(layer, "objective", None)


def pace(objective: Objective) -> float:
    return math.prod(layer.pace() for layer in layers(objective) if isinstance(layer, Paced))


class Schedule(Stateful, Protocol):
    """The only place that knows staleness."""

    async def admit(self, version: int) -> bool: ...
    def select(self, ready: list[TurnTree], version: int) -> list[TurnTree] | None: ...
    def push_due(self, learner_step: int) -> bool: ...


@runtime_checkable
class Ahead(Protocol):
    """A schedule under which other rollouts go on while the learner learns."""

    unit: int  # starts that one rollout plays together

    def room(self, batch: int, running: int, waiting: int) -> int:
        """How many starts may begin, where a step learns ``batch``, so many are played, and so many wait to be learnt or are."""

    def is_stale(self, tree: TurnTree) -> bool:
        """Whether what was sampled of it so far is too old to be trained on."""


class Learner(Protocol):
    heads: frozenset[str]  # what objectives may need of its forward pass

    @property
    def version(self) -> int: ...
    def logprobs(self, packed: Packed) -> Tensor: ...
    def accumulate(self, packed: Packed, objective: Objective) -> Metrics: ...
    def accumulate_all(self, packs: Sequence[Packed], objective: Objective) -> list[Metrics]:
        """As ``accumulate`` on each pack; a learner of many processes deals them out."""

    def gradient(self, packs: Sequence[Packed], objective: Objective) -> Tensor:
        """The flat gradient of an objective, to look at: shape (parameters,). Nothing may be accumulated already, nor is after it."""

    def discard(self) -> None:
        """Forget what was accumulated: the step that it belonged to has failed."""

    def step(self, pace: float = 1.0) -> Metrics:
        """Apply what was accumulated, at ``pace`` times the learning rate."""

    def weights(self) -> State: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


class Sync(Protocol):
    async def push(self, learner: Learner) -> None:
        """Bring the learner's weights to the actor; fails loudly unless the actor then answers with them.

        One that leaves the actor older weights between pushes is `Stateful`: they are in every checkpoint.
        """


@runtime_checkable
class Hook(Stateful, Protocol):
    """What else happens to the learner's weights, once a step has been learnt and pushed."""

    async def begin(self, run: Any) -> None:
        """Before the first step of ``run``, or the first after a resume: then the hook has its state already."""

    async def after_step(self, run: Any, step: int) -> Metrics:
        """``run`` is the `agentgym.trainers.training.Training`; ``step`` counts from 1. It pushes what it changes."""
