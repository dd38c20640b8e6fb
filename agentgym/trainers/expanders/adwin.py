"""ADWIN's episodes: played up to a window, and now and then a few of them to their end, to see whether the window is long enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, Idle, LeafDone, Started, Stop, TurnDone
from agentgym.seeds import Lineage
from agentgym.trainers.expanders.windows import Windows
from agentgym.turn import Turn, TurnTree


class ADWIN:
    """``size`` episodes from every root, up to a window that all share; every ``stale`` rollouts, ``probes`` of them to their end.

    Probes are drawn among the episodes that reached the window unfinished; the others are given up there, without a verdict. Where none
    reached it, finished ones are audited instead, which costs no token more: else a window that covers everything never shrinks [R].

    Every tree has a tag ``window``: ``candidates``; ``length`` of the window; ``counts``, for each turn, of the unit up to and with it;
    ``probes``, the turns that audited episodes go through. `agentgym.trainers.credit.adwin.ADWIN` trains on nothing beyond ``length``,
    and writes into the tag of a probe's tree the window ``next`` in force, read when the next rollout starts or a checkpoint is written.

    Source: ADWIN, arXiv 2605.28396 [S2]. There a probe runs beside the training and may be 5 optimiser steps old when it returns; here
    it is complete within its rollout, and ``stale`` bounds the age of the audit behind the window in use [R]. The first rollout plays
    ``start``, the shortest candidate, and is audited [R]. With one candidate and no probes the window is fixed.

    Metrics: ``window``; ``probes``, episodes audited; ``audit_age`` of the window in rollouts, ``stale`` before the first audit.
    """

    forks = False

    def __init__(self, windows: Windows, size: int = 1, probes: int = 8, stale: int = 5, start: int | None = None) -> None:
        if size < 1 or probes < 0 or stale < 1 or (start or 1) < 1:
            raise AgentGymError(f"ADWIN needs size, stale and start >= 1 and probes >= 0, not {size}, {stale}, {start} and {probes}")
        self.windows, self.size, self.probes, self.stale = windows, size, probes, stale
        self.window = start or windows.candidates[0]
        self.age = stale
        self._held: list[tuple[TurnTree, Turn]] = []  # at the window, in a rollout that is audited
        self._probed: list[TurnTree] = []
        self._over = False  # the rollout, whose probes have credit now

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                self._renew()
                tree.tags["window"] = {"candidates": list(self.windows.candidates), "length": self.window, "probes": []}
                yield self.windows.extend(tree, tree.root, self.window, self.size)
            case TurnDone(tree, turn) if self._probed:
                yield Extend(tree, turn)
            case TurnDone(tree, turn):
                if (left := self.window - self.windows.count(turn)) > 0:
                    yield self.windows.extend(tree, turn, left, 1)
                elif self._due:
                    self._held.append((tree, turn))
                else:
                    yield Stop(tree, turn, verdict=False)
            case LeafDone(tree, _):
                if len(tree.leaves()) == self.size:
                    tree.tags["window"]["counts"] = [self.windows.count(turn) for turn in tree.turns]
                    yield Close(tree)
            case Idle() if self._held:
                yield from self._probe()
            case Idle():
                if self._due and not self._probed:
                    self._draw([(tree, leaf) for tree in forest for leaf in tree.leaves() if tree.root.end is None])
                self._over = True

    @property
    def _due(self) -> bool:
        return self.probes > 0 and self.age >= self.stale

    def _probe(self) -> Iterator[Command]:
        drawn = self._draw(self._held)
        for tree, turn in self._held:
            yield Extend(tree, turn) if turn in drawn else Stop(tree, turn, verdict=False)
        self._held = []

    def _draw(self, ends: Sequence[tuple[TurnTree, Turn]]) -> set[Turn]:
        ordered = sorted(ends, key=lambda end: (end[0].id, end[1].seed))  # no clock decides
        drawn = Lineage((ordered[0][0].id, "probes")).rng().sample(ordered, min(self.probes, len(ordered))) if ordered else []
        for tree, turn in drawn:
            tree.tags["window"]["probes"].append(turn.index)
        self._probed = [tree for tree, _ in drawn]
        return {turn for _, turn in drawn}

    def _renew(self) -> None:
        """Take over what was found on the probes of the rollout before, once."""
        if self._over:
            found = [tag["next"] for tag in (tree.tags["window"] for tree in self._probed) if "next" in tag]
            self.window, self.age = (found[0], 1) if found else (self.window, self.age + 1)
            self._probed, self._over = [], False

    def state_dict(self) -> dict[str, Any]:
        self._renew()
        return {"window": self.window, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window, self.age = state["window"], state["age"]
        self._probed, self._over = [], False

    def metrics(self) -> dict[str, float]:
        return {"window": self.window, "probes": len(self._probed), "audit_age": self.age}
