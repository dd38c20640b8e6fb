"""LATR: fork where two ways are nearly as likely, look ahead, and give up a fork that comes back to what it left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, Idle, LeafDone, Started, Stop, TurnDone
from agentgym.outcome import Outcome
from agentgym.trainers.expanders.lookahead import Line, Lookahead
from agentgym.trainers.expanders.rounds import InRounds
from agentgym.turn import Turn, TurnTree

COUNTDOWN = ((0, 1.0), (10, 0.75), (20, 0.5), (80, 0.25), (200, 0.0))


class LATR(InRounds):
    """``rollouts`` episodes, of which a share that ``schedule`` lowers, by (step, share), are grown with lookahead.

    They begin as one line of segments. While a place is free, a segment with a token of two ways is sampled a second time. The
    fork is cancelled, with no reward, where it leaves its neighbour unless both ways were likely, see `uncertain`; and after
    each of ``lookahead`` tokens if fewer than ``distance`` of them need an edit to become the neighbour's. Once all places are
    taken and looked at, and for the other episodes, sampling is plain. Source: LATR, arXiv 2510.24302, with its rules and
    defaults for Countdown [S-code]. There the likelier way is taken and the other forced, at once; here both are drawn, so
    that their log-probabilities are those of the behaviour policy [R].
    """

    forks = True

    apart = False  # it counts rollouts

    def __init__(
        self,
        rollouts: int = 8,
        segment: int = 10,
        lookahead: Sequence[int] = (20, 30, 50),
        absolute: float = 0.25,
        relative: float = 0.15,
        distance: float = 0.4,
        schedule: Sequence[tuple[int, float]] = COUNTDOWN,
    ) -> None:
        super().__init__()
        if rollouts < 1 or segment < 1 or not lookahead or not schedule or schedule[0][0] != 0:
            wrong = f"{rollouts}, {segment}, {lookahead} and {schedule}"
            raise AgentGymError(f"LATR needs rollouts and segment >= 1, a lookahead and a schedule from step 0, not {wrong}")
        self.rollouts, self.segment, self.schedule = rollouts, segment, schedule
        self.lookahead = Lookahead(sorted(lookahead), absolute, relative, distance)
        self.steps, self._cancelled = 0, 0.0

    @property
    def places(self) -> int:
        """How many episodes of each tree are grown with lookahead at this step."""
        return round(self.rollouts * [share for step, share in self.schedule if step <= self.steps][-1])

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                plain = Extend(tree, tree.root, self.rollouts)
                yield from self._rounds.ask(tree, [self._segment(tree, tree.root)]) if self.places else [plain]
            case (TurnDone(tree, turn) | LeafDone(tree, turn)) if tree.id in self._rounds:
                if came := self._rounds.complete(tree, turn):
                    yield from self._next(tree, came)
            case TurnDone(tree, turn):
                yield Extend(tree, turn)
            case LeafDone(tree, _) if _finished(tree) == self.rollouts and not tree.closed:
                yield Close(tree)
            case Idle() if all(tree.closed for tree in forest):
                given_up = sum(len(tree.leaves()) - _finished(tree) for tree in forest)
                self.steps, self._cancelled = self.steps + 1, float(given_up)

    def _next(self, tree: TurnTree, came: Sequence[Turn]) -> list[Command]:
        watched = [(fork, before) for fork, before in _forks(tree) if fork.goes_on and before.goes_on]
        given_up = {fork.tip for fork, before in watched if self.lookahead.gives_up(fork, before)}
        kept = [turn for turn in came if turn not in given_up]
        going_on = [turn for turn in kept if turn.end is None]
        free = self.places - _finished(tree) - len(going_on)
        forks = [begin for turn in kept if (begin := _began(turn)) and self.lookahead.may_fork(begin.children[0])][: max(0, free)]
        settled = all(fork.tip in given_up or self.lookahead.is_over(fork, before) for fork, before in watched)
        commands: list[Command] = [Stop(tree, turn, verdict=False) for turn in came if turn in given_up]
        if forks or (going_on and not (free <= 0 and settled)):
            return self._rounds.ask(tree, commands + [self._segment(tree, turn) for turn in [*going_on, *forks]])
        self._rounds.ask(tree, [])
        missing = self.rollouts - _finished(tree) - len(going_on)
        commands += [Extend(tree, turn) for turn in going_on] + [Extend(tree, tree.root, missing)] * (missing > 0)
        return commands if going_on or missing else [*commands, Close(tree)]

    def _segment(self, tree: TurnTree, turn: Turn) -> Extend:
        return Extend(tree, turn, max_tokens=self.segment, segment=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"]

    def metrics(self) -> dict[str, float]:
        return {"cancelled": self._cancelled}  # episodes of the last forest


def _forks(tree: TurnTree) -> list[tuple[Line, Line]]:
    """Each way on that is not the first, with the one beside which it was begun."""
    return [(Line(fork), Line(before)) for turn in tree.turns for before, fork in pairwise(turn.children)]


def _finished(tree: TurnTree) -> int:
    return sum(leaf.outcome is not Outcome.CANCELLED for leaf in tree.leaves())


def _began(turn: Turn) -> Turn | None:
    """After what the segment that ends in ``turn`` was written; None for a fork's own first one, which has a neighbour already."""
    written = turn.parent if turn.restarts else turn
    before = written.parent if written is not None else None
    return before if before is not None and before.children[0] is written else None
