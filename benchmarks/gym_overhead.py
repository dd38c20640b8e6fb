"""What the gym itself costs: CPU time per tool turn, per fork and per import, and scored turns a second.

``python benchmarks/gym_overhead.py``, with ``--json`` for one JSON object and ``--quick`` for a smoke run.
Every figure is process CPU time after a warm-up, over several repeats: the best and the median.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import gymnasium
from commandline import parser
from rich.console import Console
from rich.table import Table

from agentgym import AgentEnv, Chat, Limits, Lineage, Reply, Rollout, Start, Task, Turn, TurnTree, call, tool
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.policies.tiny import TinyTokenizer, tiny_chat
from agentgym.snapshot import Kind
from agentgym.tools.calculator import calculator

LENGTHS = (8, 64, 256, 1024)
ACTIONS = [call("calculate", expression=f"{n} * {n + 3}") for n in range(10, 99)]
TASK = Task("sums", "Multiply some numbers. Use the calculator.")
# (what, microseconds of CPU per turn): all measured elsewhere, on other machines; they give the scale and no more.
PEERS = (
    ("gymnasium, text environment", "13.5"),
    ("GEM, tool wrapper", "16"),
    ("GEM, with history, 8 to 256 turns", "23 to 105"),
    ("verifiers 0.1.14", "507"),
    ("verifiers 0.4", "7,700"),
    ("inspect_ai", "12,100"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    best: float
    median: float
    target: float | None = None  # at most so much; of a rate: at least
    is_rate: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.best >= self.target if self.is_rate else self.best <= self.target


@dataclass(frozen=True, slots=True)
class Ledger:
    count: int = 0
    last: str = ""


class Sums(AgentEnv):
    """One calculator call each turn, rewarded at once and once more at the end."""

    snapshots: Kind = "value"
    state: Ledger

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.max_turns = turns

    def begin(self, task: Task) -> None:
        self.state = Ledger()

    @tool
    def calculate(self, expression: str) -> Reply:
        """Calculate an arithmetic expression.

        Args:
            expression: numbers with + - * / and brackets.
        """
        text = calculator(expression)
        self.state = Ledger(self.state.count + 1, text)
        return Reply(text, reward=0.001)

    def score(self) -> float:
        return float(self.state.count == self.max_turns)


class CopiedSums(Sums):
    snapshots: Kind = "copy"


class BareSums(gymnasium.Env[str, str]):
    """The least that does the same: read the call, calculate, answer. No messages, checks, tree, tokens or forks."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Text(1024)
        self.action_space = gymnasium.spaces.Text(1024)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        body = action.removeprefix("<tool_call>").removesuffix("</tool_call>")
        return calculator(json.loads(body)["arguments"]["expression"]), 0.001, False, False, {}


_unseen = count(100)


def actions(turns: int) -> Iterator[str]:
    return islice(cycle(ACTIONS), turns)


def unseen_actions(turns: int) -> Iterator[str]:
    """Calls whose answers no tokenizer has seen: nothing remembered helps with them."""
    return (call("calculate", expression=f"{n} * {n + 3}") for n in islice(_unseen, turns))


def repeat(measure: Callable[[], float], repeats: int, best: Callable[[list[float]], float] = min) -> tuple[float, float]:
    """The best and the median of several measurements, after one that does not count."""
    measure()
    values: list[float] = []
    for _ in range(repeats):
        gc.collect()
        values.append(measure())
    return best(values), statistics.median(values)


def chat_format() -> Chat:
    answers = [calculator(f"{n} * {n + 3}") for n in range(10, 99)]
    return tiny_chat(TinyTokenizer.train([*ACTIONS, *answers, TASK.prompt]))


def open_episode(env: Sums, chat: Chat) -> TurnTree:
    _, info = env.reset(options={"task": TASK, "lineage": Lineage.of(0, "sums")})  # as rollouts do
    tree = TurnTree("sums", TASK)
    tree.add(Turn(0, None, "env", 0, chat.open(info["messages"], info["tools"]), replies=info["messages"]))
    return tree


