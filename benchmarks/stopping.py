"""How often the interval of an evaluation that stops once it is precise holds the truth.

Run: python benchmarks/stopping.py [--json] [--quick]
"""

from __future__ import annotations

import json

import numpy as np
from commandline import parser

from agentgym.evaluation import FEWEST_TASKS, TASKS_AT_ONCE
from agentgym.statistics import Interval, clustered_interval

CASES = (  # truth, repeats of a task, their correlation, precision
    (0.50, 1, 0.0, 0.05),
    (0.50, 1, 0.0, 0.10),
    (0.80, 1, 0.0, 0.05),
    (0.90, 1, 0.0, 0.05),
    (0.95, 1, 0.0, 0.05),
    (0.97, 1, 0.0, 0.03),
    (0.05, 1, 0.0, 0.03),
    (0.50, 4, 0.5, 0.05),
    (0.80, 4, 0.5, 0.05),
    (0.95, 4, 0.5, 0.03),
)
TASKS = 1000


def stopped(truth: float, repeats: int, correlation: float, precision: float, rng: np.random.Generator) -> Interval:
    """The interval at which one evaluation stops."""
    difficulty = np.full(TASKS, truth)
    if correlation:
        spread = (1 - correlation) / correlation
        difficulty = rng.beta(truth * spread, (1 - truth) * spread, TASKS)
    trials = rng.random((TASKS, repeats)) < difficulty[:, None]
    for played in (*range(FEWEST_TASKS, TASKS, TASKS_AT_ONCE), TASKS):
        found = clustered_interval({str(n): row for n, row in enumerate(trials[:played].astype(float))})
        if max(found.high - found.estimate, found.estimate - found.low) <= precision:
            break
    return found


def measure(quick: bool) -> list[dict[str, float]]:
    runs = 20 if quick else 3000
    rows = []
    for truth, repeats, correlation, precision in CASES:
        rng = np.random.default_rng(0)
        found = [stopped(truth, repeats, correlation, precision, rng) for _ in range(runs)]
        held = float(np.mean([one.low <= truth <= one.high for one in found]))
        row = {"truth": truth, "repeats": repeats, "correlation": correlation, "precision": precision}
        rows.append({**row, "coverage": held, "tasks": float(np.mean([one.n for one in found]))})
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    rows = measure(options.quick)
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name} {value:g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
