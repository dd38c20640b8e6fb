"""Tree-GRPO's trees: one episode, then more from turns drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentgym.errors import AgentGymError
from agentgym.expand import Close, Command, Event, Extend, Idle, LeafDone, Memoryless, Started, TurnDone
from agentgym.seeds import Lineage
from agentgym.turn import Turn, TurnTree


class TreeGRPO(Memoryless):
    """``expansions`` continuations in each of ``rounds``, from the root and inner turns, uniformly with replacement.

    A tree has 1 + expansions * rounds episodes, all of them kept, for the turns of about 1 + expansions * rounds / 2 [R]. The
    several trees of a prompt are several starts of one task: see `agentgym.trainers.sources.repeated.Repeated`. Source: Tree
    Search for LLM Agent Reinforcement Learning, arXiv 2509.21240 [S-code], with its defaults: 2 trees, 2 expansions, 1 round.
    """

    forks = True

    def __init__(self, expansions: int = 2, rounds: int = 1) -> None:
        if expansions < 1 or rounds < 0:
            raise AgentGymError(f"TreeGRPO needs expansions of at least 1 and rounds of at least 0, not {expansions} and {rounds}")
        self.expansions, self.rounds = expansions, rounds

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                yield Extend(tree, tree.root)
            case TurnDone(tree, turn):
                yield Extend(tree, turn)
            case LeafDone(tree, _):
                finished, more = divmod(len(tree.leaves()) - 1, self.expansions)
                if more == 0 and finished == self.rounds:
                    yield Close(tree)
                elif more == 0:
                    inner = [turn for turn in tree.turns if _continues(turn)]
                    drawn = Lineage((tree.id, "expansion", finished)).rng().choices(inner, k=self.expansions)
                    yield from (Extend(tree, turn) for turn in drawn)
            case Idle():
                pass


def _continues(turn: Turn) -> bool:
    """Whether an episode can be continued after it; where the template rewrote history, after the new context instead."""
    return turn.executed and turn.end is None and not any(child.restarts for child in turn.children)
