"""How long ``agentgym view`` takes to show a long run: its own start, and then the list of trees in headless Chromium.

``python benchmarks/viewing.py``, with ``--json`` for one JSON object and ``--quick`` for a smoke run. The run has 100,000 turns of about
60 tokens, written by `RunStore.turn`. Times are wall time, the best and the median of several starts of server and browser alike; the
browser itself is running, with an empty page. "complete" is when every tree can be listed, filtered and opened.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from commandline import parser
from gym_overhead import Figure, processor
from rich.console import Console
from rich.table import Table

from agentgym import Lineage, Task, Turn, TurnTree, call
from agentgym.store import RunStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browsing import Browser, chromium

TURNS, EPISODES, LENGTH, TOKENS = 100_000, 4, 5, 60
WORDS = ("harbour", "airport", "capital", "river", "island", "country", "currency", "language", "mountain", "bridge", "station", "market")
OBSERVED = 30  # of a turn's tokens


def write_run(folder: Path, turns: int, seed: int = 0) -> int:
    """A training run of trees of ``EPISODES`` episodes with ``LENGTH`` turns each. Returns how many trees it has."""
    rng = Lineage.of(seed, "viewing").rng()
    store = RunStore.create(folder, {"kind": "training", "env": {"id": "agentgym/Search-v0"}, "policy": "tiny", "seed": seed})
    trees = turns // (EPISODES * LENGTH + 1)
    for number in range(trees):
        prompt = f"In which {rng.choice(WORDS)} does the {' '.join(rng.choices(WORDS, k=6))} lie?"
        tree = TurnTree(f"{number // 8}/train/{number}/0", Task(f"task-{number}", prompt, answer=[rng.choice(WORDS)]))
        for turn in grow(tree, rng):
            store.turn(tree, turn)
        store.append("turns", {"tree": tree.id, "advantages": [rng.gauss(0, 1) for _ in tree.turns]})
        if number % 64 == 63:
            step = number // 64
            store.append("metrics", {"step": step, "reward": rng.random(), "loss": rng.gauss(0, 1), "kl": rng.random() / 100})
    store.close()
    return trees


def grow(tree: TurnTree, rng: random.Random) -> list[Turn]:
    root = tree.add(Turn(0, None, "env", 0, ids=tokens(rng), replies=[said(tree.task.prompt)]))
    for _ in range(EPISODES):
        parent = root
        for place in range(LENGTH):
            ends = place == LENGTH - 1
            parent = tree.add(a_turn(parent, rng))
            parent.end, parent.reward = ("done", float(rng.random() < 0.5)) if ends else (None, 0.0)
    return tree.turns


def a_turn(parent: Turn, rng: random.Random) -> Turn:
    words = " ".join(rng.choices(WORDS, k=4))
    return Turn(
        0,
        parent,
        "policy",
        rng.getrandbits(63),
        ids=tokens(rng),
        sampled_tokens=TOKENS - OBSERVED,
        logprobs=[-rng.expovariate(3) for _ in range(TOKENS - OBSERVED)],
        versions=[(3, TOKENS - OBSERVED)],
        action_tokens=TOKENS - OBSERVED,
        action=call("search", query=words, thought=f"Where is the {words}?"),
        replies=[said(f"The {' '.join(rng.choices(WORDS, k=25))}.")],
    )


def said(text: str) -> dict[str, str]:
    return {"role": "tool", "name": "search", "content": text}


def tokens(rng: random.Random) -> list[int]:
    return [rng.randrange(32_000) for _ in range(TOKENS)]


def show(folder: Path, trees: int) -> tuple[float, float, float]:
    """Seconds from the command to its address, to the list on the screen, and to the whole list."""
    painted = "new Promise(go => requestAnimationFrame(() => setTimeout(go)))"
    with Browser() as browser:
        started = time.perf_counter()
        command = [sys.executable, "-c", "from agentgym.cli import main; main()", "view", str(folder)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            ready = time.perf_counter()
            browser.open(address)
            browser.wait("document.querySelectorAll('.tree').length >= 40")
            browser.run(painted)
            listed = time.perf_counter()
            browser.wait(f"document.querySelector('.filters [role=status]').textContent === '{trees:,} trees'")
            return ready - started, listed - ready, time.perf_counter() - ready
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    options = parser(__doc__).parse_args()
    turns, starts = (2_100, 1) if options.quick else (TURNS, 5)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        trees = write_run(folder, turns)
        size = (folder / "turns.jsonl").stat().st_size
        times = [show(folder, trees) for _ in range(starts if chromium() else 0)]
    names = ("command to address", "address to list on the screen", "address to complete list")
    columns = [sorted(column) for column in zip(*times, strict=True)]
    figures = [Figure(name, "s", column[0], column[len(column) // 2]) for name, column in zip(names, columns, strict=False)]
    if options.json:
        print(json.dumps({"processor": processor(), "turns": turns, "bytes": size, "figures": list(map(asdict, figures))}))
        return
    table = Table(title=f"{turns:,} turns in {trees:,} trees, {size / 1e6:,.0f} MB, seconds on {processor()}")
    for heading in ("wall time", "best", "median"):
        table.add_column(heading, justify="left" if heading == "wall time" else "right")
    for figure in figures:
        table.add_row(figure.name, f"{figure.best:.2f}", f"{figure.median:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
