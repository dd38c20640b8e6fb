"""``agentgym eval`` and ``agentgym suites``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from agentgym.cli import console, quoted
from agentgym.cli.hosting import hosted
from agentgym.cli.policies import find_policy, is_address, refuse_without_tools
from agentgym.cli.reporting import write
from agentgym.env import tasks_in
from agentgym.envs.rows import skipping_bad
from agentgym.envs.suites import Suite, fingerprint, suites
from agentgym.errors import AgentGymError
from agentgym.evaluation import Episode, Evaluation, evaluate, summary
from agentgym.registry import make
from agentgym.rollout import Limits
from agentgym.statistics import Interval
from agentgym.store import RunStore
from agentgym.task import Task


@dataclass(frozen=True, slots=True)
class Asked:
    """What is evaluated, and how: the options of ``agentgym eval``."""

    env: str
    policy: str
    model: str | None
    key: str | None
    data: Path | None
    arguments: Mapping[str, Any]
    k: int
    split: str | None
    tasks: int | None
    shard: str | None
    temperature: float
    tokens: int
    turn_tokens: int | None
    seed: int
    precision: float | None
    skip_bad: bool

    @property
    def folder(self) -> Path:
        """Where it is kept, if nothing else is said: named by what was typed."""
        names = (self.env, self.split, self.policy, self.model)
        return Path("runs") / "-".join(["eval", *(name.strip("/").translate(_PLAIN) for name in names if name)])


_PLAIN = str.maketrans("/:", "--")


def run(asked: Asked, out: Path | None, prices: str | None, ray: str | None = None) -> None:
    if asked.k < 1:
        raise AgentGymError(f"--k must be at least 1, not {asked.k}")
    if asked.precision is not None and asked.shard is not None:
        raise AgentGymError("--precision looks at all results as they come, and --shard sees a part: give one of them")
    if asked.skip_bad and ray is not None:
        raise AgentGymError("--skip-bad is of this process alone, and --ray reads the rows elsewhere too: give one of them")
    price = prices_of(prices)
    folder = out or asked.folder
    suite = suites().get(asked.env)
    named = {"suite": asked.env if suite else None}
    if suite is not None:
        asked = replace(asked, env=suite.env, data=suite.data(asked.data), split=asked.split or suite.split)
    if asked.turn_tokens is None:
        asked = replace(asked, turn_tokens=4096 if is_address(asked.policy) else Limits().turn_tokens)
    rows: AbstractContextManager[Mapping[str, None]] = skipping_bad() if asked.skip_bad else nullcontext({})
    with rows as skipped:
        _run(asked, named, folder, price, skipped, ray)
    for reason in list(skipped)[:3]:
        console.print(f"[yellow]left out:[/yellow] {quoted(reason)}", highlight=False)


def _run(
    asked: Asked, named: dict[str, Any], folder: Path, price: tuple[float, float] | None, skipped: Mapping[str, None], ray: str | None
) -> None:
    make_env = partial(make, asked.env, **({"data": str(asked.data)} if asked.data else {}), **asked.arguments)
    with closing(make_env()) as sample:
        split = asked.split or sample.splits[-1]
        chosen = shard_of(list(tasks_in(sample, split))[: asked.tasks], asked.shard)
        actor, chat = find_policy(asked.policy, make_env, asked.model, asked.key)
        if asked.policy != "gold":
            refuse_without_tools(actor, chat, lambda: sample.reset(options={"task": chosen[0]})[1]["tools"])
        best = sample.reward_range[1]
    version = fingerprint(asked.data) if asked.data else None
    given = {**asdict(asked), "data": str(asked.data) if asked.data else None, "split": split}
    found = {"data_sha256": version, "bad_rows": len(skipped), "episodes": len(chosen) * asked.k, "best": best}
    store = _open_or_create(folder, {"kind": "evaluation", **named, **given, **found})
    with hosted(make_env, ray) as playing, Progress(console=console, transient=True) as bar:
        line = bar.add_task("playing", total=len(chosen) * asked.k)

        def done(episodes: list[Episode]) -> None:
            bar.advance(line, len(episodes))

        _, episodes = asyncio.run(
            evaluate(
                playing,
                actor,
                chosen,
                chat=chat,
                k=asked.k,
                temperature=asked.temperature,
                seed=asked.seed,
                limits=Limits(tokens=asked.tokens, turn_tokens=asked.turn_tokens or Limits().turn_tokens),
                store=store,
                precision=asked.precision,
                done=done,
            )
        )
    finish(store, episodes, price)


def finish(store: RunStore, episodes: Sequence[Episode], price: tuple[float, float] | None = None) -> None:
    """Write the summary and the page of a run, and print them."""
    config = store.config
    result = summary(episodes, config["k"])
    suite = suites().get(config["suite"] or "")
    official = official_figure(suite, config, result) if suite is not None else {}
    store.write("summary.json", {**result.record(), **official, "bad_rows": config["bad_rows"]})
    store.close()
    console.print(table(result, config["k"], price))
    if suite is not None:
        version = config["data_sha256"]
        known = suite.known.get(version, f"none of the versions that our tests play{f': {suite.versions}' if suite.known else ''}")
        console.print(f"official figure, {suite.metric}: {_shown(official)}; data: sha256 {version}…, {known}", highlight=False)
        console.print(quoted(suite.note), highlight=False)
    if config["bad_rows"]:
        console.print(f"bad rows left out: {config['bad_rows']}")
    for error in sorted({episode.error for episode in episodes if episode.error})[:3]:
        console.print(f"[yellow]lost:[/yellow] {quoted(error)}", highlight=False)
    console.print(f"{write(store.folder)}", markup=False)


def official_figure(suite: Suite, config: Mapping[str, Any], result: Evaluation) -> dict[str, Any]:
    """For the summary: only of the suite's own split, whole."""
    whole = config["split"] == suite.split and config["tasks"] is None and config["shard"] is None and config["precision"] is None
    return {"official": {"metric": suite.metric, "value": suite.official(result)}} if whole else {}


