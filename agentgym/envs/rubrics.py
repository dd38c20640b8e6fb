"""Rewards from weighted rubrics: a tree of named criteria, each of whose values can be reported and credited by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from agentgym.errors import AgentGymError

Evidence = TypeVar("Evidence")


@dataclass(frozen=True)
class Rubric(Generic[Evidence]):
    """A criterion or a group of them: it has a ``check`` or ``children``.

    A check takes the evidence (an environment, a transcript, whatever the author grades) and gives a value in [0, 1]. A group's value
    is its children's mean by ``weight``, but 0 where a ``required`` child has 0. A check that cannot tell raises `JudgeError`, and the
    episode has no verdict. Raises `AgentGymError` for a rubric that cannot be summed, or a value outside [0, 1].

        quality = Rubric("rubric", children=(Rubric("solved", solved, weight=3, required=True), Rubric("polite", polite)))
        values = quality.grade(env)     # {"rubric": .75, "rubric/solved": 1., "rubric/polite": 0.}
    """

    name: str
    check: Callable[[Evidence], float] | None = None
    weight: float = 1.0
    required: bool = False
    children: tuple[Rubric[Evidence], ...] = ()

    def __post_init__(self) -> None:
        names = [child.name for child in self.children]
        if not self.name or "/" in self.name:
            raise AgentGymError(f"a criterion is named {self.name!r}: give it a name without a slash, which joins names")
        if (self.check is None) is not bool(self.children):
            raise AgentGymError(f"criterion {self.name!r} needs either a check or children")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise AgentGymError(f"criterion {self.name!r} weighs {self.weight}: a weight is positive and finite")
        if len(set(names)) < len(names):
            raise AgentGymError(f"the children of {self.name!r} are named {', '.join(names)}: each needs a name of its own")

    def grade(self, evidence: Evidence) -> dict[str, float]:
        """The value of this rubric and of all below it, by their paths, this one first. Every check is asked once."""
        if self.check is not None:
            value = float(self.check(evidence))
            if not 0.0 <= value <= 1.0:
                raise AgentGymError(f"criterion {self.name!r} has the value {value}: a check gives a number in [0, 1]")
            return {self.name: value}
        below: dict[str, float] = {}
        for child in self.children:
            below |= {f"{self.name}/{name}": value for name, value in child.grade(evidence).items()}
        return {self.name: self._mean(below), **below}

    def criteria(self) -> dict[str, dict[str, float]]:
        """The weights of all checks as shares of the whole, by category and metric: the ``rubric`` of `agentgym.trainers.credit.pow3r`.

        A category is a child of this rubric, or this rubric itself for the checks right below it.
        """
        found: dict[str, dict[str, float]] = {}
        for path, weight in self._leaves():
            category = "/".join(path[: max(1, min(2, len(path) - 1))])
            found.setdefault(category, {})["/".join(path)] = weight
        return found

    def _mean(self, values: dict[str, float]) -> float:
        own = [(child, values[f"{self.name}/{child.name}"]) for child in self.children]
        if any(child.required and value == 0.0 for child, value in own):
            return 0.0
        return math.fsum(child.weight * value for child, value in own) / math.fsum(child.weight for child, _ in own)

    def _leaves(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Path and share of each check."""
        if not self.children:
            yield (self.name,), 1.0
        whole = math.fsum(child.weight for child in self.children)
        for child in self.children:
            yield from (((self.name, *path), share * child.weight / whole) for path, share in child._leaves())
