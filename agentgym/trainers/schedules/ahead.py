"""Bounded staleness: rollouts go on while the learner learns, and nothing is begun that would be too old to be learnt."""

from __future__ import annotations

from typing import Any

from agentgym.errors import AgentGymError
from agentgym.turn import TurnTree


class BoundedStaleness:
    """What is learnt was sampled by weights that are at most ``staleness`` pushes old, token by token; 0 is on-policy.

    Admission: starts that are played, waiting or being learnt are never more than ``staleness + 1`` batches, and no more than ``most``
    are played at once. That is AReaL's capacity, ``min(most - running, (staleness + version + 1) batch - (accepted + running))``, with
    all before this version subtracted (arXiv 2505.24298 [S-code]). What grows too old all the same, because others were faster, is given
    up while it is played, and left out where it has ended [R]: the more are played than servers and environments can take, the more
    is given up. Weights that come in the middle of an action go on with it: each token has its version.

    ``unit``: starts that one rollout plays together, such as those that a source repeats.
    """

    def __init__(self, staleness: int, most: int = 1024, unit: int = 1) -> None:
        if staleness < 0 or most < 1 or unit < 1:
            raise AgentGymError(f"staleness is {staleness}, most {most} and unit {unit}: at least 0 pushes, 1 start and 1 start")
        self.staleness, self.most, self.unit = staleness, most, unit
        self.pushed = [0]  # the learner's versions at the last pushes, as many as may still be trained on
        self._oldest = self._evicted = 0

    def room(self, batch: int, running: int, waiting: int) -> int:
        return min(self.most - running, (self.staleness + 1) * batch - running - waiting)

    def is_stale(self, tree: TurnTree) -> bool:
        return oldest(tree, self.pushed[-1]) < self.pushed[0]

    async def admit(self, version: int) -> bool:
        return True

    def select(self, ready: list[TurnTree], version: int) -> list[TurnTree] | None:
        fresh = [tree for tree in ready if not self.is_stale(tree)]
        ages = [sum(oldest(tree, version) < pushed for pushed in self.pushed) for tree in fresh]
        self._oldest, self._evicted = max(ages, default=0), self._evicted + len(ready) - len(fresh)
        return fresh

    def push_due(self, learner_step: int) -> bool:
        self.pushed = [*self.pushed, learner_step][-self.staleness - 1 :]
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"pushed": list(self.pushed), "evicted": self._evicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pushed, self._evicted = list(state["pushed"]), state["evicted"]

    def metrics(self) -> dict[str, float]:
        """``staleness``: pushes since the oldest token of the last batch; ``evicted``: trees that were too old, so far."""
        return {"staleness": float(self._oldest), "evicted": float(self._evicted)}


def oldest(tree: TurnTree, newest: int) -> int:
    """The version of its oldest sampled token; ``newest`` where nothing was sampled."""
    return min((version for turn in tree.turns for version, _ in turn.versions), default=newest)
