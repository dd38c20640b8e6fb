"""PivotRL's trees: a demonstration, and single turns of the policy beside its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, LeafDone, Memoryless, Started, Stop, TurnDone
from agentgym.trainers.demonstrations import DEMONSTRATION, demonstrated, solved
from agentgym.trainers.seams import given
from agentgym.turn import Turn, TurnTree


class PivotRL(Memoryless):
    """The actor "demonstration" plays one episode; then the policy tries ``size`` single turns at each of its turns.

    A start's tag ``pivots`` names the turns to try, counted from 0; without it, all. Each try is played from the state before the
    demonstrated turn and ended there, without a verdict where it did not end the episode. A demonstration that does not reach
    full reward is not tried at all. Source: PivotRL, arXiv 2603.21383: 8 tries to profile, 16 to train [S2]; the released recipe has
    no environment in the loop, and here it plays each try, so that tries can be compared by what comes of them [R].
    """

    forks = True

    def __init__(self, size: int = 8) -> None:
        if size < 2:
            raise AgentGymError(f"size is {size}: tries are compared with each other, so it must be 2 at least")
        self.size = size
        self.models = {DEMONSTRATION: given(DEMONSTRATION)}

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                yield Extend(tree, tree.root, 1, DEMONSTRATION)
            case TurnDone(tree, turn) if not tree.leaves():
                yield Extend(tree, turn, 1, DEMONSTRATION)
            case TurnDone(tree, turn):
                yield Stop(tree, turn, verdict=False)
            case LeafDone(tree, _):
                places, tried = _places(tree), len(tree.leaves()) - 1
                if tried == 0:
                    yield from (Extend(tree, place, self.size) for place in places)
                if tried == self.size * len(places):
                    yield Close(tree)
            case _:
                pass


def _places(tree: TurnTree) -> list[Turn]:
    """The turns below which the policy tries, once the demonstration has ended."""
    if not solved(tree.leaves()[0]):
        return []
    before = [turn.parent for turn in demonstrated(tree)]
    wanted = tree.tags.get("pivots", range(len(before)))
    return [turn for number, turn in enumerate(before) if turn is not None and number in wanted]
