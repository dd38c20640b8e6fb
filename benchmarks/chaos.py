"""Whether a training that is disturbed ends where undisturbed ones end: success on validation tasks, inside the spread of the seeds.

Run: python benchmarks/chaos.py [--json] [--quick] [--python PYTHON]

Each training is `agentgym train` of the same recipe with another seed, or `agentgym chaos` of it: 10% of the turns fail and the
trainer is killed twice; with --python, that of an environment with vLLM, it plays on a server, which is killed twice as well.
Ten minutes on a CPU without vLLM. What is in the folder already is not played again.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from commandline import parser

from agentgym.statistics import t_quantile

STEPS, SEEDS, DISTURBED, TASKS = 50, 5, 2, 357  # all validation tasks
ON_A_SERVER = {
    "actor": {"class": "agentgym.policies.vllm:VllmPolicy", "urls": "http://127.0.0.1:8000"},  # chaos starts its own
    "sync": {"class": "agentgym.policies.vllm.sync:FileWeights"},
}


def agentgym(*arguments: object) -> None:
    subprocess.run([Path(sys.executable).with_name("agentgym"), *map(str, arguments)], check=True, stdout=sys.stderr)


def trained(folder: Path, seed: int, steps: int, more: dict[str, Any], *chaos: object) -> Path:
    """The run's folder; disturbed, where there are arguments for ``agentgym chaos``."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "disturbed" / "run" if chaos else folder / "run"
    if not (run / "policy").exists():
        shutil.rmtree(run.parent if chaos else run, ignore_errors=True)  # what was begun
        recipe = {"env": {"id": "agentgym/Search-v0"}, "policy": "tiny", "steps": steps, "seed": seed, **more}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if chaos:
            agentgym("chaos", folder / "recipe.yaml", "--out", folder / "disturbed", "--seed", seed, *chaos)
        else:
            agentgym("train", folder / "recipe.yaml", "--out", run)
    return run


def success(run: Path, tasks: int) -> float:
    found = run.parent / "validation"
    if not (found / "summary.json").exists():
        agentgym("eval", "agentgym/Search-v0", "--policy", run / "policy", "--split", "validation", "--tasks", tasks, "--out", found)
    estimate: float = json.loads((found / "summary.json").read_text())["success"]["average"]["estimate"]
    return estimate


def measure(quick: bool, python: str | None, folder: Path) -> dict[str, Any]:
    steps, seeds, tasks = (3, 2, 8) if quick else (STEPS, SEEDS, TASKS)
    chaos = ["--tool-failures", 0.1, "--trainer-kills", 2, *(["--server-kills", 2, "--python", python] if python else [])]
    plain = [success(trained(folder / f"plain-{seed}", seed, steps, {}), tasks) for seed in range(seeds)]
    kind, more = ("served", ON_A_SERVER) if python else ("chaos", {})
    runs = [trained(folder / f"{kind}-{n}", seeds + n, steps, more, *chaos) for n in range(1 if quick else DISTURBED)]
    mean, spread = float(np.mean(plain)), float(np.std(plain, ddof=1))
    reach = t_quantile(0.975, seeds - 1) * spread * math.sqrt(1 + 1 / seeds)  # of one more run
    disturbed = [{"success": success(run, tasks), **json.loads(run.with_name("chaos.json").read_text())} for run in runs]
    return {
        "undisturbed": plain,
        "one_more": [mean - reach, mean + reach],
        "disturbed": [{**one, "inside": abs(one["success"] - mean) <= reach} for one in disturbed],
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--python", help="of an environment with vLLM: play on a server, and kill it too")
    options.add_argument("--folder", type=Path, default=Path("runs/benchmark-chaos"))
    given = options.parse_args()
    found = measure(given.quick, given.python, given.folder / ("quick" if given.quick else "whole"))
    if given.json:
        print(json.dumps(found))
        return
    print("success on validation, undisturbed:", *(f"{value:.3f}" for value in found["undisturbed"]))
    print("95% of one more such run: {:.3f} to {:.3f}".format(*found["one_more"]))
    for one in found["disturbed"]:
        print("disturbed:", {name: round(value, 3) for name, value in one.items()})


if __name__ == "__main__":
    main()
