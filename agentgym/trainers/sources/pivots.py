"""Demonstrations for PivotRL: all of them first, then those with pivots, until too many of these are pivots no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.rollout import Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.trainers.credit.tries import PIVOT, equivalents
from agentgym.trainers.credit.verdicts import alike
from agentgym.trainers.demonstrations import Replay, demonstrated
from agentgym.trainers.sources.uniform import uniform_where
from agentgym.turn import TurnTree


class Pivots:
    """Passes over ``demonstrations`` tasks drawn by chance, or over all tasks of a `Replay`, each in batches of about equal size.

    The first pass profiles: every turn is tried, with the policy as it is, and what is a pivot trains at once [R]. Later ones draw only
    tasks with pivots, and name these in the tag ``pivots`` of the start. When more than the share ``renew`` of the groups of a pass had
    equal rewards, the next one profiles anew: the recipe does so when training saturates [S2]; the share is ours [R].

    Which turns are pivots is read from the last batch when it is asked for: credit notes it after `observe`. Source: PivotRL,
    arXiv 2603.21383.
    """

    apart = False  # a pass begins when the last has been seen

    def __init__(self, tasks: Sequence[Task], seed: int = 0, demonstrations: int | Replay = 64, renew: float = 0.5) -> None:
        known = {task.id: task for task in tasks}
        if isinstance(demonstrations, Replay):
            chosen = [id for id in known if id in demonstrations.demonstrations]
        else:
            chosen = Lineage.of(seed, "demonstrations").rng().sample(sorted(known), max(0, min(demonstrations, len(known))))
        if not chosen:
            raise AgentGymError(f"none of {len(known)} tasks is demonstrated: a source needs at least one task")
        if not 0 <= renew <= 1:
            raise AgentGymError(f"renew is {renew}: it is a share, from 0 to 1")
        self.tasks, self.seed, self.renew = {id: known[id] for id in chosen}, seed, renew
        self.passes = self.tried = self.flat = 0  # groups of this pass; those of them with equal rewards
        self.profiling = True
        self.pivots: dict[str, list[int]] = {}  # numbers of turns, by task
        self.left: list[str] = []  # tasks of this pass
        self._observed: Sequence[TurnTree] = ()

    def draw(self, n: int) -> list[Start]:
        self._read()
        if not self.left:
            self._begin_pass()
        size = -(-len(self.left) // -(-len(self.left) // n))  # equal parts: no small rest at the end
        drawn, self.left = self.left[:size], self.left[size:]
        return [Start(self.tasks[id], {} if self.profiling else {"pivots": self.pivots[id]}) for id in drawn]

    def _begin_pass(self) -> None:
        spent = not self.tried or self.flat > self.renew * self.tried
        self.profiling = not self.pivots or (spent and not self.profiling)
        if self.profiling:
            self.pivots = {}
        self.left = [id for id in self.tasks if self.profiling or id in self.pivots]
        Lineage.of(self.seed, "pass", self.passes).rng().shuffle(self.left)
        self.passes, self.tried, self.flat = self.passes + 1, 0, 0

    def observe(self, trees: Sequence[TurnTree]) -> None:
        self._observed = trees

    def _read(self) -> None:
        for tree in self._observed:
            turns = demonstrated(tree)
            if self.profiling:
                if found := [number for number, turn in enumerate(turns) if turn.metrics.get(PIVOT)]:
                    self.pivots[tree.task.id] = found
            else:
                groups = [rewards for turn in turns if len(rewards := equivalents(turn))]
                self.tried, self.flat = self.tried + len(groups), self.flat + sum(map(alike, groups))
        self._observed = ()

    def admit(self, tree: TurnTree) -> str | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        self._read()
        counts = {"passes": self.passes, "tried": self.tried, "flat": self.flat, "profiling": self.profiling}
        return {**counts, "pivots": {id: list(turns) for id, turns in self.pivots.items()}, "left": list(self.left)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.tried, self.flat, self.profiling = (state[name] for name in ("passes", "tried", "flat", "profiling"))
        self.pivots, self.left = {id: list(turns) for id, turns in state["pivots"].items()}, list(state["left"])

    def metrics(self) -> dict[str, float]:
        self._read()
        return {"pivots_known": float(sum(map(len, self.pivots.values()))), "profiling": float(self.profiling)}


def pivots_where(tasks: Sequence[Task], field: str, equals: Any, seed: int = 0, **settings: Any) -> Pivots:
    """`Pivots` over one domain, as `agentgym.trainers.sources.uniform.uniform_where`."""
    return Pivots(uniform_where(tasks, field, equals).tasks, seed, **settings)
