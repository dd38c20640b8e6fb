"""TRUSTEE's curriculum: tasks get harder while the policy earns much, and easier while it earns little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.rollout import Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import TurnTree, total_reward

LEAST, MOST = 1.0, 100.0
NEAREST = 16  # tasks, of which one is drawn


class Difficulty:
    """A scalar D in [1, 100] that follows the mean reward of each batch: ``delta`` up where it is above ``high``, down below ``low``.

    ``write(D, lineage)`` makes a task, such as `agentgym.envs.simulated.simulator.Simulator.write`. Episodes without a verdict, such as
    aborted simulations, are left out of the mean; a batch without any leaves D as it is [R].

    Source: Democratizing Tool Learning with Environments Fully Simulated by a Free 8B Language Model (TRUSTEE), arXiv 2604.17739: the
    rule and its constants, for rewards in {-1, 0, 1} [S-2nd]; that it starts at 1 [R].
    """

    def __init__(
        self,
        write: Callable[[float, Lineage], Task],
        seed: int = 0,
        *,
        start: float = LEAST,
        delta: float = 3.0,
        low: float = 0.0,
        high: float = 0.5,
    ) -> None:
        if not (LEAST <= start <= MOST and delta > 0 and low <= high):
            wrong = f"{start}, {delta}, {low} and {high}"
            raise AgentGymError(f"Difficulty needs 1 <= start <= 100, delta > 0 and low <= high, not {wrong}")
        self.write, self.seed, self.delta, self.low, self.high = write, seed, delta, low, high
        self.difficulty = float(start)
        self.drawn = 0
        self._mean = float("nan")

    def draw(self, n: int) -> list[Start]:
        numbers = range(self.drawn, self.drawn + n)
        self.drawn += n
        tasks = [self.write(self.difficulty, Lineage.of(self.seed, "difficulty", number)) for number in numbers]
        return [Start(task, {"difficulty": self.difficulty}) for task in tasks]

    def observe(self, trees: Sequence[TurnTree]) -> None:
        rewards = [reward for tree in trees for leaf in tree.leaves() if (reward := total_reward(leaf)) is not None]
        self._mean = float(np.mean(rewards)) if rewards else float("nan")
        change = (self._mean > self.high) - (self._mean < self.low)
        self.difficulty = min(MOST, max(LEAST, self.difficulty + self.delta * change))

    def admit(self, tree: TurnTree) -> str | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"difficulty": self.difficulty, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.difficulty, self.drawn = state["difficulty"], state["drawn"]

    def metrics(self) -> dict[str, float]:
        return {"difficulty": self.difficulty, "difficulty_reward": self._mean}


def difficulty_of(tasks: Sequence[Task], seed: int = 0, **settings: Any) -> Difficulty:
    """`Difficulty` over tasks that are there already, for a recipe: each has its difficulty in its ``data``."""
    if missing := [task.id for task in tasks if "difficulty" not in task.data]:
        raise AgentGymError(f"{len(missing)} tasks have no difficulty in their data, such as {missing[0]}: choose another environment")

    def nearest(difficulty: float, lineage: Lineage) -> Task:
        return lineage.rng().choice(sorted(tasks, key=lambda task: abs(task.data["difficulty"] - difficulty))[:NEAREST])

    return Difficulty(nearest, seed, **settings)
