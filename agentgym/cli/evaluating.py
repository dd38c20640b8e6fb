"""``agentgym eval`` and ``agentgym compare``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from agentgym.cli import console
from agentgym.cli.policies import find_policy
from agentgym.cli.reporting import write
from agentgym.envs.suites import suites
from agentgym.errors import AgentGymError
from agentgym.evaluation import Episode, Evaluation, by_task, evaluate
from agentgym.registry import make
from agentgym.statistics import Interval, compare
from agentgym.store import RunStore


def run(
    env: str,
    policy: str,
    data: Path | None,
    k: int,
    split: str | None,
    tasks: int | None,
    temperature: float,
    seed: int,
    out: Path | None,
) -> None:
    if k < 1:
        raise AgentGymError(f"--k must be at least 1, not {k}")
    if (suite := suites().get(env)) is not None:
        env, data, split = suite.env, suite.data(data), split or suite.split
    make_env = partial(make, env, **({"data": str(data)} if data else {}))
    sample = make_env()
    split = split or sample.splits[-1]
    chosen = list(sample.tasks(split))[:tasks] if split in sample.splits else []
    if not chosen:
        raise AgentGymError(f"{env} has no tasks in split {split!r}; splits: {', '.join(sample.splits)}")
    config = {"env": env, "policy": policy, "data": str(data), "k": k, "split": split, "temperature": temperature, "seed": seed}
    folder = out or Path("runs") / f"eval-{env.replace('/', '-').replace(':', '-')}-{policy.replace('/', '-')}"
    store = _open_or_create(folder, {"kind": "evaluation", **config})
    actor, chat = find_policy(policy, make_env)
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task("playing", total=len(chosen) * k)

        def done(episodes: list[Episode]) -> None:
            bar.advance(line, len(episodes))

        result, episodes = asyncio.run(
            evaluate(make_env, actor, chosen, chat=chat, k=k, temperature=temperature, seed=seed, store=store, done=done)
        )
    store.write("summary.json", result.record())
    store.close()
    console.print(table(result, k))
    for error in sorted({episode.error for episode in episodes if episode.error})[:3]:
        console.print(f"[yellow]lost:[/yellow] {error}", highlight=False)
    console.print(f"{write(folder)}")


def list_suites() -> None:
    shown = Table(title="suites: agentgym eval NAME --data FOLDER")
    for column in ("suite", "environment, split", "tasks", "metric", "licence", "published", "data"):
        shown.add_column(column)
    for name, suite in suites().items():
        published = "\n".join(f"{score:.3f} {model}" for model, score in suite.reference.items())
        row = (f"{suite.env}, {suite.split}", f"{suite.tasks:,}", suite.metric, suite.licence, published, suite.source)
        shown.add_row(name, *row, end_section=True)
    console.print(shown)


def table(result: Evaluation, k: int) -> Table:
    shown = Table(title=f"{result.tasks} tasks, {result.episodes} episodes, 95% intervals clustered by task")
    shown.add_column("measure")
    shown.add_column("value", justify="right")
    rows: list[tuple[str, Any]] = [(f"avg@{k}", result.success.average)]
    if result.success.k > 1:
        rows += [(f"pass@{k}", result.success.any_of_k), (f"pass^{k}", result.success.all_of_k)]
    rows += [("reward", result.reward), *result.metrics.items()]
    for name, interval in rows:
        shown.add_row(name, as_text(interval))
    shown.add_row("turns per episode", f"{result.turns:.2f}")
    shown.add_row("tokens written", f"{result.tokens:,}")
    shown.add_row("ends", _counts(result.ends))
    shown.add_row("outcomes of turns", _counts(result.outcomes))
    shown.add_row("without verdict", str(result.lost))
    return shown


def as_text(interval: Interval) -> str:
    return f"{interval.estimate:.3f}  [{interval.low:.3f}, {interval.high:.3f}]"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _open_or_create(folder: Path, config: dict[str, Any]) -> RunStore:
    """The same evaluation goes on where it was; another one does not get mixed into it."""
    if not (folder / "run.json").exists():
        return RunStore.create(folder, config)
    store = RunStore.open(folder)
    if store.config != config:
        different = sorted(name for name in config if store.config.get(name) != config[name])
        raise AgentGymError(f"{folder} holds another run (other {', '.join(different)}): choose another folder with --out")
    return store


def compare_runs(run_a: Path, run_b: Path) -> None:
    a, b = (_rewards(folder) for folder in (run_a, run_b))
    result = compare(a, b)
    shown = Table(title=f"paired by task, {result.paired.difference.n} tasks in both")
    shown.add_column("measure")
    shown.add_column("value", justify="right")
    shown.add_row(str(run_a), as_text(result.a))
    shown.add_row(str(run_b), as_text(result.b))
    shown.add_row("difference", as_text(result.paired.difference))
    shown.add_row("p (sign flip)", f"{result.paired.p_value:.4f}")
    shown.add_row("detectable at power 0.8", f"{result.paired.minimal_detectable_difference:.3f}")
    if result.left_out:
        shown.add_row("tasks in one run only", str(result.left_out))
    console.print(shown)


def _rewards(folder: Path) -> dict[str, Sequence[float]]:
    episodes = [Episode(**record) for record in RunStore.open(folder).read("episodes")]
    rewards = by_task([one for one in episodes if one.reward is not None], lambda one: one.reward)
    if not rewards:
        raise AgentGymError(f"{folder} holds no finished episodes: it must be a run of 'agentgym eval'")
    return dict(rewards)
