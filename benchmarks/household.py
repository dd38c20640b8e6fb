"""The household environment: how hard its homes are for those who need not learn it, and what a turn, a fork and a key cost.

``python benchmarks/household.py [DATA]``, with ``--json`` for one JSON object and ``--quick`` for a smoke run. DATA is a folder of
ALFWorld's games; without it their turn is skipped. Costs are process CPU time: the best and the median of several repeats.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from commandline import parser
from forks import per_run
from gym_overhead import Figure, processor, repeat, table_of
from rich.console import Console
from rich.table import Table

from agentgym import Lineage, Rollout, Start, Task, TurnTree, call
from agentgym.envs.household import Household
from agentgym.envs.household.expert import Expert
from agentgym.expand import Groups
from agentgym.trainers.credit.verdicts import judged

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "alfworld"
MISTAKES = (0.0, 0.2, 0.35, 0.5)


@dataclass(frozen=True, slots=True)
class Played:
    by: str
    episodes: int
    success: float
    turns: float
    most: int

    @classmethod
    def of(cls, by: str, ends: Sequence[tuple[float, int]]) -> Played:
        """From the reward and the turns of each episode."""
        rewards, turns = zip(*ends, strict=True)
        return cls(by, len(ends), mean(rewards), mean(turns), max(turns))


def expert(tasks: Sequence[Task], mistakes: float) -> list[TurnTree]:
    rollout = Rollout(Household, Groups(1, "expert"), {"expert": Expert(mistakes=mistakes)}, None, Lineage.of(0))
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def ends(trees: Sequence[TurnTree]) -> list[tuple[float, int]]:
    return [(reward, leaf.depth) for tree in trees for leaf, reward in judged(tree).items()]


def at_random(task: Task) -> tuple[float, int]:
    """One episode of choices among the possible commands."""
    env, rng, turns = Household(), Lineage.of(0, task.id).rng(), 0
    env.reset(seed=0, options={"task": task})
    over = False
    while not over:
        _, reward, terminated, truncated, _ = env.step(call("do", command=rng.choice(env.commands())))
        over, turns = terminated or truncated, turns + 1
    return float(reward), turns


def play(count: int) -> list[Played]:
    env = Household()
    test, validation = env.tasks("test")[:count], env.tasks("validation")[:count]
    by_type: dict[str, list[TurnTree]] = defaultdict(list)
    for tree in expert(test, 0.0):
        by_type[tree.task.data["type"]].append(tree)
    rows = [Played.of(f"expert, test, {name}", ends(trees)) for name, trees in by_type.items()]
    rows += [Played.of(f"expert, validation, mistakes={p:g}", ends(expert(validation, p))) for p in MISTAKES]
    return [*rows, Played.of("random choice, test", [at_random(task) for task in test])]


def measure_turns(env: Household, tasks: Sequence[Task]) -> float:
    """Microseconds of a turn, over the gold actions of some tasks."""
    seconds, turns = 0.0, 0
    for task in tasks:
        actions = env.gold(task)
        env.reset(seed=0, options={"task": task})
        started = time.process_time()
        for action in actions:
            env.step(action)
        seconds, turns = seconds + time.process_time() - started, turns + len(actions)
    return seconds / turns * 1e6


def costs(data: Path, quick: bool) -> list[Figure]:
    repeats, many, count = (1, 2, 2) if quick else (15, 500, 60)
    env = Household()
    env.reset(seed=0, options={"task": env.tasks("test")[0]})
    fork: Callable[[], object] = lambda: env.restore(env.snapshot())  # noqa: E731
    figures = [
        Figure("snapshot and restore", "us", *repeat(lambda: per_run(fork, many), repeats)),
        Figure("key", "us", *repeat(lambda: per_run(env.key, many), repeats)),
        Figure("turn in a home", "us", *repeat(lambda: measure_turns(Household(), env.tasks("test")[:count]), repeats)),
    ]
    if data.is_dir():
        games = Household(data)
        official = games.tasks(games.splits[0])[:count]
        figures.append(Figure("turn in a game of ALFWorld", "us", *repeat(lambda: measure_turns(games, official), repeats)))
    return figures


def main() -> None:
    command = parser(__doc__)
    command.add_argument("data", nargs="?", type=Path, default=DATA, help="a folder of ALFWorld's games")
    options = command.parse_args()
    played, figures = play(6 if options.quick else 400), costs(options.data, options.quick)
    if options.json:
        print(json.dumps({"processor": processor(), "played": list(map(asdict, played)), "figures": list(map(asdict, figures))}))
        return
    table = Table(title="episodes")
    for heading in ("by", "episodes", "success", "turns", "at most"):
        table.add_column(heading, justify="left" if heading == "by" else "right")
    for row in played:
        table.add_row(row.by, str(row.episodes), f"{row.success:.2f}", f"{row.turns:.1f}", str(row.most))
    for shown in (table, table_of(figures, "household")):
        Console().print(shown)


if __name__ == "__main__":
    main()
