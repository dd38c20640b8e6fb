"""Episodes of one task as one group, in whatever trees they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.task import Task
from agentgym.trainers.credit.grpo import broadcast, per_kilotoken
from agentgym.trainers.credit.verdicts import judged
from agentgym.turn import Turn, TurnTree


@dataclass(frozen=True)
class Group:
    """The n episodes of a task that have a verdict, by their last turns. ``rewards`` has shape (n,)."""

    task: Task
    trees: list[TurnTree]
    leaves: list[Turn]
    rewards: Floats


class GroupCredit(Stateless):
    """What credits have in common that compare whole episodes: each says the advantages of one group.

    A group is all episodes of one task in the batch: the episodes of its tree, or of its trees where a source such as
    `agentgym.trainers.sources.repeated.Repeated` gives several. An episode without a verdict is in no group and has advantage 0;
    a turn that several episodes share gets the mean of their advantages [R].

    Metrics: ``reward``, the mean over episodes; ``groups_with_signal``, the share of tasks that teach anything;
    ``contrasts_per_kilotoken``, their number for each thousand sampled tokens.
    """

    apart = True

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def advantages(self, group: Group) -> Floats:
        """Shape (n,), in the order of the group's episodes; n is 1 at least."""
        raise NotImplementedError

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        groups = groups_of(trees)
        contrasts = 0
        for group in groups:
            advantages = self.advantages(group) if group.leaves else np.zeros(0)
            contrasts += bool(advantages.any())
            own = dict(zip(group.leaves, advantages.tolist(), strict=True))
            for tree in group.trees:
                broadcast(tree, {leaf: own[leaf] for leaf in tree.leaves() if leaf in own})
        self._metrics = figures(trees, groups, contrasts)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def by_task(trees: Sequence[TurnTree]) -> dict[str, list[TurnTree]]:
    """The trees of each task. Raises `AgentGymError` where two tasks have one id: their rewards cannot be compared."""
    found: dict[str, list[TurnTree]] = {}
    for tree in trees:
        of_task = found.setdefault(tree.task.id, [])
        if of_task and of_task[0].task.prompt != tree.task.prompt:
            raise AgentGymError(
                f"task {tree.task.id}: turn 0 of tree {tree.id} has another prompt than that of tree {of_task[0].id}, so that their "
                "episodes are no group: give unlike tasks unlike ids"
            )
        of_task.append(tree)
    return found


def groups_of(trees: Sequence[TurnTree]) -> list[Group]:
    """One group for each task, in the order in which tasks first come. Rewards that are not finite are refused."""
    groups = []
    for of_task in by_task(trees).values():
        rewards = {leaf: reward for tree in of_task for leaf, reward in judged(tree).items()}
        groups.append(Group(of_task[0].task, of_task, list(rewards), np.array(list(rewards.values()), dtype=np.float64)))
    return groups


def figures(trees: Sequence[TurnTree], groups: Sequence[Group], contrasts: int) -> dict[str, float]:
    """The mean reward over episodes, the share of groups with ``contrasts``, and their number for each thousand sampled tokens."""
    rewards = np.concatenate([np.zeros(0), *(group.rewards for group in groups)])
    return {
        "reward": float(rewards.mean()) if len(rewards) else float("nan"),
        "groups_with_signal": contrasts / max(1, len(groups)),
        "contrasts_per_kilotoken": per_kilotoken(contrasts, trees),
    }


def scores(group: Group, metric: str) -> Floats:
    """A named figure of each episode, shape (n,), from ``Turn.metrics`` of its last turn, where its judge put it."""
    for leaf in group.leaves:
        if not math.isfinite(leaf.metrics.get(metric, math.nan)):
            raise AgentGymError(
                f"task {group.task.id}: the episode that ends in turn {leaf.index} has no finite metric {metric!r}: "
                "let AgentEnv.metrics() give it"
            )
    return np.array([leaf.metrics[metric] for leaf in group.leaves], dtype=np.float64)
