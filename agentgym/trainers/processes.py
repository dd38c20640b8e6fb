"""One learner in many processes: the first runs the loop, and the others learn with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.learner import TorchLearner, widen
from agentgym.trainers.seams import Metrics, Objective, State
from agentgym.turn import Turn, path, walk

WAIT = timedelta(days=7)  # for the first process: rollouts take as long as they take


def shard(model: Any, device: str) -> None:
    """Leave each process its part of every weight (FSDP2), before a `TorchLearner` is made of ``model``. Gradients are summed.

    Every process must have the same weights.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    widen(model)  # shards keep the precision that they are cut in
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in [*(module for module in model.modules() if type(module).__name__ in names), model]:
        part = fully_shard(module, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo sums, and knows no sum with a factor


class Together:
    """A `TorchLearner` in each process of the default group. The first process calls the methods, and the others `follow`.

    Packs are dealt out and their gradients summed: weights are normalised over the whole batch before it is packed, so the sum is
    that of one process, however many packs each has. All begin with the weights of the first, or with their parts after `shard`:
    then every pass needs all processes, and whoever has no pack left takes the passes of another with a factor of 0.
    """

    def __init__(self, learner: TorchLearner) -> None:
        self.learner = learner
        self.processes = dist.get_world_size()
        self.first = dist.get_rank() == 0
        self._weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
        self.sharded = isinstance(self._weights[0], DTensor)
        self.heads = learner.heads - {"gradient_norms"} if self.sharded else learner.heads
        self._objects: Any = dist.new_group(backend="gloo", timeout=WAIT)  # what is no tensor goes by way of the CPU
        self._lock = threading.RLock()  # all processes must do the same things in the same order
        if not self.sharded:
            for tensor in learner.model.state_dict().values():
                dist.broadcast(tensor, 0)

    @property
    def version(self) -> int:
        return self.learner.version

    @property
    def half(self) -> bool:
        return self.learner.half

    def logprobs(self, packed: Packed) -> Tensor:
        found: Tensor = self._pass("logprobs", packed)
        return found

    def topk(self, packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._pass("topk", packed, k)
        return found

    def gradient(self, packs: Sequence[Packed], objective: Objective) -> Tensor:
        if self.sharded:
            raise AgentGymError("a gradient is to be looked at whole, and this learner has shards: train without learner.sharded")
        return self.learner.gradient(packs, objective)

    def accumulate(self, packed: Packed, objective: Objective) -> Metrics:
        return self.accumulate_all([packed], objective)[0]

    def accumulate_all(self, packs: Sequence[Packed], objective: Objective) -> list[Metrics]:
        weighty = [packed for packed in packs if "weight" not in packed.streams or packed.streams["weight"].any()]
        found = iter(self._all("_accumulate", (objective,), (objective, [_without_text(packed) for packed in weighty])))
        taught = set(map(id, weighty))
        return [next(found) if id(packed) in taught else {} for packed in packs]

    def discard(self) -> None:
        """In this process: what the others do after a failure is theirs, for they may be in the midst of it."""
        self.learner.discard()

    def step(self, pace: float = 1.0) -> Metrics:
        found: Metrics = self._all("_step", (pace,))
        return found

    def weights(self) -> State:
        found: State = self._all("_whole_weights") if self.sharded else self.learner.weights()
        return found

    def state_dict(self) -> State:
        found: State = self._all("_whole_state") if self.sharded else self.learner.state_dict()
        return found

    def load_state_dict(self, state: State) -> None:
        self.learner.refuse_other(state)  # before any process has changed
        self._all("_load", (tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), state),), (state,))

    def release(self) -> None:
        """The others' `follow` ends."""
        dist.broadcast_object_list([None], 0, group=self._objects)

    def follow(self) -> None:
        """Do what the first process does, until it releases this one."""
        heard: list[Any] = [None]
        while True:
            try:
                dist.broadcast_object_list(heard, 0, group=self._objects)
            except RuntimeError as error:
                raise AgentGymError("the first process has ended: it says why") from error
            if heard[0] is None:
                return
            name, arguments = heard[0]
            getattr(self, name)(*arguments)

    def _all(self, name: str, said: tuple[Any, ...] = (), own: tuple[Any, ...] | None = None) -> Any:
        """Every process calls the method, the others with what is ``said``."""
        with self._lock:
            dist.broadcast_object_list([(name, said)], 0, group=self._objects)
            return getattr(self, name)(*(said if own is None else own))

    def _pass(self, name: str, packed: Packed, *arguments: Any) -> Any:
        said = (name, replace(packed, turns=()), *arguments)
        return self._all("_pass_alone", said) if self.sharded else self._pass_alone(*said)

    def _pass_alone(self, name: str, *arguments: Any) -> Any:
        return getattr(self.learner, name)(*arguments)

    def _accumulate(self, objective: Objective, packs: Sequence[Any] = ()) -> list[Metrics]:
        """The metrics of all packs, in their order; at the others, of none."""
        dealt: list[Any] = [None]
        hands = [[(packed, 1.0) for packed in packs[place :: self.processes]] for place in range(self.processes)]
        if self.sharded:
            for hand in hands[len(packs) % self.processes or self.processes :]:
                hand.append((packs[0], 0.0))
        dist.scatter_object_list(dealt, hands if self.first else None, 0, group=self._objects)
        mine: Any
        try:
            mine = [self.learner.accumulate(_with_trees(sent), objective, factor) for sent, factor in dealt[0]]
        except AgentGymError as error:
            if self.sharded:  # the others wait within a pass that this one will not make: its end is theirs
                raise
            mine = error
        gathered: list[Any] = [None] * self.processes
        dist.all_gather_object(gathered, mine, group=self._objects)
        for found in gathered:
            if isinstance(found, AgentGymError):
                raise found
        return [gathered[number % self.processes][number // self.processes] for number in range(len(packs))]

    def _step(self, pace: float) -> Metrics:
        if not self.sharded:
            self._sum_gradients()
        return self.learner.step(pace)

    def _sum_gradients(self) -> None:
        """A weight without a gradient anywhere keeps none, for AdamW moves those that have one of 0."""
        touched = torch.tensor([weight.grad is not None for weight in self._weights], dtype=torch.int32, device=self._weights[0].device)
        dist.all_reduce(touched)
        for weight in (weight for weight, count in zip(self._weights, touched.tolist(), strict=True) if count):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)

    def _whole_weights(self) -> State:
        return self._whole(self.learner.weights())

    def _whole_state(self) -> State:
        return self._whole(self.learner.state_dict())

    def _whole(self, state: State) -> State:
        def gather(part: DTensor) -> Tensor | None:
            whole = part.full_tensor()
            return whole.cpu() if self.first else None

        found: State = tree_map_only(DTensor, gather, state)
        return found

    def _load(self, state: State) -> None:
        """``state`` has tensors at the first process alone; each arrives whole, and each process keeps its part."""
        device = self._weights[0].device

        def arrive(tensor: Any, weight: Tensor) -> Any:
            whole = tensor.to(device) if self.first else torch.empty_like(tensor, device=device)
            dist.broadcast(whole, 0)
            if isinstance(weight, DTensor) and whole.shape == weight.shape:
                return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
            return whole

        own, saved = self.learner.weights(), state["optimizer"]
        held = [weight for group in self.learner.optimizer.param_groups for weight in group["params"]]
        model = {name: arrive(tensor, own[name]) for name, tensor in state["model"].items()}
        moments = {place: {name: arrive(tensor, held[place]) for name, tensor in of.items()} for place, of in saved["state"].items()}
        self.learner.load_state_dict({**state, "model": model, "optimizer": {**saved, "state": moments}})


def _without_text(packed: Packed) -> tuple[Packed, list[tuple[Any, ...]], list[int]]:
    """A pack, the trees that its turns are of as flat rows, and the rows of its own turns. Texts, snapshots and caches stay here."""
    roots = dict.fromkeys(path(turn)[0] for turn in packed.turns)
    number: dict[Turn | None, int] = {turn: place for place, turn in enumerate(turn for root in roots for turn in walk(root))}
    rows = [(number.get(turn.parent), turn.end, turn.executed, turn.partial, turn.restarts, turn.reward) for turn in number if turn]
    return replace(packed, turns=()), rows, [number[turn] for turn in packed.turns]


def _with_trees(sent: tuple[Packed, list[tuple[Any, ...]], list[int]]) -> Packed:
    packed, rows, own = sent
    turns: list[Turn] = []
    for parent, end, executed, partial, restarts, reward in rows:
        turn = Turn(len(turns), None if parent is None else turns[parent], "", 0, end=end, executed=executed, partial=partial)
        turn.restarts, turn.reward = restarts, reward
        if turn.parent is not None:
            turn.parent.children.append(turn)
        turns.append(turn)
    return replace(packed, turns=[turns[place] for place in own])
