"""What an episode answered, by its last turn: as text, and as callables that give what can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from agentgym.action import format_action, parse_action
from agentgym.turn import Turn, path

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


def answer_of(leaf: Turn) -> str:
    """The action that ended an episode, without its thought; empty where it was cut off, malformed or says nothing."""
    action = parse_action(leaf.action)
    if leaf.end != "done" or leaf.partial or action.problem is not None:
        return ""
    return format_action(*action.calls, content=action.content).strip()


def reasoning_of(leaf: Turn) -> str:
    """All that was done and seen up to the last action, without what was said to that: it may tell the reward."""
    whole = [turn for turn in path(leaf)[1:] if not turn.partial]
    return "\n".join(text for turn in whole for text in (turn.action, turn.observation if turn is not leaf else "") if text)
