"""Equivalence of tool calls by their arguments, as a verifier compares them, and a rule for each tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agentgym.action import Call, parse_action
from agentgym.errors import AgentGymError
from agentgym.trainers.credit.equivalence import Equivalence, by_calls
from agentgym.trainers.credit.likeness import like, most_matches, similarity
from agentgym.turn import Turn

MODES = ("binary_strict", "fractional", "f1")


@dataclass(frozen=True)
class Arguments:
    """The same tools with like arguments: values of equal types, objects with the same keys, lists of the same length in order.

    Floats differ by less than 1e-6, other values not at all. Texts of two words or more are alike from ``threshold`` on: words in
    common, with their counts, over the words of both. That is 0.5 for equal texts, so a higher threshold refuses even those. In use:
    0.1 for tools in general, 0.3 for searches, 0 for code.

    Several calls are matched with each other, whatever their order, as many as can be. Fewer than demonstrated are admitted with
    ``allow_subset``, more with ``allow_superset``, or beside a single one. Of those admitted, "binary_strict" gives 1 if all that can match
    do, "fractional" their share, and "f1" ``2 matched / (demonstrated + tried)``: the one in which more calls cost.

    Any message equals any other, and no call. Source: PivotRL, arXiv 2603.21383, and the verifier of NeMo Gym [S-code]; there a
    truth value may stand for a whole number, here not [R].
    """

    threshold: float = 0.1
    mode: Literal["binary_strict", "fractional", "f1"] = "binary_strict"
    allow_subset: bool = False
    allow_superset: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise AgentGymError(f"mode is {self.mode!r}: choose one of {', '.join(MODES)}")
        if not 0 <= self.threshold <= 0.5:
            raise AgentGymError(f"threshold is {self.threshold}: it must lie between 0 and 0.5, the likeness of equal texts")

    def __call__(self, demonstrated: Turn, tried: Turn) -> float:
        return by_calls(demonstrated, tried, self._compare)

    def _compare(self, expected: Sequence[Call], actual: Sequence[Call]) -> float:
        fewer, more = len(actual) < len(expected), len(actual) > len(expected) > 1
        if (fewer and not self.allow_subset) or (more and not self.allow_superset):
            return 0.0
        matched = most_matches([[n for n, one in enumerate(actual) if self._alike(call, one)] for call in expected])
        if self.mode == "f1":
            return 2 * matched / (len(expected) + len(actual))
        needed = min(len(expected), len(actual))
        return matched / needed if self.mode == "fractional" else float(matched == needed)

    def _alike(self, expected: Call, actual: Call) -> bool:
        return expected.name == actual.name and like(expected.arguments, actual.arguments, self._similar)

    def _similar(self, expected: str, actual: str) -> bool:
        few = min(len(expected.split()), len(actual.split())) < 2
        return expected == actual if few else similarity(expected, actual) >= self.threshold


@dataclass(frozen=True)
class PerTool:
    """A rule for each tool: by the tool that was demonstrated, else ``otherwise``, also for messages and calls of several tools."""

    rules: Mapping[str, Equivalence]
    otherwise: Equivalence = field(default_factory=Arguments)

    def __call__(self, demonstrated: Turn, tried: Turn) -> float:
        names = {call.name for call in parse_action(demonstrated.action).calls}
        rule = self.rules.get(names.pop(), self.otherwise) if len(names) == 1 else self.otherwise
        return rule(demonstrated, tried)
