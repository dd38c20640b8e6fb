"""Turns a second of an evaluation of 1,000 tasks with a stub policy, everything recorded, and what the record costs.

Run: python benchmarks/evaluating.py [--json] [--quick]. Each figure is wall time of the best and the median of several runs.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from itertools import cycle

from commandline import parser
from gym_overhead import ACTIONS, Sums

from agentgym import Task
from agentgym.evaluation import evaluate
from agentgym.policies.scripted import Scripted
from agentgym.store import RunStore

TURNS = 8
TARGET = 3000  # turns a second, with the record on


def seconds(tasks: list[Task], record: bool) -> float:
    acting = cycle(ACTIONS)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.create(f"{folder}/run", {}) if record else None
        started = time.perf_counter()
        result, _ = asyncio.run(evaluate(lambda: Sums(TURNS), Scripted(lambda prompt: next(acting)), tasks, store=store))
        spent = time.perf_counter() - started
        if store is not None:
            store.close()
    assert (result.episodes, result.turns) == (len(tasks), TURNS)
    return spent


def measure(quick: bool) -> dict[str, float]:
    tasks = [Task(f"sums-{n}", "Multiply some numbers. Use the calculator.") for n in range(20 if quick else 1000)]
    turns = len(tasks) * TURNS
    runs = {record: [seconds(tasks, record) for _ in range(1 if quick else 5)] for record in (True, False)}
    return {
        "turns_per_second": turns / min(runs[True]),
        "turns_per_second_median": turns / statistics.median(runs[True]),
        "turns_per_second_unrecorded": turns / min(runs[False]),
        "target": TARGET,
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    found = measure(options.quick)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:,.0f}")


if __name__ == "__main__":
    main()
