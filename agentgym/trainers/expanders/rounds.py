"""Growing in rounds: what one tree was asked for together is looked at together, however long each part took."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentgym.expand import Command, Extend
from agentgym.outcome import Outcome
from agentgym.turn import Turn, TurnTree


class Rounds:
    """Counts, for each growing tree, the turns that the present round is waiting for."""

    def __init__(self) -> None:
        self._rounds: dict[str, tuple[int, list[int]]] = {}  # turns asked for; indices of those that have come

    def __contains__(self, id: str) -> bool:
        return id in self._rounds

    def ask(self, tree: TurnTree, commands: Iterable[Command]) -> list[Command]:
        """Begin a round. Without an ``Extend`` among them the tree grows no more, and is forgotten."""
        asked = list(commands)
        if n := sum(command.n for command in asked if isinstance(command, Extend)):
            self._rounds[tree.id] = n, []
        else:
            self._rounds.pop(tree.id, None)
        return asked

    def complete(self, tree: TurnTree, turn: Turn) -> list[Turn]:
        """The turns of the round once ``turn``, the last one, has come; before, none. In an order that no clock decides.

        An episode that was cancelled is of an earlier round.
        """
        asked, came = self._rounds.get(tree.id, (0, []))
        if turn.outcome is Outcome.CANCELLED or not asked:
            return []
        came.append(turn.index)
        return sorted((tree.turns[index] for index in came), key=lambda turn: turn.seed) if len(came) == asked else []

    def state_dict(self) -> dict[str, Any]:
        return {id: [asked, list(came)] for id, (asked, came) in self._rounds.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rounds = {id: (asked, list(came)) for id, (asked, came) in state.items()}


class InRounds:
    """What expanders have in common that grow trees in rounds, each for itself: the rounds are all that a checkpoint needs of them."""

    apart = True

    def __init__(self) -> None:
        self._rounds = Rounds()

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self._rounds.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rounds.load_state_dict(state["rounds"])

    def metrics(self) -> dict[str, float]:
        return {}
