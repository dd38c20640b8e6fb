"""One row for each action of a forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agentgym.pack import Floats, Ints
from agentgym.trainers.credit.groups import by_task
from agentgym.trainers.credit.verdicts import judged
from agentgym.turn import Turn, TurnTree


@dataclass(frozen=True)
class Steps:
    """The N actions on episodes with a verdict, each once however many episodes share it, before those that follow it.

    An action that was written in segments is one step. ``score`` is the undiscounted reward of the whole episode and ``returns``
    the discounted sum from the step on, both the mean over the ``episodes`` through the step [R]. Arrays have shape (N,).
    """

    turns: list[Turn]  # where each action ends
    trees: list[TurnTree]
    task: Ints  # a number for each task
    previous: Ints  # the row of the step before it in its episode, -1 for a first one
    number: Ints  # of steps before it
    score: Floats
    returns: Floats
    episodes: Ints
    rewards: Floats  # of each episode of the forest, shape (E,)
    rewarded: Ints  # the task of each episode, shape (E,)


@dataclass
class _Rows:
    turns: list[Turn] = field(default_factory=list)
    trees: list[TurnTree] = field(default_factory=list)
    columns: list[tuple[int, int, int, float, float, int]] = field(default_factory=list)
    rewards: list[tuple[float, int]] = field(default_factory=list)

    def add(self, tree: TurnTree, task: int, discount: float) -> None:
        rewards = judged(tree)
        self.rewards.extend((reward, task) for reward in rewards.values())
        size = len(tree.turns)
        episodes, scores, returns = [0] * size, [0.0] * size, [0.0] * size  # sums over the episodes through a turn
        for turn in reversed(tree.turns):
            here = turn.index
            if turn in rewards:
                episodes[here], scores[here] = 1, rewards[turn]
            if episodes[here]:
                returns[here] += episodes[here] * (turn.reward or 0.0)
            if (parent := turn.parent) is not None:
                episodes[parent.index] += episodes[here]
                scores[parent.index] += scores[here]
                same_step = turn.restarts or parent.partial
                returns[parent.index] += returns[here] * (1.0 if same_step else discount)
        last = [-1] * size  # the row of the last step up to a turn
        for turn in tree.turns[1:]:
            here, parent = turn.index, turn.parent
            assert parent is not None
            last[here] = before = last[parent.index]
            if episodes[here] and not turn.restarts and (not turn.partial or turn.end is not None):
                last[here] = len(self.turns)
                number = self.columns[before][2] + 1 if before >= 0 else 0
                n = episodes[here]
                self.columns.append((task, before, number, scores[here] / n, returns[here] / n, n))
                self.turns.append(turn)
                self.trees.append(tree)


def steps_of(trees: Sequence[TurnTree], discount: float) -> Steps:
    """All trees of one task have its number; rewards that are not finite, and unlike tasks of one id, are refused."""
    rows = _Rows()
    for task, of_task in enumerate(by_task(trees).values()):
        for tree in of_task:
            rows.add(tree, task, discount)
    numbers = np.array(rows.columns, dtype=np.float64).reshape(-1, 6).T
    task_of, previous, number, episodes = numbers[[0, 1, 2, 5]].astype(np.int64)
    rewards = np.array(rows.rewards, dtype=np.float64).reshape(-1, 2).T
    score, returns = numbers[3:5]
    return Steps(rows.turns, rows.trees, task_of, previous, number, score, returns, episodes, rewards[0], rewards[1].astype(np.int64))
