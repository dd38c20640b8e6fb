"""Where the next rollouts are spent: the events that the rollout engine reports and the commands that it obeys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentgym.turn import Turn, TurnTree


@dataclass(frozen=True, slots=True)
class Started:
    tree: TurnTree


@dataclass(frozen=True, slots=True)
class TurnDone:
    tree: TurnTree
    turn: Turn


@dataclass(frozen=True, slots=True)
class LeafDone:
    tree: TurnTree
    turn: Turn


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is running. A plan that answers with no ``Extend`` ends the rollout."""


Event = Started | TurnDone | LeafDone | Idle


@dataclass(frozen=True, slots=True)
class Extend:
    """Continue ``n`` siblings below ``turn``. With ``execute=False`` the action is a label that no environment sees.

    An action that is cut off after ``max_tokens`` is executed as it stands; with ``segment`` it becomes a partial turn, to be
    gone on with, until its segments together have the tokens that one action may have. A label is always whole.
    """

    tree: TurnTree
    turn: Turn
    n: int = 1
    actor: str = "policy"
    max_tokens: int | None = None
    execute: bool = True
    segment: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End the episode at ``turn`` as truncated, with its score as it stands.

    Without a ``verdict`` nothing is scored: its outcome is ``cancelled``, its reward None, and it is in no mean.
    """

    tree: TurnTree
    turn: Turn
    verdict: bool = True


@dataclass(frozen=True, slots=True)
class Close:
    """The tree is complete."""

    tree: TurnTree


Command = Extend | Stop | Close


class Expander(Protocol):
    """Pure bookkeeping, no input or output: the same events give the same commands."""

    forks: bool  # True: turns keep snapshots, so that any of them can be extended again

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def metrics(self) -> dict[str, float]: ...


class Stateless:
    """For what keeps nothing from one rollout or batch to the next, and has nothing of its own to tell."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


class Memoryless(Stateless):
    """An expander that keeps nothing from one rollout to the next. ``apart``: so several rollouts may be planned at once."""

    apart = True


class Groups(Memoryless):
    """``size`` independent episodes from every root, each played to its end. Evaluation plays so, and GRPO trains on it."""

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
