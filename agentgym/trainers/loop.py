"""The loop: draw, roll out, admit, assign credit, divide, pack, learn, push."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from agentgym.clock import Clock
from agentgym.outcome import Outcome
from agentgym.seeds import Lineage
from agentgym.store import RunStore
from agentgym.trainers.credit.streams import check_streams, log_advantages, teaches
from agentgym.trainers.logs import log_step
from agentgym.trainers.playing import Playing, playing
from agentgym.trainers.seams import Metrics, Stateful, pace
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree

Done = Callable[[int, Metrics, Sequence[TurnTree]], Any]


async def train(
    run: Training, steps: int, store: RunStore | None = None, done: Done | None = None, checkpoint_every: int = 5
) -> None:
    """Train up to ``steps`` steps, from the store's newest checkpoint if it has one.

    ``done`` hears the number of steps, the metrics and the trees after each one; what it returns is awaited if it can be,
    and True ends the training.
    """
    first, folder = (store.resume() if store is not None else None) or (0, None)
    player = playing(run, store, clock := Clock())
    if folder is not None:
        run.load(player, folder)
    if folder is None or not isinstance(run.sync, Stateful):  # else the actor goes on with the weights that it had
        await run.sync.push(run.learner)
    if run.hook is not None:
        await run.hook.begin(run)
    async with aclosing(player):
        for step in range(first, steps):
            metrics, played, learnt = await train_step(run, player, clock, step, store)
            if store is not None:
                log_step(store, step + 1, metrics, played, learnt)
            heard: Any = done(step + 1, metrics, played) if done is not None else None
            last = (await heard if hasattr(heard, "__await__") else heard) is True or step + 1 == steps
            if store is not None and (last or (step + 1) % checkpoint_every == 0):
                store.checkpoint(step + 1, partial(run.save, player))
            if last:
                break


async def train_step(
    run: Training, player: Playing, clock: Clock, step: int, store: RunStore | None = None
) -> tuple[Metrics, list[TurnTree], list[TurnTree]]:
    """The metrics, the trees that were played, and those that were learnt."""
    await run.schedule.admit(run.learner.version)
    forest = await player.forest(step)
    run.source.observe(forest)
    admitted = [tree for tree in forest if run.source.admit(tree) is None]
    trees = run.schedule.select(admitted, run.learner.version) or []
    with clock.during("score"):
        await run.credit.assign(trees, {"learner": run.learner, "chat": run.chat, **run.models})
    check_streams(trees)
    if store is not None:
        log_advantages(store, trees)
    with clock.during("learn"):
        metrics = await asyncio.to_thread(_learn, run, step, trees)
    if run.schedule.push_due(run.learner.version):
        with clock.during("sync"):
            await run.sync.push(run.learner)
        await player.pushed()
    if run.hook is not None:
        metrics.update(await run.hook.after_step(run, step + 1))
    for plugin in (*run.plugins().values(), player):
        metrics.update(plugin.metrics())
    leaves = [leaf for tree in forest for leaf in tree.leaves() if leaf.outcome is not Outcome.CANCELLED]
    metrics["lost"], metrics["episodes"] = sum(leaf.reward is None for leaf in leaves), len(leaves)
    acted = [turn for tree in forest for turn in tree.turns if turn.author != "env"]
    metrics["sampled_tokens"] = sum(turn.sampled_tokens for turn in acted)
    metrics["rollout_turns"] = sum(turn.sampled_tokens and not turn.partial for turn in acted)
    metrics["environment_steps"], metrics["loop_steps"] = sum(turn.executed for turn in acted), 1
    return metrics | clock.lap(), forest, trees


def _learn(run: Training, step: int, trees: Sequence[TurnTree]) -> Metrics:
    """A group without contrast has no gradient; as in DAPO (arXiv 2503.14476) it is left out of the divisor too."""
    taught = [tree for tree in trees if teaches(tree)]
    Lineage.of(run.seed, "order", step).rng().shuffle(taught)
    collected: dict[str, list[float]] = {}
    for part in (taught[first :: run.updates] for first in range(min(run.updates, len(taught)))):
        run.divisor(part)
        packs = run.packing(part)
        learnt = run.learner.accumulate_all(packs, run.objective)
        totals = {"loss": sum(metrics.pop("loss", 0.0) for metrics in learnt), "packed_tokens": float(sum(map(len, packs)))}
        for name, value in (item for metrics in (*learnt, totals, run.learner.step(pace(run.objective))) for item in metrics.items()):
            collected.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in collected.items()}
