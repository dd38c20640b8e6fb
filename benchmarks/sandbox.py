"""What a call of a sandbox costs beyond the program itself, by backend, against an interpreter that is started cold.

    python benchmarks/sandbox.py [--json] [--quick] [--backend NAME]

The program is ``pass``. "over" is what the caller waits for less what the worker measured of the program, from the order to its end.
"resumed" is a call that goes on from a history whose interpreter stands ready, "replayed" one that must run it again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from commandline import parser

from agentgym.errors import AgentGymError
from agentgym.tools.sandbox import Sandbox, open_sandbox

BACKENDS = ("bubblewrap", "docker", "subprocess")
TARGETS = {"bubblewrap": 1.0, "docker": 5.0}  # ms over the program's own time
PAUSE = 0.02  # seconds between calls, as between turns; "at once" has none


def milliseconds(action: Callable[[], Any], times: int, pause: float = PAUSE) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append((time.perf_counter() - began) * 1e3)
        time.sleep(pause)
    return taken


def cold(times: int) -> float:
    python = getattr(sys, "_base_executable", sys.executable)
    return statistics.median(milliseconds(lambda: subprocess.run([python, "-I", "-S", "-c", "pass"], check=True), times))


def over(sandbox: Sandbox, times: int) -> tuple[list[float], list[float]]:
    programs: list[float] = []
    totals = milliseconds(lambda: programs.append(sandbox.run("pass").seconds * 1e3), times)
    return [total - program for total, program in zip(totals, programs, strict=True)], programs


def measure(backend: str, times: int) -> dict[str, Any]:
    began = time.perf_counter()
    sandbox = open_sandbox(backend)  # type: ignore[arg-type]
    start = (time.perf_counter() - began) * 1e3
    try:
        sandbox.run("pass")
        beyond, programs = over(sandbox, times)
        at_once = statistics.median(milliseconds(lambda: sandbox.run("pass"), times, pause=0))
        sandbox.run("x", history=("x = 1",))
        resumed = statistics.median(milliseconds(lambda: sandbox.run("x", history=("x = 1",)), times))
        count = iter(range(times))
        replayed = statistics.median(milliseconds(lambda: sandbox.run("x", history=(f"x = {next(count)}",)), times))
    finally:
        sandbox.close()
    return {
        "backend": backend,
        "start": start,
        "over": statistics.median(beyond),
        "over_best": min(beyond),
        "program": statistics.median(programs),
        "at_once": at_once,
        "resumed": resumed,
        "replayed": replayed,
        "target": TARGETS.get(backend),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--backend", choices=BACKENDS, help="this one alone")
    chosen = options.parse_args()
    times = 5 if chosen.quick else 200
    rows, missing, interpreter = [], {}, cold(max(5, times // 10))
    for backend in [chosen.backend] if chosen.backend else BACKENDS:
        try:
            rows.append(measure(backend, times))
        except AgentGymError as error:
            missing[backend] = str(error)
    if chosen.json:
        print(json.dumps({"benchmark": "sandbox", "unit": "ms", "cold": interpreter, "rows": rows, "missing": missing}))
        return
    print(f"a cold interpreter: {interpreter:.1f} ms; medians in ms, and in cold interpreters")
    print("backend       start        over (best)      program      at once      resumed     replayed   target of over")
    for row in rows:
        figures = (f"{row[name]:6.2f} {row[name] / interpreter:4.2f}x" for name in ("program", "at_once", "resumed", "replayed"))
        goal = f"{row['target']:.0f} ms" if row["target"] else ""
        print(f"{row['backend']:11} {row['start']:7.0f}  {row['over']:6.2f} ({row['over_best']:5.2f}) {'  '.join(figures)}  {goal}")
    for backend, why in missing.items():
        print(f"{backend}: {why}")


if __name__ == "__main__":
    main()
