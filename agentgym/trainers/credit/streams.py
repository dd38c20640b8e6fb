"""What a credit writes for the learner, and what it must keep to, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.store import RunStore
from agentgym.trainers.seams import Credit, Metrics, State, apart, asked
from agentgym.turn import Turn, TurnTree


def written(credit: Credit) -> frozenset[str]:
    """The streams that a credit writes: its ``writes``, or the advantage alone."""
    return frozenset(getattr(credit, "writes", {"advantage"}))


class Around:
    """What credits have in common that add to what another, ``credit``, writes: its models and its state are theirs.

    ``adds``: the streams that it writes beside those of the other. One that looks at the batch as a whole says ``apart = False``.
    """

    adds: frozenset[str] = frozenset()

    def __init__(self, credit: Credit) -> None:
        self.credit = credit
        self._metrics: Metrics = {}

    @property
    def writes(self) -> frozenset[str]:
        return written(self.credit) | self.adds

    @property
    def apart(self) -> bool:
        return apart(self.credit)

    @property
    def models(self) -> dict[str, Callable[[Any], Any]]:
        return asked(self.credit)

    def state_dict(self) -> State:
        return self.credit.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.credit.load_state_dict(state)

    def metrics(self) -> Metrics:
        return {**self.credit.metrics(), **self._metrics}


def teaches(tree: TurnTree) -> bool:
    """Whether a tree has a gradient: an advantage anywhere or, where the credit writes none, a trained token."""
    return any(turn.streams["advantage" if "advantage" in turn.streams else "trained"].any() for turn in tree.turns)


def check_streams(trees: Sequence[TurnTree]) -> None:
    """Raises `AgentGymError` for a stream that is missing, not finite, of another shape, or where it may not be.

    Where there are advantages, they and ``trained`` lie on tokens that the policy sampled: no other has an importance ratio.
    """
    for tree in trees:
        for turn in tree.turns:
            where = f"task {tree.task.id}, turn {turn.index} of tree {tree.id}"
            found = {name: turn.streams[name] for name in ("advantage", "trained") if name in turn.streams}
            if not found:
                raise AgentGymError(f"{where}: the credit wrote none of the streams advantage and trained")
            for name, stream in found.items():
                if (shape := stream.shape) != (len(turn.ids),):
                    raise AgentGymError(f"{where}: the credit wrote shape {shape} as {name} of its {len(turn.ids)} tokens: one for each")
                if not np.isfinite(stream).all():
                    raise AgentGymError(f"{where}: the credit wrote a stream {name} that is not finite")
                if "advantage" in found and stream[turn.sampled_tokens :].any():
                    raise AgentGymError(f"{where}: the credit wrote {name} on a token that nobody sampled: give those 0")
                if "advantage" in found and turn.author != "policy" and stream.any():
                    raise AgentGymError(
                        f"{where}: the credit wrote {name} on what {turn.author!r} sampled, not the policy: a teacher must act in words "
                        "(agentgym.trainers.teacher:teacher)"
                    )
            if (found.get("trained", np.zeros(0)) < 0).any():
                raise AgentGymError(f"{where}: the credit wrote a stream trained below 0: it says how much a token counts")


def log_advantages(store: RunStore, trees: Sequence[TurnTree]) -> None:
    """One line for each tree: the mean advantage of every turn, for looking at later."""
    for tree in trees:
        if "advantage" in tree.root.streams:
            store.append("turns", {"tree": tree.id, "advantages": [_mean(turn) for turn in tree.turns]})


def _mean(turn: Turn) -> float:
    own: Floats = turn.streams["advantage"][: turn.sampled_tokens]
    return float(own.mean()) if len(own) else 0.0
