"""What chance an episode has from a place where it can be continued: the predictors that steer TRACE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.policy import Prompt
from agentgym.trainers.expanders.allocation import Floats
from agentgym.turn import Turn, TurnTree, path, total_reward

SUCCESS = 0.5  # from this reward on, an episode counts as a success where outcomes are counted [R]


class Belief(NamedTuple):
    """For each anchor Beta(c v, c (1 - v)): chances of success v, and the confidence c, in rollouts; both of shape (A,)."""

    value: Floats
    confidence: Floats


class Predictor(Protocol):
    """Anchors are prompts: a tree, and the turn after which it can be continued; at the root, the task itself."""

    @property
    def cold(self) -> bool:
        """Whether it has seen too little for a task to get no rollouts on its word."""

    def predict(self, anchors: Sequence[Prompt]) -> Belief: ...
    def learn(self, trees: Sequence[TurnTree]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def metrics(self) -> dict[str, float]: ...


class TaskPosterior:
    """Beta(1 + successes, 1 + failures) of each task, whatever the prefix: the cheap baseline.

    ``decay`` below 1 forgets what an older policy did: ``alpha <- decay alpha + (1 - decay) + s n`` for a share s of n bare
    rollouts that succeeded. Source: MoPPS, arXiv 2507.04632 [S-code]; in TRACE's place [R].
    """

    cold = False  # a task that it has not seen has all chances

    def __init__(self, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise AgentGymError(f"decay is {decay}: it must lie above 0, and be 1 at most")
        self.decay = decay
        self.counts: dict[str, list[float]] = {}  # alpha, beta

    def predict(self, anchors: Sequence[Prompt]) -> Belief:
        counts = [self.counts.get(anchor.tree.task.id, [1.0, 1.0]) for anchor in anchors]
        alpha, beta = np.array(counts, dtype=np.float64).reshape(-1, 2).T
        return Belief(alpha / (alpha + beta), alpha + beta)

    def learn(self, trees: Sequence[TurnTree]) -> None:
        by_task: dict[str, list[float]] = {}
        for tree in trees:
            by_task.setdefault(tree.task.id, []).extend(bare_rewards(tree))
        for task, rewards in by_task.items():
            shares = np.clip(rewards, 0.0, 1.0)
            if len(shares):
                old = self.counts.get(task, [1.0, 1.0])
                new = (shares.sum(), (1 - shares).sum())
                self.counts[task] = [self.decay * a + 1 - self.decay + float(b) for a, b in zip(old, new, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"counts": {task: list(pair) for task, pair in self.counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {task: list(pair) for task, pair in state["counts"].items()}

    def metrics(self) -> dict[str, float]:
        return {"tasks_seen": float(len(self.counts))}


def rewards_through(tree: TurnTree) -> dict[Turn, list[float]]:
    """The rewards of the episodes through each turn. Those without a verdict are in none."""
    through: dict[Turn, list[float]] = {}
    for leaf in tree.leaves():
        if (reward := total_reward(leaf)) is not None:
            for turn in path(leaf):
                through.setdefault(turn, []).append(reward)
    return through


def prefixes(through: Mapping[Turn, Sequence[float]]) -> list[Turn]:
    """Turns inside finished episodes after which a policy acted, deepest first: where an episode can be continued again.

    Where the template rewrote history, it is the new context, not the turn that it rewrites.
    """
    inner = [turn for turn in through if turn.parent is not None and turn.end is None and not turn.partial]
    inner = [turn for turn in inner if not any(child.restarts for child in turn.children)]
    return sorted(inner, key=lambda turn: (-turn.depth, turn.index))


def bare_rewards(tree: TurnTree) -> list[float]:
    """The rewards of the rollouts from the root, without the continuations that were chosen for what they might show."""
    return first_rewards(tree.root.children)


def first_rewards(branches: Sequence[Turn]) -> list[float]:
    """The reward of the episode with which each branch began, before any fork below it. Those without a verdict are left out."""
    rewards = [total_reward(_first_end(branch)) for branch in branches]
    return [reward for reward in rewards if reward is not None]


def outcomes(rewards: Sequence[float]) -> set[bool]:
    return {reward >= SUCCESS for reward in rewards}


def _first_end(turn: Turn) -> Turn:
    while turn.children:  # the first child was there before its siblings were asked for
        turn = turn.children[0]
    return turn
