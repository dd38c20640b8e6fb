"""Evaluate the shipped tiny policy on held-out questions, train it by reinforcement, evaluate again, and show it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.table import Table

from agentgym.cli import console
from agentgym.cli.evaluating import as_text
from agentgym.cli.reporting import write
from agentgym.cli.training import build, progress, train_with_progress
from agentgym.evaluation import Episode, Evaluation, by_task, evaluate
from agentgym.report import Curve, Series, before_after
from agentgym.statistics import Interval, compare
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.recipe import Environment, Recipe
from agentgym.trainers.training import Training

ENV = "agentgym/Search-v0"
CURVE_TASKS = 64  # of the validation split, for the points of the learning curve
CURVE_EVERY = 15  # steps


def demo(seed: int = 0, out: Path = Path("runs/demo"), steps: int = 150, tasks: int = 384) -> None:
    started = time.perf_counter()
    if (out / "run.json").exists():
        shutil.rmtree(out)  # a demo's own former run
    recipe = Recipe(env=Environment(id=ENV), steps=steps, seed=seed)
    store = RunStore.create(out, {"kind": "demo", **recipe.model_dump(by_alias=True)})
    training = build(recipe)
    test = list(training.make_env().tasks("test"))[:tasks]

    def test_now(name: str) -> tuple[Evaluation, list[Episode]]:
        console.print(f"[bold]{name} training:[/bold] {len(test)} held-out questions …")
        result, episodes = asyncio.run(_evaluate(training, test, seed))
        console.print(f"  success {as_text(result.success.average)}")
        return result, episodes

    before, episodes_before = test_now("before")
    points: list[tuple[int, int, Interval]] = []
    curve: list[tuple[int, float]] = []
    tokens = 0

    async def heard(step: int, metrics: dict[str, float]) -> None:
        nonlocal tokens
        tokens += int(metrics["sampled_tokens"])
        curve.append((tokens, metrics["reward"]))
        if step % CURVE_EVERY == 0:
            validation = list(training.make_env().tasks("validation"))[:CURVE_TASKS]
            result, _ = await _evaluate(training, validation, seed)
            points.append((step, tokens, result.success.average))

    with progress() as bar:
        train_with_progress(training, steps, store, bar, checkpoint_every=30, heard=heard)
    after, episodes_after = test_now("after")

    comparison = compare(_rewards(episodes_before), _rewards(episodes_after))
    difference = comparison.paired.difference
    seconds = time.perf_counter() - started
    table = Table(title=f"{ENV}: {len(test)} held-out questions, 95% intervals")
    for column in ("", "success", "F1", "turns"):
        table.add_column(column)
    for name, result in (("before", before), ("after", after)):
        table.add_row(name, as_text(result.success.average), as_text(result.metrics["f1"]), f"{result.turns:.2f}")
    console.print(table)
    console.print(f"difference {as_text(difference)}; {tokens:,} tokens sampled in {steps} steps; {seconds:.0f} s; seed {seed}")
    summary = {
        "env": ENV,
        "seed": seed,
        "steps": steps,
        "tasks": len(test),
        "before": before.record(),
        "after": after.record(),
        "difference": difference,
        "sampled_tokens": tokens,
        "seconds": round(seconds, 1),
    }
    store.write("summary.json", summary)
    store.close()
    training_curve = Series("reward in training", [x for x, _ in curve], [y for _, y in curve])
    validation_curve = Series("success on validation", [x for _, x, _ in points], [y for _, _, y in points])
    page = write(
        out,
        title=f"{ENV}, seed {seed}",
        summary={"success before": before.success.average, "success after": after.success.average, "sampled tokens": tokens},
        tables=[before_after({"success": comparison})],
        curves=[Curve("Learning curve", "sampled tokens", [training_curve, validation_curve])],
    )
    console.print(f"open {page} for the learning curve and the turn trees")


def _rewards(episodes: Sequence[Episode]) -> Mapping[str, Sequence[float]]:
    return by_task([one for one in episodes if one.reward is not None], lambda one: one.reward)


async def _evaluate(training: Training, tasks: Sequence[Task], seed: int) -> tuple[Evaluation, list[Episode]]:
    return await evaluate(
        training.make_env, training.actor, tasks, chat=training.chat, seed=seed, limits=training.limits
    )


if __name__ == "__main__":
    typer.run(demo)
