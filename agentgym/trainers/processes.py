"""One learner in many processes: the first runs the loop, and the others learn with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.seams import Metrics, Objective, State
from agentgym.turn import Turn, path, walk

WAIT = timedelta(days=7)  # for the first process: rollouts take as long as they take


class Together:
    """A `TorchLearner` in each process of the default group. The first process calls the methods, and the others `follow`.

    Packs are dealt out, and the step sums their gradients: weights are normalised over the whole batch before it is packed, so
    the sum is that of one process, however many packs each has. All begin with the weights of the first.
    """

    def __init__(self, learner: TorchLearner) -> None:
        self.learner = learner
        self.heads = learner.heads
        self.processes = dist.get_world_size()
        self.first = dist.get_rank() == 0
        self._objects: Any = dist.new_group(backend="gloo", timeout=WAIT)  # what is no tensor, by way of the CPU
        self._weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
        for tensor in learner.model.state_dict().values():
            dist.broadcast(tensor, 0)

    @property
    def version(self) -> int:
        return self.learner.version

    @property
    def half(self) -> bool:
        return self.learner.half

    # What the first process finds by itself

    def logprobs(self, packed: Packed) -> Tensor:
        return self.learner.logprobs(packed)

    def topk(self, packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
        return self.learner.topk(packed, k)

    def gradient(self, packs: Sequence[Packed], objective: Objective) -> Tensor:
        return self.learner.gradient(packs, objective)

    def state_dict(self) -> State:
        return self.learner.state_dict()

    # What all do

    def accumulate(self, packed: Packed, objective: Objective) -> Metrics:
        return self.accumulate_all([packed], objective)[0]

    def accumulate_all(self, packs: Sequence[Packed], objective: Objective) -> list[Metrics]:
        self._say("_accumulate", objective)
        return self._accumulate(objective, [_without_text(packed) for packed in packs])

    def step(self, pace: float = 1.0) -> Metrics:
        self._say("_step", pace)
        return self._step(pace)

    def load_state_dict(self, state: State) -> None:
        self.learner.load_state_dict(state)  # refused here, or by none
        self._say("_load", tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), state))
        self._load(state)

    def release(self) -> None:
        """The others' `follow` ends."""
        self._say("")

    def follow(self) -> None:
        """Do what the first process does, until it releases this one."""
        while call := self._hear():
            name, arguments = call
            getattr(self, name)(*arguments)

    def _say(self, name: str, *arguments: Any) -> None:
        dist.broadcast_object_list([(name, arguments) if name else None], 0, group=self._objects)

    def _hear(self) -> Any:
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, 0, group=self._objects)
        return heard[0]

    def _accumulate(self, objective: Objective, packs: Sequence[Any] = ()) -> list[Metrics]:
        """The metrics of all packs, in their order; at the others, of none."""
        count = self.processes
        dealt: list[Any] = [None]
        dist.scatter_object_list(dealt, [packs[place::count] for place in range(count)] if self.first else None, 0, group=self._objects)
        mine: Any
        try:
            mine = self.learner.accumulate_all([_with_trees(sent) for sent in dealt[0]], objective)
        except AgentGymError as error:
            mine = error
        gathered: list[Any] = [None] * count
        dist.all_gather_object(gathered, mine, group=self._objects)
        for found in gathered:
            if isinstance(found, AgentGymError):
                raise found
        return [gathered[number % count][number // count] for number in range(len(packs))]

    def _step(self, pace: float) -> Metrics:
        """A weight without a gradient anywhere keeps none, for AdamW moves those that have one of 0."""
        device = self._weights[0].device
        touched = torch.tensor([weight.grad is not None for weight in self._weights], dtype=torch.int32, device=device)
        dist.all_reduce(touched)
        for weight in (weight for weight, count in zip(self._weights, touched.tolist(), strict=True) if count):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)
        return self.learner.step(pace)

    def _load(self, state: State) -> None:
        tensors, _ = tree_flatten(state)
        device = self._weights[0].device
        if not self.first:
            state = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device=device), state)
            tensors, _ = tree_flatten(state)
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor.to(device) if self.first else tensor, 0)
        if not self.first:
            self.learner.load_state_dict(state)


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
