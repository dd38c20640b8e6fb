"""When a tried turn is as good as the demonstrated one: callables from both to a reward in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq

from agentgym.action import Action, Call, parse_action
from agentgym.errors import AgentGymError
from agentgym.trainers.credit.likeness import like
from agentgym.turn import Turn

Equivalence = Callable[[Turn, Turn], float]


@dataclass(frozen=True)
class Exact:
    """The same calls with equal arguments, in the same order. What is said beside them is not compared; any message equals any other."""

    def __call__(self, demonstrated: Turn, tried: Turn) -> float:
        return by_calls(demonstrated, tried, _equal)


@dataclass(frozen=True)
class SameObservation:
    """The environment said the same and, if that ended the episode, gave the same reward [R]."""

    def __call__(self, demonstrated: Turn, tried: Turn) -> float:
        return _by_effect(demonstrated, tried, demonstrated.observation == tried.observation)


@dataclass(frozen=True)
class SameState:
    """The environment is in the same state by its ``key()`` and, if that ended the episode, gave the same reward [R]."""

    def __call__(self, demonstrated: Turn, tried: Turn) -> float:
        if demonstrated.key is None:
            raise AgentGymError(f"there is no state key after turn {demonstrated.index} to compare: let AgentEnv.key() give one")
        return _by_effect(demonstrated, tried, demonstrated.key == tried.key)


def by_calls(demonstrated: Turn, tried: Turn, compare: Callable[[Sequence[Call], Sequence[Call]], float]) -> float:
    """1 for two messages, what ``compare`` says of two actions with calls, and 0 where only one has any or nothing can be made of one."""
    expected, actual = parse_action(demonstrated.action), parse_action(tried.action)
    if _nothing(expected) or _nothing(actual) or bool(expected.calls) != bool(actual.calls):
        return 0.0
    return compare(expected.calls, actual.calls) if expected.calls else 1.0


def _by_effect(demonstrated: Turn, tried: Turn, same: bool) -> float:
    wrong = any(_nothing(parse_action(turn.action)) for turn in (demonstrated, tried))
    return float(same and not wrong and _verdict(demonstrated) == _verdict(tried))


def _nothing(action: Action) -> bool:
    """Whether nothing can be made of an action: it is malformed, or empty but for a thought."""
    return action.problem is not None or not (action.calls or action.content)


def _verdict(turn: Turn) -> float | None:
    """What the environment gave for a turn that ended the episode; None where it did not. A cancelled turn has no reward."""
    return turn.reward if turn.end in ("done", "truncated") else None


def _equal(expected: Sequence[Call], actual: Sequence[Call]) -> float:
    names = [[call.name for call in calls] for calls in (expected, actual)]
    return float(names[0] == names[1] and all(like(a.arguments, b.arguments, eq) for a, b in zip(expected, actual, strict=True)))
