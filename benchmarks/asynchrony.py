"""Learning while others are played, within a batch (periodic) or beyond it (ahead), where environments are slow by log-normal latencies.

On a simulated clock: resources whose limits are known. With --real: the tiny policy on Search-v0, whose steps really take so long.

Run: python benchmarks/asynchrony.py [--json] [--quick] [--real]
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from commandline import parser

from agentgym import AgentEnv, Limits, Reply, Task, make
from agentgym.evaluation import evaluate
from agentgym.expand import Groups, Stateless
from agentgym.policies import tiny
from agentgym.policies.sync import CopiedWeights
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.divisors import Constant
from agentgym.trainers.laboratory.verdict import t_interval
from agentgym.trainers.learner import TorchLearner, warm_up
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.schedules.ahead import BoundedStaleness
from agentgym.trainers.schedules.periodic import Periodic
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training

SIGMA = 1.5
TURNS, GROUP, BATCH = 4, 4, 16  # of an episode; episodes of a task; tasks of a step
SLOTS = 64  # environments at once
GENERATION = 0.2  # seconds of a turn
CASES = {"the environments are the slowest": 4.0, "the learner is the slowest": 16.0}  # seconds of a step's learning
STALENESS, MOST = 8, 40  # of the asynchronous schedule: pushes, and tasks at once
REAL_STALENESS, REAL_SEEDS = 3, 8  # of 25 steps
LEAST_RATIO, LEAST_SHARE = 2.0, 0.95


class SimulatedClock(asyncio.SelectorEventLoop):
    """Waiting takes no time: where nothing can run, the clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now, self.in_threads = 0.0, 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> Any:
        self.in_threads += 1
        future = super().run_in_executor(executor, function, *arguments)
        future.add_done_callback(self._returned)
        return future

    def _returned(self, future: Any) -> None:
        self.in_threads -= 1


class _Jumping(selectors.SelectSelector):
    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(0.001 if self._clock.in_threads else 0)
        if not found and not self._clock.in_threads:
            self._clock.now += timeout
        return found


class Counting(AgentEnv):
    """Some turns, and a reward that differs within a group."""

    max_turns = TURNS

    def tasks(self, split: str) -> list[Task]:
        return [Task(str(number), "Count.") for number in range(64)]

    def begin(self, task: Task) -> None:
        self.state = ""

    def act(self, action: Any) -> Reply:
        self.state += action.text
        return Reply("More.")

    def score(self) -> float:
        return float(len(self.state) % 2)


class Slow:
    """An actor with the latencies of its own turns and of the environment's."""

    def __init__(self, chat: Any) -> None:
        self.chat, self.version = chat, 0
        self.slots = asyncio.Semaphore(SLOTS)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        rng = random.Random(sampling.seed)
        latency = math.exp(rng.gauss(0, SIGMA))
        await asyncio.sleep(GENERATION)
        async with self.slots:
            await asyncio.sleep(latency)
        ids = [*self.chat.tokenizer.encode("a" * rng.randint(1, 4)), *self.chat.stop_ids]
        return Generation(ids, [-1.0] * len(ids), [(self.version, len(ids))])


