"""The states that steps start from."""

from __future__ import annotations

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Ints
from agentgym.trainers.credit.contrasts import joined
from agentgym.trainers.credit.keys import Match
from agentgym.trainers.credit.steps import Steps
from agentgym.turn import Turn, TurnTree


def states_of(steps: Steps, match: Match) -> Ints:
    """A number for the state that each step starts from, the same for states of one task that match. Shape (N,)."""
    keys = [_key(turn, tree) for turn, tree in zip(steps.turns, steps.trees, strict=True)]
    found = np.zeros(len(keys), dtype=np.int64)
    bounds = np.flatnonzero(np.diff(steps.task)) + 1  # rows of one task stand together
    for first, last in zip([0, *bounds], [*bounds, len(keys)], strict=True):
        found[first:last] = match(keys[first:last])
    return joined(steps.task, found)


def _key(turn: Turn, tree: TurnTree) -> str:
    before = turn.parent
    while before is not None and before.partial:
        before = before.parent
    assert before is not None
    if before.key is None:
        raise AgentGymError(
            f"task {tree.task.id}: there is no state key after turn {before.index}, by which steps are compared: "
            "let AgentEnv.key() give one"
        )
    return before.key
