"""``agentgym chaos``: a training that is disturbed on purpose, and whether it was disturbed for nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from agentgym.cli import console
from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.policies.vllm.server import VllmServer
from agentgym.seeds import Lineage
from agentgym.store import RunStore

if TYPE_CHECKING:
    from agentgym.trainers.recipe import Recipe

COMMAND = "import sys; sys.argv[0] = 'agentgym'; from agentgym.cli import main; main()"
GLANCE = 0.05  # seconds between two looks at how far a run has come


@dataclass(frozen=True)
class Disturbance:
    """``failures``: the share of turns whose environment fails. ``servers`` and ``trainer``: how often each is killed."""

    failures: float
    servers: int
    trainer: int
    seed: int


def run(path: Path, out: Path, disturbance: Disturbance, python: str) -> bool:
    """Whether the record is whole. Raises `AgentGymError` where the training itself fails."""
    from agentgym.trainers.recipe import read_recipe

    recipe = read_recipe(path)
    if recipe.steps < 2:
        raise AgentGymError("a training of one step ends before anything can be killed: give the recipe more steps")
    if disturbance.servers and recipe.actor is None:
        raise AgentGymError("--server-kills needs a recipe with an actor on servers: see docs/serving.md")
    rng = Lineage.of(disturbance.seed, "chaos").rng()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(server) for server in _servers(recipe, out, python)] if disturbance.servers else []
        written = out / "recipe.yaml"
        written.write_text(yaml.safe_dump(_disturbed(recipe, disturbance.failures, [server.url for server in servers])))
        began = time.perf_counter()
        _play(written, out / "run", recipe.steps, _kills(recipe.steps, disturbance, rng), servers, rng)
    return _report(out / "run", recipe.steps, disturbance, time.perf_counter() - began)


def _disturbed(recipe: Recipe, failures: float, urls: list[str]) -> dict[str, Any]:
    fields = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    arguments = {**recipe.env.arguments, "of": recipe.env.id, "rate": failures}
    fields["env"] = {"id": "agentgym.envs.faulty:faulty", "split": recipe.env.split, "arguments": arguments}
    if urls:
        fields["actor"]["urls"] = urls
    return fields


def _servers(recipe: Recipe, out: Path, python: str) -> Iterator[VllmServer]:
    """As many as the recipe asks, of our own: nobody else's are killed."""
    from agentgym.policies.vllm.export import servable

    urls = ((recipe.actor and recipe.actor.model_extra) or {}).get("urls", [])
    for number in range(1 if isinstance(urls, str) else len(urls)):
        folder = out / f"served-{number}"
        folder.mkdir(exist_ok=True)
        yield VllmServer(servable(recipe.policy, folder), python=python, log=out / f"vllm-{number}.log")


def _kills(steps: int, disturbance: Disturbance, rng: random.Random) -> list[tuple[int, str]]:
    """After which step who is killed, in order."""
    chosen = [(rng.randrange(1, steps), "trainer") for _ in range(disturbance.trainer)]
    return sorted(chosen + [(rng.randrange(1, steps), "server") for _ in range(disturbance.servers)])


def _play(recipe: Path, folder: Path, steps: int, kills: list[tuple[int, str]], servers: list[VllmServer], rng: random.Random) -> None:
    trainer = _train(recipe, folder, resume=False)
    starting: dict[VllmServer, Thread] = {}
    try:
        while trainer.poll() is None or kills:
            if trainer.poll() is not None:
                raise AgentGymError(f"the training ended with status {trainer.returncode} before all kills: {_said(folder)}")
            up = [server for server in servers if server not in starting or not starting[server].is_alive()]
            if kills and _step(folder) >= kills[0][0] and (up or kills[0][1] == "trainer"):
                time.sleep(rng.random())  # into the step that comes
                if trainer.poll() is not None:
                    continue
                _, who = kills.pop(0)
                console.print(f"after step {_step(folder)} of {steps}: the {who} is killed")
                if who == "server":
                    server = rng.choice(up)
                    starting[server] = _restart(server)
                else:
                    trainer.kill()
                    trainer.wait()
                    trainer = _train(recipe, folder, resume=True)
                    _await_resumption(trainer, folder)
            time.sleep(GLANCE)
    finally:
        trainer.kill()
    if trainer.returncode:
        raise AgentGymError(f"the training ended with status {trainer.returncode}: {_said(folder)}")


def _train(recipe: Path, folder: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    if resume and not (folder / "run.json").exists():
        resume = False  # it had not begun
    command = [sys.executable, "-c", COMMAND, "train", str(recipe), "--out", str(folder), *(["--resume"] if resume else [])]
    with folder.with_name("trainer.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"})


def _await_resumption(trainer: subprocess.Popen[bytes], folder: Path) -> None:
    """Until it has written to its logs: before, they are those of the process that was killed."""
    before = [(path, path.stat().st_mtime_ns) for path in folder.glob("turns.jsonl")]
    while trainer.poll() is None and all(path.stat().st_mtime_ns == modified for path, modified in before):
        time.sleep(GLANCE)


def _restart(server: VllmServer) -> Thread:
    """The thread that lives until the server is up again."""
    server.kill()
    thread = Thread(target=server.start, daemon=True)
    thread.start()
    return thread


def _step(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _said(folder: Path) -> str:
    return folder.with_name("trainer.log").read_text(errors="replace").strip()[-500:]


def faults_in(store: RunStore, steps: int) -> dict[str, int]:
    """What must never be in the record of a run, with how often it is."""
    recorded = _recorded(store)
    played = Counter(tree for row in store.read("steps") for tree in row["trees"])
    lost = sum(len(set(range(max(turns) + 1)) - turns) for turns in recorded.values() if turns)
    leaves = [leaf for tree in store.trees() for leaf in tree.leaves()]
    return {
        "steps that are missing or doubled": int([row["step"] for row in store.read("metrics")] != list(range(1, steps + 1))),
        "turns lost from the record": lost + sum(not recorded.get(tree) for tree in played),
        "trees counted in two steps": sum(count > 1 for count in played.values()),
        "faults with a reward": sum(leaf.outcome is Outcome.INFRASTRUCTURE and leaf.reward is not None for leaf in leaves),
    }


def _recorded(store: RunStore) -> dict[str, set[int]]:
    """The numbers of the turns that were logged of each tree, since it was last begun."""
    found: dict[str, set[int]] = {}
    for record in store.read("turns"):
        if "task" in record:
            found[record["tree"]] = set()
        elif "turn" in record:
            found[record["tree"]].add(record["turn"])
    return found


def _report(folder: Path, steps: int, disturbance: Disturbance, seconds: float) -> bool:
    store = RunStore.open(folder)
    faults = faults_in(store, steps)
    leaves = [leaf for tree in store.trees() for leaf in tree.leaves()]
    lost = [leaf for leaf in leaves if leaf.reward is None and leaf.outcome is not Outcome.CANCELLED]
    shown = Table(title=f"{steps} steps in {seconds:.0f} s; {disturbance.trainer} kills of the trainer, {disturbance.servers} of servers")
    shown.add_column("what")
    shown.add_column("count", justify="right")
    for cause, count in Counter(leaf.error.partition(":")[0] or str(leaf.outcome) for leaf in lost).most_common():
        shown.add_row(f"episodes without a verdict, {cause}", str(count))
    for name, value in {"episodes": len(leaves), **faults}.items():
        shown.add_row(name, str(value))
    console.print(shown)
    found = {"seconds": seconds, "episodes": len(leaves), "lost": len(lost), **faults}
    folder.with_name("chaos.json").write_text(json.dumps(found, indent=1))
    return not any(faults.values())