class Costly(GRPO):
    """Takes so many seconds of the clock for a batch: all that learning costs."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def assign(self, trees: Any, models: Any) -> None:
        await asyncio.sleep(self.seconds * len(trees) / BATCH)
        await super().assign(trees, models)


class Free(Stateless):
    """A learner that learns nothing, and its sync."""

    heads = frozenset({"logprobs"})

    def __init__(self, actor: Slow) -> None:
        self.actor, self.version = actor, 0

    def accumulate_all(self, packs: Any, objective: Any) -> list[dict[str, float]]:
        return []

    def discard(self) -> None:
        pass

    def step(self, pace: float = 1.0) -> dict[str, float]:
        self.version += 1
        return {}

    async def push(self, learner: Any) -> None:
        self.actor.version = self.version


def simulated(schedule: Any, seconds: float, steps: int) -> dict[str, float]:
    """Episodes learnt a second once it runs, and the share of what the slowest resource allows."""
    clock = SimulatedClock()
    asyncio.set_event_loop(clock)
    chat = tiny.tiny_chat(tiny.TinyTokenizer.load(tiny.SHIPPED))

    ends: list[float] = []
    given_up: list[tuple[float, float]] = []  # tasks while they were played, and after

    async def run() -> None:
        actor = Slow(chat)
        learner = Free(actor)
        training = Training(
            Counting, actor, chat, Uniform(Counting().tasks("train")), Groups(GROUP), Costly(seconds), ClippedSurrogate(), learner, learner,
            schedule, Constant(1.0), batch=BATCH, updates=1, limits=Limits(width=10**6),
        )  # fmt: skip

        def done(step: int, metrics: dict[str, float], trees: Any) -> None:
            ends.append(clock.time())
            given_up.append((metrics.get("aborted", 0.0), metrics.get("evicted", 0.0)))

        await train(training, steps, done=done)

    try:
        clock.run_until_complete(run())
    finally:
        clock.run_until_complete(clock.shutdown_default_executor())
        clock.close()
    first = steps // 4
    learnt = BATCH * (steps - 1 - first) - (given_up[-1][1] - given_up[first][1])
    found = GROUP * learnt / (ends[-1] - ends[first])
    bound = min(BATCH * GROUP / seconds, SLOTS / (TURNS * math.exp(SIGMA**2 / 2)))
    return {"episodes_per_second": found, "share_of_bound": found / bound, "given_up": sum(given_up[-1]) / (steps * BATCH)}


class Delayed:
    """Makes Search-v0 with steps that take as long as a network would."""

    def __init__(self, median: float) -> None:
        self.median = median

    def __call__(self) -> Any:
        env: Any = make("agentgym/Search-v0")
        env.blocking, quick = True, env.act

        def act(action: Any) -> Any:
            time.sleep(self.median * math.exp(env.rng("latency").gauss(0, SIGMA)))
            return quick(action)

        env.act = act
        return env


def real(schedule: Callable[[], Any], steps: int, seed: int) -> dict[str, float]:
    """Trees learnt a second, and success on held-out questions afterwards."""
    tiny.one_thread()
    model, chat = tiny.load()
    policy = TransformersPolicy(model, chat, slots=256)
    sync = CopiedWeights(policy)
    make_env = Delayed(0.3)
    tasks = make("agentgym/Search-v0").tasks("train")
    training = Training(
        make_env, policy, chat, Uniform(tasks, seed), Groups(8), GRPO(), ClippedSurrogate(), TorchLearner(sync.model, warm_up(4e-4)), sync,
        schedule(), batch=8, updates=2, seed=seed, limits=Limits(tokens=448, turn_tokens=72),
    )  # fmt: skip
    started = time.perf_counter()
    asyncio.run(train(training, steps))
    elapsed = time.perf_counter() - started
    quick_env = partial(make, "agentgym/Search-v0")
    held_out = quick_env().tasks("validation")[:192]
    result, _ = asyncio.run(evaluate(quick_env, policy, held_out, chat=chat, limits=training.limits))
    return {"trees_per_second": steps * 8 / elapsed, "seconds": elapsed, "success": result.success.average.estimate}


def row(case: str, speed: str, alone: dict[str, float], **others: dict[str, float]) -> dict[str, Any]:
    return {"case": case, "synchronous": alone, **{name: {"ratio": found[speed] / alone[speed], **found} for name, found in others.items()}}


def measure(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for name, seconds in CASES.items():
        steps = 5 if quick else 60
        schedules = (Synchronous(), Periodic(), BoundedStaleness(STALENESS, MOST))
        alone, periodic, ahead = (simulated(schedule, seconds, steps) for schedule in schedules)
        rows.append(row(name, "episodes_per_second", alone, periodic=periodic, ahead=ahead))
    return rows


def measure_real(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for seed in range(1 if quick else REAL_SEEDS):
        steps = 2 if quick else 25
        alone, ahead = (real(schedule, steps, seed) for schedule in (Synchronous, partial(BoundedStaleness, REAL_STALENESS)))
        rows.append(row(f"real, seed {seed}", "trees_per_second", alone, ahead=ahead))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--real", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = measure_real(given.quick) if given.real else measure(given.quick)
    if given.json:
        print(json.dumps(rows))
        return
    for found in rows:
        print(f"{found.pop('case')}: ahead {found['ahead']['ratio']:.2f} times as fast (target {LEAST_RATIO:g})")
        for kind, figures in found.items():
            print(f"  {kind:12s}" + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if given.real:
        lost = t_interval([found["ahead"]["success"] - found["synchronous"]["success"] for found in rows])
        print(f"success ahead less success alone: {lost.estimate:.3f} [{lost.low:.3f}, {lost.high:.3f}]")
    else:
        print(f"share_of_bound: of what the slowest resource allows (target {LEAST_SHARE:g} ahead)")


if __name__ == "__main__":
    main()
