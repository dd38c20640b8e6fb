"""A run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentgym.report import Curve, Series, write_report
from agentgym.store import RunStore

MOST_TREES = 200


def write(folder: Path, **more: Any) -> Path:
    """``report.html`` in the run's folder: what ``more`` gives, the training curve, and the newest turn trees."""
    store = RunStore.open(folder)
    metrics = list(store.read("metrics"))
    trees = store.trees()[-MOST_TREES:]
    curves = more.pop("curves", None) or ([_learning(metrics)] if metrics else [])
    path = folder / "report.html"
    write_report(path, more.pop("title", str(folder)), curves=curves, trees=trees, **more)
    return path


def _learning(metrics: list[dict[str, Any]]) -> Curve:
    return Curve("Reward in training", "step", [Series("reward", [m["step"] for m in metrics], [m["reward"] for m in metrics])])
