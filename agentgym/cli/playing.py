"""``agentgym play``."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

from agentgym.cli import console, visible
from agentgym.env import tasks_in
from agentgym.envs.suites import suites
from agentgym.errors import AgentGymError
from agentgym.policies.person import Person
from agentgym.registry import make
from agentgym.rollout import Rollout, Start
from agentgym.seeds import Lineage
from agentgym.store import RunStore


def run(env: str, task: str | None, split: str | None, data: Path | None, seed: int, out: Path | None) -> None:
    if (suite := suites().get(env)) is not None:
        env, data, split = suite.env, suite.data(data), split or suite.split
    make_env = partial(make, env, **({"data": str(data)} if data else {}))
    sample = make_env()
    split = split or sample.splits[0]
    tasks = {found.id: found for found in tasks_in(sample, split)}
    lineage = Lineage.of(seed, "play")
    if (chosen := task or (lineage / "task").rng().choice(sorted(tasks))) not in tasks:
        raise AgentGymError(f"{env} has no task {task!r} in split {split!r}")
    store = RunStore.create(out or Path("runs") / f"play-{time.strftime('%Y%m%d-%H%M%S')}", {"kind": "play", "env": env, "seed": seed})
    person = Person(show=lambda text: console.print(visible(text), markup=False, highlight=False))
    asyncio.run(Rollout(make_env, person, {"policy": person}, None, lineage, committed=store.turn).run([Start(tasks[chosen])]))
    store.close()
    console.print(f"kept in {store.folder}")
