"""What credits have in common that compare actions: each says the advantages of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.grpo import per_kilotoken
from agentgym.trainers.credit.steps import Steps, steps_of
from agentgym.turn import Turn, TurnTree, begun

SCALES = ("none", "std")


class StepCredit(Stateless):
    """Advantages of the actions of a batch, from returns with ``discount``; ``scale`` is that of `contrasts`.

    An action has one advantage on all tokens of it that the policy sampled. Labels and episodes without a verdict have 0.

    Metrics: ``reward``, the mean over episodes; ``groups_with_signal``, the share of tasks that teach anything;
    ``steps_with_signal``, that of actions; ``contrasts_per_kilotoken``, tasks that do for each thousand sampled tokens.
    """

    apart = True

    def __init__(self, discount: float, scale: str) -> None:
        if not 0 <= discount <= 1:
            raise AgentGymError(f"discount is {discount}: it must lie between 0 and 1")
        if scale not in SCALES:
            raise AgentGymError(f"scale is {scale!r}: choose one of {', '.join(SCALES)}")
        self.discount, self.scale = discount, scale
        self._metrics: dict[str, float] = {}

    def advantages(self, steps: Steps) -> Floats:
        """Shape (N,)."""
        raise NotImplementedError

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        steps = steps_of(trees, self.discount)
        advantages = self.advantages(steps)
        write(trees, steps, advantages)
        taught = len(np.unique(steps.task[advantages != 0]))
        self._metrics = {
            "reward": float(steps.rewards.mean()) if len(steps.rewards) else float("nan"),
            "groups_with_signal": taught / max(1, len({tree.task.id for tree in trees})),
            "steps_with_signal": float((advantages != 0).mean()) if len(advantages) else 0.0,
            "contrasts_per_kilotoken": per_kilotoken(taught, trees),
        }

    def metrics(self) -> dict[str, float]:
        return self._metrics


def write(trees: Sequence[TurnTree], steps: Steps, advantages: Floats) -> None:
    """Write each step's advantage on its sampled tokens; a segment that several actions share gets the mean of theirs."""
    given: dict[Turn, tuple[float, int]] = {}
    for turn, advantage, episodes in zip(steps.turns, advantages.tolist(), steps.episodes.tolist(), strict=True):
        assert turn.parent is not None
        for part in (turn, *begun(turn.parent)):
            total, n = given.get(part, (0.0, 0))
            given[part] = total + episodes * advantage, n + episodes
    for tree in trees:
        for turn in tree.turns:
            total, n = given.get(turn, (0.0, 1))
            turn.streams["advantage"] = np.where(turn.sampled, total / n, 0.0)
