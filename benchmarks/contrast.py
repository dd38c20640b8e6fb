"""How many groups teach anything: of equal size, and sized by what is known of each task's chance of success.

    python benchmarks/contrast.py [--json] [--quick]

GRPO trains the shipped policy on questions of which a quarter is out of reach; then it plays each of some training tasks many times.
Some of these episodes, drawn at random, give the rates that an allocation knows. The others say what comes of it: the chance that
so many of them, drawn without replacement, hold both outcomes. So no allocation is judged by the episodes that it knows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import torch
from commandline import parser

from agentgym import Lineage, Rollout, Start, Task
from agentgym.cli.training import build
from agentgym.expand import Groups
from agentgym.pack import Floats, Ints
from agentgym.trainers.credit.verdicts import judged
from agentgym.trainers.expanders.allocation import allocate_roots, root_contrasts
from agentgym.trainers.loop import train
from agentgym.trainers.recipe import Environment, Recipe
from agentgym.trainers.training import Training

TOKENS = 100_000  # sampled in training
TASKS = 144
KNOWN = 48  # episodes of each task that give its rate
MOST = 24  # that a group may have, and that groups are drawn from
BUDGET = 96  # episodes that are shared out
OFFERED = (12, 24, 48)  # tasks over which they are
DRAWS = 100  # of these tasks
SEED = 0


def trained(tokens: int) -> Training:
    env = Environment(id="agentgym/Search-v0", arguments={"max_turns": 3})
    run = build(Recipe(env=env, steps=1, batch=12, updates=3, seed=SEED))
    spent = 0.0

    def done(step: int, metrics: dict[str, float], trees: object) -> bool:
        nonlocal spent
        spent += metrics["sampled_tokens"]
        return spent >= tokens

    asyncio.run(train(run, 10**6 if tokens else 0, done=done))
    return run


def played(run: Training, tasks: list[Task]) -> tuple[Ints, Ints]:
    """Successes of each task in the episodes that allocations know, and in those that judge them."""
    groups, draws = Groups(KNOWN + MOST), Lineage.of(SEED, "play")
    rollout = Rollout(run.make_env, groups, {"policy": run.actor}, run.chat, draws, limits=run.limits)
    forest = asyncio.run(rollout.run([Start(task) for task in tasks]))
    won = np.array([list(judged(tree).values()) for tree in forest], dtype=np.int64)
    won = np.random.default_rng(SEED).permuted(won, axis=1)  # they come in the order in which they ended
    return won[:, :KNOWN].sum(axis=1), won[:, KNOWN:].sum(axis=1)


def by_kind(tasks: list[Task], rates: Floats) -> Floats:
    """The mean rate of the other tasks that ask for the same relations; of all, where there are none."""
    kinds = [(task.data["compares"], *(relation for _, relation, _ in task.data["plan"])) for task in tasks]
    others = [[rates[j] for j, other in enumerate(kinds) if other == kind and j != i] for i, kind in enumerate(kinds)]
    return np.array([np.mean(of_kind or rates) for of_kind in others])


def contrasts(successes: Ints) -> Floats:
    """The chance that m of ``MOST`` episodes hold both outcomes, shape (B, MOST + 1)."""
    alike = [[(comb(s, m) + comb(MOST - s, m)) / comb(MOST, m) for m in range(MOST + 1)] for s in successes.tolist()]
    mixed: Floats = np.maximum(0.0, 1 - np.array(alike))
    return mixed


def measure(tokens: int, count: int, draws: int) -> list[dict[str, Any]]:
    run = trained(tokens)
    tasks = Lineage.of(SEED, "tasks").rng().sample(list(run.make_env().tasks("train")), count)
    known, others = played(run, tasks)
    rates, come = known / KNOWN, contrasts(others)
    kinds = by_kind(tasks, rates)
    allocations: dict[str, Callable[[Ints], Ints]] = {
        "equal": lambda chosen: np.full(len(chosen), BUDGET // len(chosen)),
        "by kind of question": lambda chosen: allocate_roots(root_contrasts(kinds[chosen], MOST), BUDGET),
        "by rate": lambda chosen: allocate_roots(root_contrasts(rates[chosen], MOST), BUDGET),
    }
    rows = []
    for offered in (offered for offered in OFFERED if offered <= count):
        rng = np.random.default_rng(SEED)
        chosen = [rng.choice(count, offered, replace=False) for _ in range(draws)]
        for name, allocate in allocations.items():
            sizes = [allocate(places) for places in chosen]
            groups = sum(int((size > 0).sum()) for size in sizes)
            mixed = sum(come[places, size].sum() for places, size in zip(chosen, sizes, strict=True))
            rows.append({"tasks": offered, "allocation": name, "groups": groups / draws, "mixed": mixed / draws, "share": mixed / groups})
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = measure(0, 12, 2) if options.quick else measure(TOKENS, TASKS, DRAWS)
    if options.json:
        print(json.dumps({"benchmark": "contrast", "episodes": BUDGET, "rows": rows}))
        return
    print(f"{BUDGET} episodes over\n{'tasks':>5}  {'allocation':20} {'groups':>7} {'mixed':>7} {'share':>7}")
    for row in rows:
        print(f"{row['tasks']:5}  {row['allocation']:20} {row['groups']:7.1f} {row['mixed']:7.2f} {row['share']:7.2f}")


if __name__ == "__main__":
    main()
