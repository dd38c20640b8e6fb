"""What an episode answered: callables from its last turn to a text that can be compared, for OLR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from agentgym.action import parse_action
from agentgym.turn import Turn

Answer = Callable[[Turn], str | None]  # of an episode, by its last turn; None: it gave none


@dataclass(frozen=True)
class FinalCall:
    """The last action's last tool call, its arguments in alphabetical order, without regard to case."""

    def __call__(self, leaf: Turn) -> str | None:
        calls = parse_action(leaf.action).calls
        last = [(call.name, call.arguments) for call in calls[-1:]]
        return orjson.dumps(last, option=orjson.OPT_SORT_KEYS).decode().casefold() if last else None


@dataclass(frozen=True)
class FinalState:
    """The environment's state key at the end, for tasks whose answer is what was done [R]."""

    def __call__(self, leaf: Turn) -> str | None:
        return leaf.key