def _shown(official: Mapping[str, Any]) -> str:
    return f"{official['official']['value']:.3f}" if official else "none, for this is a part of the suite"


def shard_of(tasks: list[Task], shard: str | None) -> list[Task]:
    """Every n-th task from the i-th, for a shard "i/n"."""
    if shard is None:
        return tasks
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise AgentGymError(f"--shard is {shard!r}: write 2/5 for the second of five")
    if not (part := tasks[int(number) - 1 :: int(count)]):
        raise AgentGymError(f"--shard {shard}: there are {len(tasks)} tasks for {count} shards, so this one is empty")
    return part


def prices_of(text: str | None) -> tuple[float, float] | None:
    """US dollars for a million tokens read, and for a million written."""
    if text is None:
        return None
    try:
        read, written = map(float, text.split(","))
    except ValueError:
        raise AgentGymError(f"--price is {text!r}: write 2.5,10 for $2.50 a million tokens read and $10 a million written") from None
    return read, written


def list_suites() -> None:
    shown = Table(title="suites: agentgym eval NAME --data FOLDER")
    for column in ("suite", "environment, split", "tasks", "metric", "licence", "published", "data"):
        shown.add_column(column)
    for name, suite in suites().items():
        published = "\n".join(f"{score:.3f} {model}" for model, score in suite.reference.items())
        row = (f"{suite.env}, {suite.split}", f"{suite.tasks:,}", suite.metric, suite.licence, published, suite.source)
        shown.add_row(name, *row, end_section=True)
    console.print(shown)


def table(result: Evaluation, k: int, price: tuple[float, float] | None = None) -> Table:
    shown = Table(title=f"{result.tasks} tasks, {result.episodes} episodes, 95% intervals clustered by task")
    shown.add_column("measure")
    shown.add_column("value", justify="right")
    rows: list[tuple[str, Any]] = [(f"avg@{k}", result.success.average)]
    if result.success.k > 1:
        rows += [(f"pass@{result.success.k}", result.success.any_of_k), (f"pass^{result.success.k}", result.success.all_of_k)]
    rows += [("reward", result.reward), *result.metrics.items()]
    for name, interval in rows:
        shown.add_row(name, as_text(interval))
    shown.add_row("turns per episode", f"{result.turns:.2f}")
    shown.add_row("tokens written", f"{result.tokens:,}")
    shown.add_row("tokens read", f"{result.read:,}")
    if price is not None:
        shown.add_row("cost", f"${(result.read * price[0] + result.tokens * price[1]) / 1e6:,.2f}")
    if result.cut:
        shown.add_row("actions cut off at --turn-tokens", str(result.cut))
    shown.add_row("ends", _counts(result.ends))
    shown.add_row("outcomes of turns", _counts(result.outcomes))
    for failure, count in result.failures.items():
        shown.add_row(f"failed, {failure}", str(count))
    shown.add_row("without verdict", str(result.lost))
    return shown


def as_text(interval: Interval) -> str:
    return f"{interval.estimate:.3f}  [{interval.low:.3f}, {interval.high:.3f}]"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def differing(config: dict[str, Any], other: dict[str, Any], but: Sequence[str] = ()) -> list[str]:
    return sorted(name for name in {**config, **other} if name not in but and config.get(name) != other.get(name))


def _open_or_create(folder: Path, config: dict[str, Any]) -> RunStore:
    """The same evaluation goes on where it was; another one does not get mixed into it."""
    if not (folder / "run.json").exists():
        return RunStore.create(folder, config)
    store = RunStore.open(folder)
    if different := differing(config, store.config):
        raise AgentGymError(f"{folder} holds another run (other {', '.join(different)}): choose another folder with --out")
    return store
