"""What a training's folder keeps of each step."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.store import RunStore
from agentgym.trainers.seams import Metrics
from agentgym.turn import TurnTree


def log_step(store: RunStore, step: int, metrics: Metrics, played: Sequence[TurnTree], learnt: Sequence[TurnTree]) -> None:
    """One line in each of three logs.

    ``steps.jsonl`` names the trees that the step's metrics were computed from: those ``played`` in it, and those ``learnt`` from,
    which a schedule may have kept from earlier steps. ``times.jsonl`` has the metrics that begin with "seconds"; ``metrics.jsonl``
    the others, which a resumed run repeats bit for bit.
    """
    times = {name: value for name, value in metrics.items() if name.startswith("seconds")}
    store.append("steps", {"step": step, "trees": [tree.id for tree in played], "learnt": [tree.id for tree in learnt]})
    store.append("times", {"step": step, **times})
    store.append("metrics", {"step": step, **{name: value for name, value in metrics.items() if name not in times}})
