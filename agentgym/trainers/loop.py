"""The loop: draw, roll out, admit, assign credit, divide, pack, learn, push."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from agentgym.clock import Clock
from agentgym.store import RunStore
from agentgym.trainers.credit.streams import check_streams, log_advantages
from agentgym.trainers.figures import counts, means, verdicts
from agentgym.trainers.logs import log_step
from agentgym.trainers.playing import Playing, playing
from agentgym.trainers.seams import Metrics, Stateful
from agentgym.trainers.training import Training
from agentgym.trainers.updates import Updates
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
    forest: list[TurnTree] = []
    trees: list[TurnTree] = []
    credited: list[tuple[float, Metrics]] = []
    updates = Updates(run, step)
    try:
        async with aclosing(player.parts(step)) as parts:
            async for part in parts:
                forest += part
                trees += (learnt := await _credited(run, part, clock, store))
                credited.append((verdicts(part), run.credit.metrics()))
                with clock.during("learn"):
                    await asyncio.to_thread(updates.add, learnt)
    except BaseException:
        run.learner.discard()
        raise
    forest = player.in_order(forest)
    run.source.observe(forest)
    with clock.during("learn"):
        metrics = await asyncio.to_thread(updates.end)
    if run.schedule.push_due(run.learner.version):
        with clock.during("sync"):
            await run.sync.push(run.learner)
        await player.pushed()
    if run.hook is not None:
        metrics.update(await run.hook.after_step(run, step + 1))
    for name, plugin in {**run.plugins(), "playing": player}.items():
        metrics.update(means(credited) if name == "credit" else plugin.metrics())
    return metrics | counts(forest) | clock.lap(), forest, trees


async def _credited(run: Training, part: Sequence[TurnTree], clock: Clock, store: RunStore | None) -> list[TurnTree]:
    """What is learnt of a part, with its streams."""
    admitted = [tree for tree in part if run.source.admit(tree) is None]
    trees = run.schedule.select(admitted, run.learner.version) or []
    with clock.during("score"):
        await run.credit.assign(trees, {"learner": run.learner, "chat": run.chat, **run.models})
    check_streams(trees)
    if store is not None:
        log_advantages(store, trees)
    return trees
