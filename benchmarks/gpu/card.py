"""What the benchmarks for a GPU share: the card and what it can do at most, a model of 1.7B parameters, and how they report."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parent.parent))

from commandline import parser

# The sizes of Qwen3-1.7B, and of nothing.
SHAPE = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
QUICK_SHAPE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
QUICK_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}


def options(document: str | None) -> argparse.Namespace:
    found = parser(document).parse_args()
    if not torch.cuda.is_available() and not found.quick:
        print("This benchmark needs a GPU and found none: run it where torch sees one, or with --quick for a smoke run.", file=sys.stderr)
        raise SystemExit(2)
    return found


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(quick: bool) -> Any:
    """Of random weights, in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {**QUICK_SHAPE, **QUICK_HEADS} if quick else {**SHAPE, **HEADS}
    config = Qwen3Config(**sizes, max_position_embeddings=32_768, tie_word_embeddings=True)
    torch.manual_seed(0)
    with device():
        return Qwen3ForCausalLM(config).eval()


def matrix_rate(quick: bool) -> float:
    """Operations a second of a large product in bfloat16, the best of ten."""
    size = 256 if quick else 8192
    left, right = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right) for _ in range(10))


def bandwidth(quick: bool) -> float:
    """Bytes a second that a large copy reads and writes, the best of ten."""
    source = torch.zeros(2**20 if quick else 2**30, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2 * len(source) / min(seconds(lambda: target.copy_(source)) for _ in range(10))


def seconds(run: Callable[[], Any]) -> float:
    _wait()
    started = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - started


def measured(run: Callable[[], Any], rounds: int) -> tuple[float, float | None]:
    """The median of its seconds after one run that may compile, and the most GB that it held, where that is known."""
    run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    median = statistics.median(seconds(run) for _ in range(rounds))
    return median, torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def report(found: argparse.Namespace, benchmark: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """A table, or one JSON object."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    if found.json:
        about = {"benchmark": benchmark, "device": name, "torch": torch.__version__, "means_nothing": found.quick}
        print(json.dumps({**about, **facts, "rows": rows}))
        return
    warning = ": A SMOKE RUN, ITS FIGURES MEAN NOTHING" if found.quick else ""
    table = Table(title=f"{benchmark}, {name}, torch {torch.__version__}{warning}")
    for heading, value in rows[0].items():
        table.add_column(heading.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(_said, row.values()))
    console = Console()
    console.width = max(console.width, 150)  # figures are not cut where the output is a file
    console.print(table)
    for fact, value in facts.items():
        console.print(f"{fact.replace('_', ' ')}: {_said(value)}")


def _said(value: Any) -> str:
    if value is None:
        return ""
    return {True: "yes", False: "NO"}[value] if isinstance(value, bool) else value if isinstance(value, str) else f"{value:,.4g}"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
