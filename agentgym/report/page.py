"""The report's data, as plain JSON inside a page that asks the network for nothing.

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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from agentgym.action import Call, parse_action
from agentgym.statistics import Comparison, Interval
from agentgym.turn import Turn, TurnTree, total_reward

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


def tree_record(tree: TurnTree, solved: float = 1.0) -> Record:
    """A tree as the page reads it. An episode succeeds when its return reaches ``solved``; no verdict, no success."""
    returns = [total_reward(leaf) for leaf in tree.leaves()]
    scored = [value for value in returns if value is not None]
    return {
        "id": tree.id,
        "task": tree.task.id,
        "prompt": tree.task.prompt,
        "split": tree.task.split,
        "tags": {str(name): str(value) for name, value in tree.tags.items()},
        "episodes": len(returns),
        "scored": len(scored),
        "solved": sum(value >= solved - 1e-9 for value in scored),
        "reward": float(np.mean(scored)) if scored else None,
        "turns": [_turn_record(turn) for turn in tree.turns],
    }


def write_report(
    path: str | Path,
    title: str,
    *,
    summary: Mapping[str, Cell] | None = None,
    tables: Sequence[Table] = (),
    curves: Sequence[Curve] = (),
    trees: Iterable[TurnTree | Record] = (),
) -> Path:
    """Write one self-contained page. ``trees`` may be `TurnTree`s or what `tree_record` made of them earlier.

    The address fragment ``#tree=ID`` opens that tree. Returns the path; folders above it are made.
    """
    records = [tree_record(tree) if isinstance(tree, TurnTree) else tree for tree in trees]
    turns = [turn for record in records for turn in record["turns"] if turn["executed"]]
    counted = {
        "Episodes, by how they ended": Counter(turn["end"] for turn in turns if turn["end"]),
        "Turns, by outcome": Counter(turn["outcome"] for turn in turns if turn["author"] != "env"),
    }
    data = {
        "summary": list((summary or {}).items()),
        "tables": tables,
        "curves": curves,
        "counts": {name: counts.most_common() for name, counts in counted.items() if counts},
        "trees": records,
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    parts = {
        "title": html.escape(title),
        "data": json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "hash": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
    }
    page = re.sub(r"\{\{(title|data|hash)\}\}", lambda match: parts[match[1]], template)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return target


def _turn_record(turn: Turn) -> Record:
    action = parse_action(turn.action)
    advantage = turn.streams.get("advantage")
    sampled = np.asarray(turn.sampled, bool)
    if advantage is not None and sampled.any():
        advantage = advantage[sampled]
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
        "sampled": int(sampled.sum()),
        "tokens": len(turn.ids),
        "seconds": turn.seconds,
        "error": turn.error,
        "metrics": turn.metrics,
    }


def _call_text(call: Call) -> str:
    try:
        arguments = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items()]
    except RecursionError:  # a policy may nest brackets as deeply as it likes
        arguments = ["…"]
    return f"{call.name}({', '.join(arguments)})"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)
