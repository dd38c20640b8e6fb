"""The loop: draw, roll out, admit, assign credit, divide, pack, learn, push."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.expand import Expander
from agentgym.pack import pack
from agentgym.policy import Actor
from agentgym.rollout import Limits, Rollout
from agentgym.seeds import Lineage
from agentgym.store import RunStore, log_advantages
from agentgym.trainers.divisors import Divisor, token_mean
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.seams import Credit, Learner, Metrics, Objective, Schedule, Source, Sync
from agentgym.turn import TurnTree


@dataclass
class Training:
    """Plain objects on the seams. ``batch`` trees for each step, learnt in ``updates`` optimiser steps."""

    make_env: Callable[[], AgentEnv]
    actor: Actor
    chat: Chat
    source: Source
    expander: Expander
    credit: Credit
    objective: Objective
    learner: Learner
    sync: Sync
    schedule: Schedule = field(default_factory=Synchronous)
    divisor: Divisor = token_mean
    limits: Limits = field(default_factory=Limits)
    batch: int = 8
    updates: int = 2
    max_tokens: int = 1536  # of one pack
    seed: int = 0
    models: Mapping[str, Any] = field(default_factory=dict)

    def plugins(self) -> dict[str, Any]:
        return {"source": self.source, "expander": self.expander, "credit": self.credit, "schedule": self.schedule}

    def save(self, folder: Path) -> None:
        states = {name: plugin.state_dict() for name, plugin in self.plugins().items()}
        torch.save({**states, "learner": self.learner.state_dict(), "random": torch.get_rng_state()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        for name, plugin in self.plugins().items():
            plugin.load_state_dict(state[name])
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["random"])


Done = Callable[[int, Metrics, Sequence[TurnTree]], Any]


async def train(
    run: Training, steps: int, store: RunStore | None = None, done: Done | None = None, checkpoint_every: int = 5
) -> None:
    """Train up to ``steps`` steps, from the store's newest checkpoint if it has one.

    ``done`` hears the number of steps, the metrics and the trees after each one; what it returns is awaited if it can be,
    and True ends the training.
    """
    first = 0
    if store is not None and (found := store.resume()) is not None:
        first, folder = found
        run.load(folder)
    await run.sync.push(run.learner)
    for step in range(first, steps):
        metrics, trees = await train_step(run, step, store)
        if store is not None:
            store.append("metrics", {"step": step + 1, **{k: v for k, v in metrics.items() if not k.startswith("seconds")}})
        heard: Any = done(step + 1, metrics, trees) if done is not None else None
        last = (await heard if hasattr(heard, "__await__") else heard) is True or step + 1 == steps
        if store is not None and (last or (step + 1) % checkpoint_every == 0):
            store.checkpoint(step + 1, run.save)
        if last:
            break


async def train_step(run: Training, step: int, store: RunStore | None = None) -> tuple[Metrics, list[TurnTree]]:
    started = time.perf_counter()
    await run.schedule.admit(run.learner.version)
    rollout = Rollout(
        run.make_env,
        run.expander,
        {"policy": run.actor, **run.models},
        run.chat,
        Lineage.of(run.seed, "train", step),
        limits=run.limits,
        committed=store.turn if store else None,
    )
    forest = await rollout.run(run.source.draw(run.batch))
    played = time.perf_counter()
    run.source.observe(forest)
    admitted = [tree for tree in forest if run.source.admit(tree) is None]
    trees = run.schedule.select(admitted, run.learner.version) or []
    await run.credit.assign(trees, run.models)
    if store is not None:
        log_advantages(store, trees)
    metrics = _learn(run, step, trees)
    if run.schedule.push_due(run.learner.version):
        await run.sync.push(run.learner)
    for plugin in run.plugins().values():
        metrics.update(plugin.metrics())
    leaves = [leaf for tree in forest for leaf in tree.leaves()]
    metrics["lost"] = sum(leaf.reward is None for leaf in leaves)
    metrics["episodes"] = len(leaves)
    acted = [turn for tree in forest for turn in tree.turns if turn.author != "env"]
    metrics["sampled_tokens"] = sum(sum(turn.sampled) for turn in acted)
    metrics["rollout_turns"], metrics["environment_steps"] = sum(not t.partial for t in acted), sum(t.executed for t in acted)
    metrics["seconds_rollout"], metrics["seconds_learn"] = played - started, time.perf_counter() - played
    return metrics, forest


def _learn(run: Training, step: int, trees: Sequence[TurnTree]) -> Metrics:
    """A group without contrast has no gradient; as in DAPO (arXiv 2503.14476) it is left out of the divisor too."""
    taught = [tree for tree in trees if any(turn.streams["advantage"].any() for turn in tree.turns)]
    Lineage.of(run.seed, "order", step).rng().shuffle(taught)
    collected: dict[str, list[float]] = {}
    for part in (taught[first :: run.updates] for first in range(min(run.updates, len(taught)))):
        run.divisor(part)
        packs = [run.learner.accumulate(packed, run.objective) for packed in pack(part, run.max_tokens)]
        loss = sum(metrics.pop("loss", 0.0) for metrics in packs)
        for metrics in (*packs, {"loss": loss}, run.learner.step()):
            for name, value in metrics.items():
                collected.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}