def play(env: Sums, tree: TurnTree, chat: Chat, sampled: list[tuple[str, list[int]]], read: bool) -> float:
    """CPU seconds of one episode's turns, from the sampled tokens to where the next action begins."""
    started = time.process_time()
    parent = tree.root
    for action, ids in sampled:
        turn = Turn(-1, parent, "policy", parent.seed + 1, action_tokens=len(ids))
        turn.action = chat.read(ids) if read else action
        _, turn.reward, _, truncated, info = env.step(turn.action)  # type: ignore[assignment]
        turn.outcome, turn.replies = info["outcome"], info["messages"]
        turn.end = "truncated" if truncated else None
        delta = chat.bridge(parent.ids, ids, turn.replies) or []
        turn.ids = ids + delta
        turn.sampled_tokens = len(ids)
        parent = tree.add(turn)
    return time.process_time() - started


def measure_turns(turns: int, total: int, chat: Chat, *, read: bool = False, unseen: bool = False) -> float:
    """Microseconds of CPU per turn, in episodes of ``turns`` turns; the start of an episode is measured apart."""
    episodes = max(1, total // turns)
    seconds = 0.0
    env = Sums(turns)
    for _ in range(episodes):
        sampled = [(action, chat.write(action)) for action in (unseen_actions if unseen else actions)(turns)]
        seconds += play(env, open_episode(env, chat), chat, sampled, read)
    return seconds / (episodes * turns) * 1e6


def measure_starts(count: int, chat: Chat) -> float:
    """Microseconds of CPU for the start of an episode: reset, the opening's tokens, the root of the tree."""
    env = Sums(8)
    started = time.process_time()
    for _ in range(count):
        open_episode(env, chat)
    return (time.process_time() - started) / count * 1e6


def measure_calculator(count: int) -> float:
    started = time.process_time()
    for n in range(count):
        calculator(f"{n % 89 + 10} * {n % 89 + 13}")
    return (time.process_time() - started) / count * 1e6


def measure_bare(count: int) -> float:
    env = BareSums()
    started = time.process_time()
    for action in actions(count):
        env.step(action)
    return (time.process_time() - started) / count * 1e6


def measure_forks(make: Callable[[int], Sums], count: int) -> float:
    """Microseconds of CPU to save one episode in the middle and go on from there in another environment."""
    env, other = make(16), make(16)
    env.reset(seed=0, options={"task": TASK})
    for action in actions(4):
        env.step(action)
    started = time.process_time()
    for _ in range(count):
        other.restore(env.snapshot())
    return (time.process_time() - started) / count * 1e6


def measure_rollout(episodes: int, turns: int, chat: Chat | None) -> float:
    """Scored turns in a second of CPU: the whole engine, all episodes at once, with a scripted actor."""
    actor = Scripted(list(actions(turns)))
    limits = Limits(tokens=2**30)
    rollout = Rollout(lambda: Sums(turns), Groups(8), {"policy": actor}, chat, Lineage.of(0), limits=limits)
    starts = [Start(TASK)] * (episodes // 8)
    started = time.process_time()
    forest = asyncio.run(rollout.run(starts))
    seconds = time.process_time() - started
    played = sum(len(tree.turns) - 1 for tree in forest)
    assert played == len(starts) * 8 * turns, "some episode of the benchmark ended early"
    return played / seconds


def cpu_of(code: str) -> float:
    """CPU seconds of a fresh interpreter that runs ``code``."""
    timed = f"{code}\nimport time; print(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)


def measure_import(repeats: int) -> tuple[float, float]:
    """The best and the median of importing both, less those of importing gymnasium alone."""
    both = repeat(lambda: cpu_of("import gymnasium, agentgym"), repeats)
    alone = repeat(lambda: cpu_of("import gymnasium"), repeats)
    return both[0] - alone[0], both[1] - alone[1]


def imports_torch() -> bool:
    code = "import sys, agentgym; print('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"


def measure(quick: bool) -> list[Figure]:
    total, repeats = (64, 1) if quick else (2048, 15)
    lengths = (8, 16) if quick else LENGTHS
    chat = chat_format()
    bare = Figure("bare gymnasium environment, same calculator", "us/turn", *repeat(lambda: measure_bare(total), repeats))
    turns = [
        Figure(f"tool turn, {n} turns an episode", "us/turn", *repeat(lambda: measure_turns(n, total, chat), repeats), 30.0)  # noqa: B023
        for n in lengths
    ]
    growth = turns[-1].best / turns[0].best, turns[-1].median / turns[0].median
    ratio = turns[1].best / bare.best, turns[1].median / bare.median
    reading = repeat(lambda: measure_turns(64, total, chat, read=True), repeats)
    unseen = repeat(lambda: measure_turns(64, total, chat, unseen=True), repeats)
    starts = repeat(lambda: measure_starts(max(1, total // 4), chat), repeats)
    episodes = 16 if quick else 256
    without = repeat(lambda: measure_rollout(episodes, 16, None), repeats, best=max)
    with_tokens = repeat(lambda: measure_rollout(episodes, 16, chat), repeats, best=max)
    calculating = repeat(lambda: measure_calculator(total), repeats)
    return [
        Figure("the calculator alone", "us/turn", *calculating),
        bare,
        *turns,
        Figure(f"tool turn, growth from {lengths[0]} to {lengths[-1]} turns", "ratio", *growth, 1.25),
        Figure("tool turn / bare gymnasium turn", "ratio", *ratio),
        Figure("tool turn, every answer new to the tokenizer", "us/turn", *unseen),
        Figure("tool turn, with reading the sampled tokens", "us/turn", *reading),
        Figure("start of an episode", "us", *starts),
        Figure("fork, value state", "us", *repeat(lambda: measure_forks(Sums, total), repeats), 10.0),
        Figure("fork, copied state", "us", *repeat(lambda: measure_forks(CopiedSums, total), repeats)),
        Figure("scored rollout, no tokens", "turns/s", *without, 10_000.0, is_rate=True),
        Figure("scored rollout, with tokens", "turns/s", *with_tokens, is_rate=True),
        Figure("import agentgym, beyond gymnasium", "s", *measure_import(repeats), 0.15),
    ]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def table_of(figures: list[Figure], title: str) -> Table:
    table = Table(title=f"{title}, CPU time on {processor()}")
    for heading in ("figure", "unit", "best", "median", "target", "met"):
        table.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for figure in figures:
        bound = "" if figure.target is None else f"{'>=' if figure.is_rate else '<='} {figure.target:,g}"
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        table.add_row(figure.name, figure.unit, f"{figure.best:,.4g}", f"{figure.median:,.4g}", bound, met)
    return table


def show(figures: list[Figure], torch: bool) -> None:
    console = Console()
    table = table_of(figures, "agentgym")
    table.add_row("import agentgym loads torch", "", str(torch), "", "False", "NO" if torch else "yes")
    console.print(table)
    peers = Table(title="for scale: measured elsewhere, CPU per turn")
    peers.add_column("peer")
    peers.add_column("us/turn", justify="right")
    for peer in PEERS:
        peers.add_row(*peer)
    console.print(peers)


def main() -> None:
    options = parser(__doc__).parse_args()
    figures, torch = measure(options.quick), imports_torch()
    if options.json:
        rows = [{**asdict(figure), "met": figure.met} for figure in figures]
        peers = [{"peer": name, "us_per_turn": cost} for name, cost in PEERS]
        print(json.dumps({"processor": processor(), "figures": rows, "imports_torch": torch, "measured_elsewhere": peers}))
    else:
        show(figures, torch)


if __name__ == "__main__":
    main()
