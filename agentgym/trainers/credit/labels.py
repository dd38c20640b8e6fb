"""What a teacher would have done, as targets for cross-entropy: one action for each visited state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from agentgym.action import parse_action
from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.rollout import episode
from agentgym.trainers.credit.verdicts import mean_reward
from agentgym.trainers.schedules.records import REPLAYED
from agentgym.turn import Turn, TurnTree, path

TEACHER = "teacher"  # the author of labels


class Labels(Stateless):
    """``trained`` is 1 on the actions of the teacher, executed or hung beside the policy's, and 0 elsewhere.

    There is one row for each visit of a state, so that a root has as many as it has episodes. What does not parse, says nothing or
    lies below a failed turn is no row. Outcomes do not matter. Where the policy took one action ``repeats`` times in a row and more,
    the rows of that loop after as many are left out: they are what it needs to get out of it, but many say the same [R].
    Source: Revisiting DAgger in the Era of LLM-Agents, arXiv 2605.12913 [S2].

    Metrics: ``labels``, rows of the batch. Of what was newly played: ``labels_lost``, visits without a label; ``teacher_tokens``, all that
    the teacher wrote; ``teacher_turns``, the share of turns that it took; ``reward``, the mean over judged episodes; ``agreement``, the
    share of the policy's turns with a label that are that label, word for word.
    """

    writes = frozenset({"trained"})

    def __init__(self, repeats: int = 3) -> None:
        if repeats < 1:
            raise AgentGymError(f"repeats is {repeats}: of a loop, at least 1 row must stay")
        self.repeats = repeats
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        rows = 0
        for tree in trees:
            taught = {row for visit in visits(tree) if visit.loop <= self.repeats for row in visit.rows}
            rows += len(taught)
            for turn in tree.turns:
                turn.streams["trained"] = np.zeros(len(turn.ids))
                turn.streams["trained"][: turn.action_tokens] = float(turn in taught)
        self._metrics = {"labels": float(rows), **_figures([tree for tree in trees if REPLAYED not in tree.tags])}

    def metrics(self) -> dict[str, float]:
        return self._metrics


@dataclass(frozen=True, slots=True)
class Visit:
    """A state: the turns ``taken`` in it, and at most as many ``rows`` of the teacher. ``loop``: how often the policy did the same."""

    taken: list[Turn]
    rows: list[Turn]
    loop: int

    def agreements(self) -> list[bool]:
        own = [turn for turn in self.taken if turn.author != TEACHER]
        labels = [row for row in self.rows if not row.executed]
        return [turn.action == label.action for turn, label in zip(own, labels, strict=False) if turn.outcome.blames_policy]


def visits(tree: TurnTree) -> Iterator[Visit]:
    """The states of a tree in which somebody acted, none below a failed turn."""
    for state in tree.turns:
        taken = [turn for turn in state.children if turn.executed and turn.author != "env"]
        if taken and all(turn.outcome.blames_policy for turn in path(state)):
            labels = [turn for turn in state.children if turn.author == TEACHER and turn.outcome.blames_policy and not is_garbled(turn)]
            labels.sort(key=lambda turn: not turn.executed)
            yield Visit(taken, labels[: len(taken)], max(map(_loop, taken)))


def _loop(turn: Turn) -> int:
    """How many turns in a row, up to this one, are the policy's and equal."""
    same = takewhile(lambda earlier: earlier.author != TEACHER and earlier.action == turn.action, reversed(episode(turn)))
    return sum(1 for _ in same)


def is_garbled(turn: Turn) -> bool:
    """Whether the teacher answered with nothing, nothing that parses, or a label that was cut off or is longer than an action may be."""
    answered = turn.author == TEACHER and turn.outcome.blames_policy
    cut_off = not turn.executed and "cut_off" in turn.metrics
    return answered and (cut_off or not turn.action.strip() or parse_action(turn.action).problem is not None)


def _figures(played: Sequence[TurnTree]) -> dict[str, float]:
    found = [visit for tree in played for visit in visits(tree)]
    return {
        "labels_lost": float(sum(len(visit.taken) - len(visit.rows) for visit in found)),
        "teacher_tokens": float(sum(turn.action_tokens for tree in played for turn in tree.turns if turn.author == TEACHER)),
        "teacher_turns": _mean([turn.author == TEACHER for visit in found for turn in visit.taken]),
        "reward": mean_reward(played),
        "agreement": _mean([same for visit in found for same in visit.agreements()]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
