"""The plainest expander: a number of independent episodes from each start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agentgym.expand import Close, Command, Event, Extend, Idle, LeafDone, Started, TurnDone
from agentgym.turn import TurnTree


class Groups:
    """``size`` episodes from every root, each played to its end. Evaluation plays so, and GRPO trains on it."""

    forks = False

    def __init__(self, size: int, actor: str = "policy") -> None:
        self.size = size
        self.actor = actor

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                yield Extend(tree, tree.root, self.size, self.actor)
            case TurnDone(tree, turn):
                yield Extend(tree, turn, 1, self.actor)
            case LeafDone(tree, _):
                if len(tree.leaves()) == self.size:
                    yield Close(tree)
            case Idle():
                pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}
