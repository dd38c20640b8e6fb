"""Saved evaluations: ``agentgym compare``, ``agentgym merge`` and ``agentgym rescore``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from agentgym.cli import console, quoted
from agentgym.cli.evaluating import as_text, differing, finish
from agentgym.cli.policies import is_address
from agentgym.envs.rows import skipping_bad
from agentgym.errors import AgentGymError
from agentgym.evaluation import Episode, by_task
from agentgym.policies.recorded import Rescored, rescore
from agentgym.registry import make
from agentgym.statistics import compare
from agentgym.store import RunStore


def compare_runs(run_a: Path, run_b: Path) -> None:
    configs = [RunStore.open(folder).config for folder in (run_a, run_b)]
    if different := [name for name in ("env", "split") if configs[0].get(name) != configs[1].get(name)]:
        raise AgentGymError(f"{run_a} and {run_b} played other tasks (other {', '.join(different)}): they cannot be paired")
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


def merge(out: Path, folders: Sequence[Path]) -> None:
    """One run of the shards of an evaluation, all of which must be there, whole, and otherwise alike."""
    shards = [_evaluation(folder) for folder in folders]
    first = shards[0]
    where = ("policy",) if all(is_address(store.config["policy"]) for store in shards) else ()
    for folder, store in zip(folders, shards, strict=True):
        if different := differing(store.config, first.config, but=("shard", "data", "episodes", *where)):
            raise AgentGymError(f"{folder} and {folders[0]} are no shards of one evaluation (other {', '.join(different)})")
        if (played := sum(1 for _ in store.read("episodes"))) < store.config["episodes"]:
            raise AgentGymError(f"{folder} has {played} of {store.config['episodes']} episodes: run it again, then merge")
    _check_complete([str(store.config["shard"]) for store in shards])
    episodes = sum(store.config["episodes"] for store in shards)
    merged = RunStore.create(out, {**first.config, "shard": None, "episodes": episodes})
    for log in ("turns", "episodes"):
        for store in shards:
            for record in store.read(log):
                merged.append(log, record)
    finish(merged, [Episode(**record) for record in merged.read("episodes")])


def _check_complete(shards: Sequence[str]) -> None:
    count = shards[0].partition("/")[2]
    wanted = {f"{number}/{count}" for number in range(1, int(count or 0) + 1)}
    if len(set(shards)) < len(shards):
        raise AgentGymError(f"a shard is given twice: {', '.join(sorted(shards))}")
    if set(shards) != wanted:
        missing = ", ".join(sorted(wanted - set(shards))) or "shards of one number"
        raise AgentGymError(f"the runs are shards {', '.join(shards)}; missing: {missing}. Play it with --shard, then merge all")


def rescore_run(folder: Path, out: Path | None) -> None:
    recorded = _evaluation(folder)
    config = recorded.config
    trees = recorded.trees()
    data = {"data": config["data"]} if config["data"] else {}
    make_env = partial(make, config["env"], **data, **config["arguments"])
    store = RunStore.create(out or folder.with_name(f"{folder.name}-rescored"), {**config, "kind": "rescoring", "of": str(folder)})
    with Progress(console=console, transient=True) as bar, skipping_bad() if config["skip_bad"] else nullcontext():
        line = bar.add_task("judging", total=len(trees) * config["k"])

        def done(found: list[Rescored]) -> None:
            bar.advance(line, len(found))

        found = asyncio.run(rescore(make_env, trees, k=config["k"], seed=config["seed"], store=store, done=done))
    finish(store, [one.after for one in found])
    for one in [one for one in found if one.changed][:5]:
        console.print(f"{quoted(one.after.task)}: reward {one.before.reward} is now {one.after.reward}", highlight=False)
    gained = sum(one.before.reward is None and one.after.reward is not None for one in found)
    lost = sum(one.before.reward is not None and one.after.reward is None for one in found)
    console.print(f"{sum(one.changed for one in found)} of {len(found)} rewards changed")
    console.print(f"{gained} episodes have a verdict that had none, {lost} have none now that had one")
    console.print(f"{sum(one.strayed for one in found)} episodes observed other things than recorded")


def _evaluation(folder: Path) -> RunStore:
    store = RunStore.open(folder)
    if store.config.get("kind") != "evaluation":
        raise AgentGymError(f"{folder} holds a {store.config.get('kind')}: it must be a run of 'agentgym eval'")
    return store


def _rewards(folder: Path) -> dict[str, Sequence[float]]:
    episodes = [Episode(**record) for record in RunStore.open(folder).read("episodes")]
    rewards = by_task([one for one in episodes if one.reward is not None], lambda one: one.reward)
    if not rewards:
        raise AgentGymError(f"{folder} holds no finished episodes: it must be a run of 'agentgym eval'")
    return dict(rewards)
