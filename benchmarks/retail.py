"""What tau-bench's retail domain costs: a reset, the final reward, a fork after a write, and a turn.

``python benchmarks/retail.py [DATA]``, with ``--json`` for one JSON object and ``--quick`` for a smoke run. DATA is tau-bench's folder;
its gold episodes of the split test are played. Process CPU time for each reset, reward, fork and turn: the best and the median of
several repeats over all tasks.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from commandline import parser
from gym_overhead import Figure, processor, repeat, table_of
from rich.console import Console

from agentgym.envs.retail import Retail

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tau-bench"
COSTS = {"reset": 1000.0, "final reward": 1000.0, "fork after a write": 200.0, "turn": None}  # at most so many microseconds


def play(data: Path, count: int) -> dict[str, float]:
    """Microseconds of each, over one gold episode of each of some tasks."""
    env, other = Retail(data), Retail(data)
    spent, times = dict.fromkeys(COSTS, 0.0), dict.fromkeys(COSTS, 0)

    def note(cost: str, started: float) -> None:
        spent[cost] += time.process_time() - started
        times[cost] += 1

    for task in env.tasks("test")[:count]:
        started = time.process_time()
        env.reset(seed=0, options={"task": task})
        note("reset", started)
        *actions, last = env.gold(task)
        for action in actions:
            tables = env.state.tables
            started = time.process_time()
            env.step(action)
            note("turn", started)
            if env.state.tables is not tables:
                started = time.process_time()
                other.restore(env.snapshot())
                note("fork after a write", started)
        started = time.process_time()
        _, reward, *_ = env.step(last)
        note("final reward", started)
        assert reward == 1.0, f"the gold episode of {task.id} is not rewarded"
    return {cost: spent[cost] / max(1, times[cost]) * 1e6 for cost in COSTS}


def measure(data: Path, quick: bool) -> list[Figure]:
    count, repeats = (4, 1) if quick else (10_000, 15)
    rounds = {cost: list[float]() for cost in COSTS}
    for _ in range(repeats + 1):
        for cost, microseconds in play(data, count).items():
            rounds[cost].append(microseconds)
    return [Figure(cost, "us", *repeat(iter(rounds[cost]).__next__, repeats), target) for cost, target in COSTS.items()]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("data", nargs="?", type=Path, default=DATA, help="tau-bench's folder")
    options = command.parse_args()
    figures = measure(options.data, options.quick) if options.data.is_dir() else []
    if options.json:
        print(json.dumps({"processor": processor(), "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}))
        return
    Console().print(table_of(figures, "retail") if figures else f"skipped: there is no folder {options.data}; give that of tau-bench")


if __name__ == "__main__":
    main()
