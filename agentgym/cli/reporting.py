"""A run's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentgym.report import tree_record, write_report
from agentgym.report.viewing import about_run
from agentgym.store import RunStore

MOST_TREES = 200


def write(folder: Path, **more: Any) -> Path:
    """``report.html`` in the run's folder: its summary and training curves, the newest turn trees, and what ``more`` gives instead."""
    store = RunStore.open(folder)
    trees = store.trees()[-MOST_TREES:]
    held = {tree.id for tree in trees}
    shown = {
        "title": str(folder),
        "summary": dict(about_run(folder)["summary"]),
        "metrics": [] if "curves" in more else list(store.read("metrics")),
        "times": list(store.read("times")),
        "steps": [row for row in store.read("steps") if not held.isdisjoint([*row["trees"], *row["learnt"]])],
        "trees": [tree_record(tree, store.config.get("best", 1.0)) for tree in trees],
    }
    return write_report(folder / "report.html", **{**shown, **more})
