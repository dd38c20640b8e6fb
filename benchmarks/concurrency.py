"""5,000 episodes at once in one process: memory per turn, lag of the event loop, turns a second and threads.

Run: ``python benchmarks/concurrency.py`` (two minutes), with ``--json`` for one JSON object and ``--quick`` for a smoke run.

The environment is a `FunctionEnv`; in a second run it is ``blocking`` and its function waits, as for a server. The policy is a stub that
answers after a latency drawn by seed, with a thought and a tool call that are tokens with log-probabilities. Each run has its own process.

Memory is the most that the process holds beyond what it held before, over the turns of the forest: all turns are kept, with environments,
tasks and threads. A tick falls due each 5 ms; its lag is how late the event loop comes to it, and ticks that fall due in a stall of the
loop count as well. On a busy machine that is the lag of the machine too; the CPU time that the process spends from tick to tick is its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from resource import getpagesize
from typing import Any

import numpy as np
from commandline import parser
from gym_overhead import Figure, processor, table_of
from rich.console import Console

from agentgym import Chat, FunctionEnv, Generation, Limits, Lineage, Outcome, Prompt, Rollout, Sampling, Start, Task, call, tool
from agentgym.expand import Groups
from agentgym.policies.tiny import SHIPPED, TinyTokenizer, tiny_chat

EPISODES, TURNS = 5000, 8
LATENCY = 2.0, 6.0  # seconds that the policy takes for an answer, drawn evenly
WAIT = 0.1  # seconds that the function of a blocking environment waits
TICK = 0.005  # seconds
TOPICS = ("harbour", "airport", "capital", "river", "island", "country", "currency", "language")
THOUGHT = "The {} is what I was asked for, but the name may be that of another place, so I look it up before I answer."
TEXT = "Entry {}, {}: it lies an hour from the coast, has two bridges and a market, and is known for its old station."
TASK = Task("places", "Look up what you need to know of the places.")


@tool
def look_up(entry: int, topic: str) -> str:
    """Look up an entry about a topic."""
    return TEXT.format(entry, topic)


@tool
def look_up_slowly(entry: int, topic: str) -> str:
    """Look up an entry about a topic."""
    time.sleep(WAIT)
    return TEXT.format(entry, topic)


def on_loop() -> FunctionEnv:
    return FunctionEnv([look_up], [TASK], lambda answer, task: 0.0, max_turns=TURNS)


def blocking() -> FunctionEnv:
    return FunctionEnv([look_up_slowly], [TASK], lambda answer, task: 0.0, max_turns=TURNS, blocking=True)


class Stub:
    """Writes a thought and a call, of tokens that were made beforehand: a model would sample them elsewhere."""

    def __init__(self, make: Callable[[], FunctionEnv], chat: Chat, latency: tuple[float, float]) -> None:
        name = make().tools[-1].name
        texts = [call(name, thought=THOUGHT.format(topic), entry=n, topic=topic) for n, topic in product(range(100, 200), TOPICS)]
        self.actions = [np.array(chat.write(text)) for text in texts]
        self.logprobs = -np.random.default_rng(0).random(max(map(len, self.actions)))
        self.latency = latency
        self.asked = self.most_asked = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        rng = Lineage.of(sampling.seed).rng()
        self.asked += 1
        self.most_asked = max(self.most_asked, self.asked)
        await asyncio.sleep(rng.uniform(*self.latency))
        self.asked -= 1
        ids = rng.choice(self.actions)
        return Generation(ids.tolist(), self.logprobs[: len(ids)].tolist(), [(0, len(ids))])


class Watch:
    """Ticks beside what is played: how late each is, and the most threads and bytes that are seen at one."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.own_lags: list[float] = []
        self.threads = self.bytes = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due, cpu = loop.time() + TICK, time.process_time()
        while True:
            await asyncio.sleep(due - loop.time())
            spent, cpu = time.process_time() - cpu, time.process_time()
            self.own_lags += np.arange(spent, 0, -TICK).tolist()
            while due <= (now := loop.time()):
                self.lags.append(now - due)
                due += TICK
            self.threads = max(self.threads, threading.active_count())
            self.bytes = max(self.bytes, held())


