"""TRACE: one budget of rollouts, spent where their outcomes are most likely to be mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, Idle, LeafDone, TurnDone
from agentgym.policy import Prompt
from agentgym.trainers.expanders.allocation import allocate_roots, root_contrasts
from agentgym.trainers.expanders.growth import Calibration, Growth
from agentgym.trainers.expanders.shared import SharedPredictor
from agentgym.trainers.expanders.value import Predictor, prefixes, rewards_through
from agentgym.turn import TurnTree


class TRACE:
    """Shares ``roots`` rollouts out over the tasks of a forest, then ``prefixes`` continuations within each tree.

    A task whose rollouts would all end alike gets none, once the predictor is no longer cold. A task whose episodes had one
    turn has no prefixes: their budget goes to the roots. Source: TRACE, arXiv 2606.11119: values and both stages
    [S2]; solvers, guard, fallbacks, ``waves`` and the default predictor [R].
    """

    forks = True

    def __init__(self, roots: int, prefixes: int = 2, predictor: Predictor | None = None, waves: int = 1) -> None:
        if roots < 1 or prefixes < 0 or waves < 1:
            raise AgentGymError(f"TRACE needs roots >= 1, prefixes >= 0 and waves >= 1, not {roots}, {prefixes} and {waves}")
        self.roots, self.prefixes, self.waves = roots, prefixes, waves
        self.predictor: Predictor = predictor or SharedPredictor()
        self.visits: Counter[str] = Counter()  # rollouts of each task
        self.one_turn: set[str] = set()  # tasks
        self._growing: dict[str, Growth] = {}
        self._calibration = Calibration()

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case TurnDone(tree, turn):
                yield Extend(tree, turn)
            case LeafDone(tree, _) if len(tree.leaves()) == self._growing[tree.id].episodes:
                yield from self._continue(tree)
            case Idle() if waiting := [tree for tree in forest if not tree.closed]:
                yield from self._begin(waiting)
            case Idle():
                self._learn([tree for tree in forest if tree.id in self._growing])
            case _:
                pass

    def _begin(self, trees: Sequence[TurnTree]) -> Iterable[Command]:
        belief = self.predictor.predict([Prompt(tree, tree.root) for tree in trees])
        local = [0 if tree.task.id in self.one_turn else self.prefixes for tree in trees]
        budget = self.roots + local.count(0) * self.prefixes
        contrasts = root_contrasts(belief.value, max(2, round(8 * budget / len(trees))), belief.confidence)
        visits = [self.visits[tree.task.id] for tree in trees]
        counts = allocate_roots(contrasts, budget, int(self.predictor.cold), visits)
        self._growing = {}  # what a rollout that was broken off may have left
        for tree, n, left, value, confidence in zip(trees, counts.tolist(), local, *belief, strict=True):
            self.visits[tree.task.id] += n
            if n == 0:
                yield Close(tree)
            else:
                self._growing[tree.id] = Growth(float(value), float(confidence), n, left, self.waves)
                yield Extend(tree, tree.root, n)

    def _continue(self, tree: TurnTree) -> Iterable[Command]:
        chosen = self._growing[tree.id].continuations(tree, self.predictor)
        for turn, n in chosen:
            yield Extend(tree, turn, n)
        if not chosen:
            yield Close(tree)

    def _learn(self, trees: Sequence[TurnTree]) -> None:
        self.predictor.learn(trees)
        self._calibration = Calibration()
        for tree in trees:
            self._growing.pop(tree.id).judge(tree, self._calibration)
            (self.one_turn.discard if prefixes(rewards_through(tree)) else self.one_turn.add)(tree.task.id)

    def state_dict(self) -> dict[str, Any]:
        return {"predictor": self.predictor.state_dict(), "visits": dict(self.visits), "one_turn": sorted(self.one_turn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.predictor.load_state_dict(state["predictor"])
        self.visits, self.one_turn = Counter(state["visits"]), set(state["one_turn"])

    def metrics(self) -> dict[str, float]:
        return {**self._calibration.metrics(), **self.predictor.metrics()}
