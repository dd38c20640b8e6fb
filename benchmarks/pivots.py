"""How many turns of demonstrations are pivots, by what counts as equivalent to the demonstrated action.

    python benchmarks/pivots.py [--json] [--quick]

The shipped policy tries each turn of the scripted expert's episodes on training tasks of Search; every rule judges the same tries.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import torch
from commandline import parser

from agentgym import Lineage, Rollout, Start, TurnTree
from agentgym.chat import Chat
from agentgym.cli.policies import find_policy
from agentgym.envs.search import Search
from agentgym.envs.search.expert import Expert
from agentgym.rollout import Limits
from agentgym.trainers.credit.arguments import Arguments
from agentgym.trainers.credit.equivalence import Equivalence, Exact, SameObservation, SameState
from agentgym.trainers.credit.pivot_rl import PivotRL
from agentgym.trainers.credit.tries import PIVOT
from agentgym.trainers.demonstrations import demonstrated
from agentgym.trainers.expanders.pivot_rl import PivotRL as Tries
from agentgym.trainers.recipe import LimitsOf

TASKS = 256
RULES: dict[str, Equivalence] = {
    "SameObservation": SameObservation(),
    "SameState": SameState(),
    "Exact": Exact(),
    "Arguments(0.4)": Arguments(0.4),
    "Arguments(0.3)": Arguments(0.3),
    "Arguments(0.1)": Arguments(0.1),
}


def tried(tasks: int) -> tuple[list[TurnTree], Chat | None]:
    policy, chat = find_policy("tiny", Search)
    limits, actors = Limits(**LimitsOf().model_dump()), {"policy": policy, "demonstration": Expert()}
    drawn = Lineage.of(0, "tasks").rng().sample(list(Search().tasks("train")), tasks)
    rollout = Rollout(Search, Tries(8), actors, chat, Lineage.of(0, "tries"), limits=limits)
    return asyncio.run(rollout.run([Start(task) for task in drawn])), chat


def measure(tasks: int) -> list[dict[str, Any]]:
    trees, chat = tried(tasks)
    rows = []
    for name, rule in RULES.items():
        credit = PivotRL(rule)
        asyncio.run(credit.assign(trees, {"chat": chat}))
        metrics = credit.metrics()
        shown = [[turn.metrics.get(PIVOT, 0.0) for turn in demonstrated(tree)] for tree in trees]
        rows.append(
            {
                "rule": name,
                "turns": metrics["pivots_seen"],
                "mean": metrics["reward"],
                "pivots": metrics["groups_with_signal"],
                "first": sum(marks[0] for marks in shown) / len(shown),
                "last": sum(marks[-1] for marks in shown) / len(shown),
                "equal": metrics["zero_variance"],
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = measure(6 if options.quick else TASKS)
    if options.json:
        print(json.dumps({"benchmark": "pivots", "rows": rows}))
        return
    print(f"{'equivalence':16}  turns   mean  pivots  of first turns  of last turns  groups of equal rewards")
    for row in rows:
        print(
            f"{row['rule']:16} {row['turns']:6.0f} {row['mean']:6.3f} {row['pivots']:7.3f} {row['first']:15.3f} {row['last']:14.3f} "
            f"{row['equal']:24.3f}"
        )


if __name__ == "__main__":
    main()