@dataclass(frozen=True, slots=True)
class Played:
    turns: int
    most_asked: int  # of the policy at once
    seconds: float
    cpu: float
    tokens: int
    bytes: int
    threads: int
    lags: list[float]
    own_lags: list[float]  # in CPU time of this process
    idle_lags: list[float]  # of a loop with nothing to do


def held() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


async def play(make: Callable[[], FunctionEnv], episodes: int, latency: tuple[float, float], chat: Chat) -> Played:
    idle, watch, stub = Watch(), Watch(), Stub(make, chat, latency)
    limits = Limits(tokens=2**30, width=episodes)
    rollout = Rollout(make, Groups(1), {"policy": stub}, chat, Lineage.of(0), limits=limits)
    starts = [Start(Task(f"places-{n}", TASK.prompt)) for n in range(episodes)]
    gc.collect()
    ticking = asyncio.create_task(idle.run())
    await asyncio.sleep(1.0)
    ticking.cancel()
    before, started, cpu = held(), time.perf_counter(), time.process_time()
    ticking = asyncio.create_task(watch.run())
    forest = await rollout.run(starts)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    ticking.cancel()
    turns = [turn for tree in forest for turn in tree.turns[1:]]
    assert len(turns) == episodes * TURNS, "some episode of the benchmark ended early"
    assert all(turn.outcome is Outcome.OK for turn in turns), "some turn of the benchmark went wrong"
    tokens = sum(len(turn.ids) for turn in turns)
    grown = watch.bytes - before
    return Played(len(turns), stub.most_asked, seconds, cpu, tokens, grown, watch.threads, watch.lags, watch.own_lags, idle.lags)


def fresh(make: Callable[[], FunctionEnv], quick: bool) -> Played:
    """Play in this process, which has played nothing, after a short run that does not count."""
    chat = tiny_chat(TinyTokenizer.load(SHIPPED))
    asyncio.run(play(make, 20, (0.0, 0.01), chat))
    episodes, latency = (50, (0.0, 0.1)) if quick else (EPISODES, LATENCY)
    played = asyncio.run(play(make, episodes, latency, chat))
    assert quick or played.most_asked > 0.8 * episodes, "the episodes were not all live at once"
    return played


def figures(name: str, played: Played) -> list[Figure]:
    def figure(what: str, unit: str, value: float, target: float | None = None) -> Figure:
        return Figure(f"{name}: {what}", unit, value, value, target)

    late = (np.percentile(played.lags, (50, 99, 100)) * 1e3).tolist()
    own = (np.percentile(played.own_lags, (99, 100)) * 1e3).tolist()
    return [
        figure("episodes that wait for the policy at once", "", played.most_asked),
        figure("tokens kept", "a turn", played.tokens / played.turns),
        figure("memory", "kB/turn", played.bytes / played.turns / 1e3, 10.0),
        figure("event-loop lag, p50", "ms", late[0]),
        figure("event-loop lag, p99", "ms", late[1], 50.0),
        figure("event-loop lag, most", "ms", late[2]),
        figure("CPU time from tick to tick, p99", "ms", own[0]),
        figure("CPU time from tick to tick, most", "ms", own[1]),
        figure("lag with nothing to do, p99", "ms", float(np.percentile(played.idle_lags, 99)) * 1e3),
        figure("turns, as fast as the policy answers", "turns/s", played.turns / played.seconds),
        figure("CPU", "us/turn", played.cpu / played.turns * 1e6),
        figure("threads, most", "", played.threads),
    ]


def measure(quick: bool) -> list[Figure]:
    found: list[Figure] = []
    for name, make in (("on the loop", on_loop), ("blocking", blocking)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found += figures(name, process.submit(fresh, make, quick).result())
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    found = measure(options.quick)
    if options.json:
        rows: list[dict[str, Any]] = [{**asdict(figure), "met": figure.met} for figure in found]
        print(json.dumps({"processor": processor(), "figures": rows}))
    else:
        Console().print(table_of(found, "agentgym"))


if __name__ == "__main__":
    main()
