"""The page, with its data as plain JSON inside it; a report holds all of it and asks the network for nothing.

What policies and tools wrote is untrusted: it travels with every ``<`` escaped, the page sets it as text and never as
markup, and a content security policy lets no script run but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agentgym.action import Call, parse_action
from agentgym.statistics import Comparison, Interval
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

Cell = str | int | float | bool | Interval | None
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` have one cell for each of ``columns``. An `Interval` is shown with its bounds."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a curve. A ``y`` that is an `Interval` is an evaluation point with its bounds."""

    name: str
    x: Sequence[float]
    y: Sequence[float | Interval]


@dataclass(frozen=True, slots=True)
class Curve:
    """One chart: every series over the same ``x``, such as sampled tokens or learner steps."""

    title: str
    x: str
    series: Sequence[Series]


def before_after(comparisons: Mapping[str, Comparison], before: str = "before", after: str = "after") -> Table:
    """The headline of comparisons at the 95% level: estimates with intervals, the paired difference and its p-value."""
    rows = [
        (name, c.a, c.b, c.paired.difference, c.paired.p_value, c.paired.minimal_detectable_difference, c.a.n)
        for name, c in comparisons.items()
    ]
    columns = ("measure", before, after, "difference", "p", "detectable", "tasks")
    note = (
        "With 95% intervals over tasks, and the p-value of a sign-flip test on the same tasks. "
        "A true difference of the size “detectable” would be found in 80 of 100 such comparisons."
    )
    return Table(f"{before.capitalize()} → {after}", columns, rows, note)


class Mark(NamedTuple):
    """What the list of trees needs to know of a turn."""

    parent: int | None
    author: str
    reward: float | None
    end: str | None
    outcome: str
    executed: bool
    partial: bool


def tree_summary(id: str, task: Task, tags: Mapping[str, Any], marks: Sequence[Mark], solved: float = 1.0) -> Record:
    """A tree in the list. An episode succeeds when its return reaches ``solved``; no verdict, no success."""
    totals: list[float | None] = []
    for mark in marks:
        above = 0.0 if mark.parent is None else totals[mark.parent]
        totals.append(None if above is None or mark.reward is None else above + mark.reward)
    returns = [total for total, mark in zip(totals, marks, strict=True) if mark.end is not None and (mark.executed or mark.partial)]
    scored = [value for value in returns if value is not None]
    return {
        "id": id,
        "task": task.id,
        "prompt": task.prompt,
        "split": task.split,
        "tags": {str(name): str(value) for name, value in tags.items()},
        "size": len(marks),
        "episodes": len(returns),
        "scored": len(scored),
        "solved": sum(value >= solved - 1e-9 for value in scored),
        "reward": sum(scored) / len(scored) if scored else None,
        "ends": _counted([mark.end for mark in marks if mark.end and mark.executed]),
        "outcomes": _counted([mark.outcome for mark in marks if mark.author != "env" and mark.executed]),
    }


def _counted(names: list[str]) -> dict[str, int]:
    return {str(name): names.count(name) for name in dict.fromkeys(names)}


def tree_record(tree: TurnTree, solved: float = 1.0) -> Record:
    """A tree as the page reads it: its `tree_summary`, and its turns."""
    marks = [
        Mark(t.parent.index if t.parent else None, t.author, t.reward, t.end, t.outcome, t.executed, t.partial) for t in tree.turns
    ]
    return {**tree_summary(tree.id, tree.task, tree.tags, marks, solved), "turns": [_turn_record(turn) for turn in tree.turns]}


def write_report(
    path: str | Path,
    title: str,
    *,
    summary: Mapping[str, Cell] | None = None,
    tables: Sequence[Table] = (),
    curves: Sequence[Curve] = (),
    metrics: Sequence[Mapping[str, float]] = (),
    times: Sequence[Mapping[str, float]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    trees: Iterable[TurnTree | Record] = (),
) -> Path:
    """Write one self-contained page. ``trees`` may be `TurnTree`s or what `tree_record` made of them earlier.

    A ``summary`` may nest, as ``summary.json`` does. Each of the ``metrics`` has a "step"; all their other names become curves.
    ``times`` and ``steps`` are lines of ``times.jsonl`` and ``steps.jsonl``: where time went, and which trees a step is computed from.
    The address fragment ``#tree=ID`` opens that tree. Returns the path; folders above it are made.
    """
    records = [tree_record(tree) if isinstance(tree, TurnTree) else tree for tree in trees]
    shown = {"tables": tables, "curves": curves, "metrics": metrics, "times": times, "steps": steps, "trees": records}
    page = render(title, {"summary": list((summary or {}).items()), **shown})
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return target


def render(title: str, data: Mapping[str, Any], asks: str = "'none'") -> str:
    """The page with its data; ``asks`` is whom its content security policy lets it ask for more."""
    page, curves = ((files(__package__) / name).read_text(encoding="utf-8") for name in ("page.html", "curves.js"))
    template = page.replace("{{curves}}", curves)
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    parts = {
        "title": html.escape(title),
        "data": json.dumps(plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "hash": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
        "asks": asks,
    }
    return re.sub(r"\{\{(title|data|hash|asks)\}\}", lambda match: parts[match[1]], template)


def _turn_record(turn: Turn) -> Record:
    action = parse_action(turn.action)
    advantage = turn.streams.get("advantage")
    if advantage is not None and turn.sampled_tokens:
        advantage = advantage[: turn.sampled_tokens]
    return {
        "parent": None if turn.parent is None else turn.parent.index,
        "author": turn.author,
        "thought": action.thought,
        "content": action.content,
        "calls": [_call_text(call) for call in action.calls],
        "problem": action.problem,
        "action": turn.action if action.problem else "",
        "observation": turn.observation,
        "reward": turn.reward,
        "advantage": None if advantage is None or not advantage.size else float(advantage.mean()),
        "outcome": str(turn.outcome),
        "end": turn.end,
        "executed": turn.executed,
        "partial": turn.partial,
        "sampled": turn.sampled_tokens,
        "tokens": len(turn.ids),
        "read": turn.tokens_read,
        "written": turn.tokens_written,
        "error": turn.error,
        "metrics": turn.metrics,
    }


def _call_text(call: Call) -> str:
    arguments = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items()]
    return f"{call.name}({', '.join(arguments)})"


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)
