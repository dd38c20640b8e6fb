"""The one data structure: a tree of turns. Credit, packing, storing, resuming, viewing and evaluation read nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentgym.outcome import Outcome
from agentgym.snapshot import Snapshot
from agentgym.task import Task

End = Literal["done", "truncated", "budget", "error"]
Message = dict[str, Any]
Stream = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Turn:
    """A node: thought, action and observation. It stores only the tokens that it adds, and they are never rendered again.

    ``ids`` are the tokens of the action, then those of the observation with the opening of the next action; the root has
    the rendered task prompt. The policy itself sampled the first ``sampled_tokens`` of them, its stop token included, or none:
    what others wrote into an action is a segment of its own. ``logprobs`` has one natural logarithm for each sampled token,
    under the behaviour policy; ``entropies`` has its entropy there, in nats, or is empty. ``versions`` are runs ``(policy
    version, number of sampled tokens)``. ``streams`` are float arrays of shape ``(len(ids),)`` or ``(len(ids), k)`` written by
    credit.
    """

    index: int  # order of commitment within the tree
    parent: Turn | None
    author: str  # who acted: "policy", "teacher", "expert", "env", an agent's name
    seed: int  # of this node's own sub-stream: the hash of its parent's seed and its branch number
    ids: list[int] = field(default_factory=list)
    sampled_tokens: int = 0
    logprobs: Sequence[float] = ()
    entropies: Sequence[float] = ()
    versions: Sequence[tuple[int, int]] = ()
    action_tokens: int = 0  # the first tokens of ``ids``; after them comes the observation
    action: str = ""  # canonical text, see `agentgym.action`; of a partial turn: all that is written of the action so far
    replies: Sequence[Message] = ()  # what the environment said; at the root: the opening messages
    reward: float | None = 0.0  # None: no verdict, for a fault that is not the policy's
    end: End | None = None
    outcome: Outcome = Outcome.OK
    executed: bool = True  # False: a label beside the action really taken
    partial: bool = False  # a segment of an action, which a child goes on with: no observation, nothing executed yet
    restarts: bool = False  # the chat template rewrote history: ``ids`` are the whole context anew
    key: str | None = None
    length: int = 0  # tokens of the context up to and with this turn
    depth: int = 0  # whole turns above this one
    seconds: float = 0.0  # from the start of the episode
    tokens_read: int = 0  # by a served policy, as its server counts; else 0
    tokens_written: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    snapshot: Snapshot | None = None
    cache: Any = None  # the policy's own handle on this context, such as a KV cache; never stored
    streams: dict[str, Stream] = field(default_factory=dict)
    children: list[Turn] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Turn({self.index}, {self.author}, {len(self.ids)} tokens, reward={self.reward}, end={self.end})"

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """Of shape ``(len(ids),)``: true on tokens that the policy itself sampled."""
        return np.arange(len(self.ids)) < self.sampled_tokens

    @property
    def observation(self) -> str:
        return "\n".join(str(message["content"]) for message in self.replies)


class TurnTree:
    """All turns of one task from one start, in commit order. Append-only, so that it can be stored while it grows."""

    def __init__(self, id: str, task: Task, tags: dict[str, Any] | None = None) -> None:
        self.id = id
        self.task = task
        self.tags = tags or {}
        self.turns: list[Turn] = []
        self.tools: list[dict[str, Any]] = []
        self.closed = False

    def __repr__(self) -> str:
        return f"TurnTree({self.id}, {len(self.turns)} turns)"

    @property
    def root(self) -> Turn:
        return self.turns[0]

    def add(self, turn: Turn) -> Turn:
        """Commit a turn below its parent, which must be in this tree already."""
        parent = turn.parent
        turn.index = len(self.turns)
        if parent is not None:
            parent.children.append(turn)
            turn.depth = parent.depth + (not parent.partial)
            turn.length = len(turn.ids) + (0 if turn.restarts else parent.length)
        else:
            turn.length = len(turn.ids)
        self.turns.append(turn)
        return turn

    def leaves(self) -> list[Turn]:
        """Finished episodes' last turns, in commit order. Labels (``executed=False``) are no episodes."""
        return [turn for turn in self.turns if turn.end is not None and (turn.executed or turn.partial)]


def path(turn: Turn) -> list[Turn]:
    """From the root to ``turn``."""
    turns = [turn]
    while (parent := turns[-1].parent) is not None:
        turns.append(parent)
    return turns[::-1]


def begun(turn: Turn) -> list[Turn]:
    """The segments of an unfinished action that end in ``turn``, oldest first; none where the action is whole."""
    return [*begun(turn.parent), turn] if turn.partial and turn.parent is not None else []


def context(turn: Turn, k: int) -> list[Turn]:
    """The last ``k`` turns up to and with ``turn``, oldest first; fewer near the root."""
    turns = [turn]
    while len(turns) < k and (parent := turns[-1].parent) is not None:
        turns.append(parent)
    return turns[::-1]


def context_ids(turn: Turn) -> list[int]:
    """The tokens that the policy sees after ``turn``."""
    pieces: list[list[int]] = []
    node: Turn | None = turn
    while node is not None:
        pieces.append(node.ids)
        node = None if node.restarts else node.parent
    return [token for piece in reversed(pieces) for token in piece]


def total_reward(leaf: Turn) -> float | None:
    """The return of the episode that ends in ``leaf``; None where a turn of it has no verdict."""
    total = 0.0
    node: Turn | None = leaf
    while node is not None:
        if node.reward is None:
            return None
        total += node.reward
        node = node.parent
    return total


def walk(turn: Turn) -> Iterator[Turn]:
    """``turn`` and all below it, depth first, children in commit order."""
    stack = [turn]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))
