"""What every credit must keep to, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.turn import TurnTree


def check_advantages(trees: Sequence[TurnTree]) -> None:
    """Raises `AgentGymError` for an advantage that is missing, not finite, of another shape, or on a token nobody sampled."""
    for tree in trees:
        for turn in tree.turns:
            where = f"task {tree.task.id}, turn {turn.index} of tree {tree.id}"
            advantage = turn.streams.get("advantage")
            if advantage is None or advantage.shape != (len(turn.ids),):
                shape = "none" if advantage is None else f"shape {advantage.shape}"
                raise AgentGymError(f"{where}: the credit wrote {shape} as advantage of its {len(turn.ids)} tokens: one for each")
            if not np.isfinite(advantage).all():
                raise AgentGymError(f"{where}: the credit wrote an advantage that is not finite")
            if any(value and not sampled for value, sampled in zip(advantage.tolist(), turn.sampled, strict=True)):
                raise AgentGymError(f"{where}: the credit wrote an advantage on a token that nobody sampled: give those 0")
