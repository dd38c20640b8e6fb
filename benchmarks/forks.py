"""What a fork costs: of a small value state, of a nested database with one changed row and its state hash, of an effect log.

``python benchmarks/forks.py [DATA]``, with ``--json`` for one JSON object and ``--quick`` for a smoke run. DATA is the folder of
tau-bench, whose retail tables (2.8 MB as indented JSON) are forked; without it these rows are skipped.
Every figure is process CPU time after a warm-up, over several repeats: the best and the median.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commandline import parser
from gym_overhead import TASK, Figure, Sums, measure_forks, processor, repeat, table_of
from rich.console import Console

from agentgym import AgentEnv, Task, call, tool
from agentgym.snapshot import Kind, state_digest
from agentgym.tools.tables import freeze

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tau-bench"
TABLES = ("orders", "products", "users")
EFFECTS = 16  # replayed calls


class Shop(AgentEnv):
    """The retail tables as a value: cancelling an order changes one row."""

    snapshots: Kind = "value"

    def __init__(self, tables: Any) -> None:
        super().__init__()
        self.tables = tables

    def begin(self, task: Task) -> None:
        self.state = self.tables

    @tool
    def cancel(self, order: str) -> str:
        """Cancel an order."""
        self.state = self.state.set(("orders", order, "status"), "cancelled")
        return "Cancelled."


class Live(Sums):
    """Its state is said to be a live object: what was calculated is calculated anew."""

    snapshots: Kind = "log"


def per_run(work: Callable[[], object], count: int) -> float:
    """Microseconds of CPU of one run."""
    started = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - started) / count * 1e6


def table_figures(plain: dict[str, Any], quick: bool) -> list[Figure]:
    """Forks of the tables, by copy-on-write and by deep copy."""
    repeats, many, few = (1, 2, 1) if quick else (15, 500, 1)
    order = list(plain["orders"])[len(plain["orders"]) // 2]
    env, other = Shop(freeze(plain)), Shop(None)
    env.reset(seed=0, options={"task": TASK})
    before = env.snapshot()

    def share() -> object:
        other.restore(before)
        other.cancel(order)
        return other.snapshot()

    def deep() -> object:
        tables = copy.deepcopy(plain)
        tables["orders"][order]["status"] = "cancelled"
        return state_digest(tables)

    share()
    assert other.state.to_plain()["orders"][order]["status"] == "cancelled"
    assert env.state == freeze(plain), "the parent was changed"
    sharing = repeat(lambda: per_run(share, many), repeats)
    copying = repeat(lambda: per_run(deep, few), repeats)
    once = repeat(lambda: per_run(lambda: freeze(plain).digest, few), 1 if quick else 5)
    return [
        Figure("retail tables: fork, untouched", "us", *repeat(lambda: per_run(lambda: other.restore(before), many), repeats)),
        Figure("retail tables: fork, one row changed, state hash", "us", *sharing, 200.0),
        Figure("retail tables: deep copy, one row changed, state hash", "us", *copying),
        Figure("retail tables: deep copy / fork", "ratio", copying[0] / sharing[0], copying[1] / sharing[1]),
        Figure("retail tables: freezing and the first hash, once", "us", *once),
    ]


def log_figures(quick: bool) -> list[Figure]:
    repeats, many = (1, 2) if quick else (15, 100)
    env, other = Live(EFFECTS + 1), Live(EFFECTS + 1)
    env.reset(seed=0, options={"task": TASK})
    for number in range(EFFECTS):
        env.step(call("calculate", expression=f"{number} * 3"))
    after = env.snapshot()
    saving = repeat(lambda: per_run(env.snapshot, many), repeats)
    replaying = repeat(lambda: per_run(lambda: other.restore(after), many), repeats)
    return [
        Figure(f"effect log: snapshot after {EFFECTS} calls", "us", *saving),
        Figure(f"effect log: restore, {EFFECTS} calls replayed", "us", *replaying),
    ]


def measure(data: Path, quick: bool) -> tuple[list[Figure], str]:
    """The figures, and why some are missing."""
    count, repeats = (16, 1) if quick else (2048, 15)
    figures = [Figure("value state: fork", "us", *repeat(lambda: measure_forks(Sums, count), repeats), 10.0), *log_figures(quick)]
    folder = data / "retail" / "db"
    if not folder.is_dir():
        return figures, f"the retail tables are skipped: there is no folder {folder}; give that of tau-bench"
    plain = {name: json.loads((folder / f"{name}.json").read_text()) for name in TABLES}
    return figures + table_figures(plain, quick), ""


def main() -> None:
    command = parser(__doc__)
    command.add_argument("data", nargs="?", type=Path, default=DATA, help="the folder of tau-bench")
    options = command.parse_args()
    figures, skipped = measure(options.data, options.quick)
    if options.json:
        rows = [{**asdict(figure), "met": figure.met} for figure in figures]
        print(json.dumps({"processor": processor(), "figures": rows, "skipped": skipped}))
        return
    console = Console()
    console.print(table_of(figures, "forks"))
    if skipped:
        console.print(skipped)


if __name__ == "__main__":
    main()
