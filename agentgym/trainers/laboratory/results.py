"""What a reproduction leaves behind: one JSON file for each seed and arm, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orjson

from agentgym.errors import AgentGymError
from agentgym.statistics import Comparison, compare
from agentgym.store import RunStore
from agentgym.trainers.laboratory.card import ARMS, ArmName, Card, Claim
from agentgym.trainers.laboratory.verdict import Pair
from agentgym.trainers.recipe import validated

Values = dict[str, list[float]]  # of each held-out task that has a verdict


@dataclass(slots=True)
class Result:
    """One arm of one seed. ``error`` says why it could not be finished; then nothing else of it is judged."""

    arm: ArmName
    seed: int
    start: str = ""  # digest of the weights that it began with
    steps: int = 0
    spent: float = 0.0
    curve: list[dict[str, float | None]] = field(default_factory=list)  # each step: spent, reward, claimed metrics
    looks: list[dict[str, float | None]] = field(default_factory=list)  # each evaluation: its share, spent, held-out means
    tasks: dict[str, Values] = field(default_factory=dict)  # of the last evaluation, by metric
    lost: int = 0  # episodes of the last evaluation without a verdict: in no average
    error: str = ""


class Results:
    """A card's folder. ``run.json`` in it holds the card, so that results of another version are not mixed with these."""

    def __init__(self, store: RunStore, card: Card) -> None:
        self.store = store
        self.card = card

    @classmethod
    def of(cls, folder: Path, card: Card) -> Results:
        """Begin, or go on. More seeds may be asked for later; all else of a card must stay."""
        config = card.model_dump(mode="json", exclude={"seeds"})
        if not (folder / "run.json").exists():
            return cls(RunStore.create(folder, config), card)
        store = RunStore.open(folder)
        stored = validated(Card, store.config, f"{folder / 'run.json'}").model_dump(mode="json", exclude={"seeds"})
        if stored != config:
            other = ", ".join(sorted(name for name in config if stored[name] != config[name]))
            raise AgentGymError(f"{folder} holds results of another version of this card (other {other}): choose another --out")
        return cls(store, card)

    @classmethod
    def read(cls, folder: Path) -> Results:
        store = RunStore.open(folder)
        return cls(store, validated(Card, store.config, f"{folder / 'run.json'}"))

    def write(self, result: Result) -> None:
        self.store.write(f"{result.arm}-{result.seed}.json", asdict(result))

    def all(self) -> list[Result]:
        """By seed, the method before the baseline."""
        found = [Result(**orjson.loads(path.read_bytes())) for arm in ARMS for path in self.store.folder.glob(f"{arm}-*.json")]
        return sorted(found, key=lambda result: (result.seed, ARMS.index(result.arm)))

    def finished(self) -> set[tuple[int, ArmName]]:
        return {(result.seed, result.arm) for result in self.all() if not result.error}

    def failed(self) -> list[Result]:
        return [result for result in self.all() if result.error]

    def pairs(self) -> dict[int, tuple[Result, Result]]:
        """Method and baseline of each seed that both have finished. Raises `AgentGymError` where they began differently."""
        by_arm = {(result.seed, result.arm): result for result in self.all() if not result.error}
        pairs = {
            seed: (method, by_arm[seed, "baseline"])
            for (seed, arm), method in by_arm.items()
            if arm == "method" and (seed, "baseline") in by_arm
        }
        for seed, (method, baseline) in pairs.items():
            if method.start != baseline.start:
                raise AgentGymError(f"{self.store.folder}: the arms of seed {seed} began with different weights")
        return pairs


def figures(claim: Claim, pairs: Mapping[int, tuple[Result, Result]]) -> list[Pair]:
    """The claimed metric of both arms, for each seed. Held-out tasks that an arm lost are left out of both."""
    if claim.where == "training":
        return [(_over_steps(method, claim.metric), _over_steps(baseline, claim.metric)) for method, baseline in pairs.values()]
    by_seed = [_common(method.tasks[claim.metric], baseline.tasks[claim.metric]) for method, baseline in pairs.values()]
    return [(_mean(method), _mean(baseline)) for method, baseline in by_seed]


def over_tasks(metric: str, pairs: Mapping[int, tuple[Result, Result]]) -> Comparison | None:
    """Method minus baseline on held-out tasks, each with its values of all seeds; None where no task is common."""
    method: Values = {}
    baseline: Values = {}
    for results in pairs.values():
        for values, of_seed in zip((method, baseline), _common(*(result.tasks[metric] for result in results)), strict=True):
            for task, repeats in of_seed.items():
                values.setdefault(task, []).extend(repeats)
    return compare(baseline, method) if method else None


def _common(method: Values, baseline: Values) -> tuple[Values, Values]:
    tasks = [task for task in method if task in baseline]
    return {task: method[task] for task in tasks}, {task: baseline[task] for task in tasks}


def _mean(values: Values) -> float:
    return float(np.mean([np.mean(repeats) for repeats in values.values()])) if values else float("nan")


def _over_steps(result: Result, metric: str) -> float:
    return mean(step.get(metric) for step in result.curve)


def mean(values: Iterable[float | None]) -> float:
    """Of those that are numbers; nan if none is."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
