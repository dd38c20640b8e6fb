"""What packing saves in training: one forked tree, each token once, against each path on its own.

The peers of "by path" are trainers that hold an episode as one row (verl, TRL): a shared prefix is computed once for each
path. "padded" is the same in one rectangular batch. All give the same gradient; the difference is reported.

    python benchmarks/packing.py [--json] [--quick]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from commandline import parser
from trees import TREES, grown

from agentgym.pack import Packed, pack
from agentgym.policies.tiny import new_model
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.trainers.packing import ByPath
from agentgym.turn import TurnTree

VOCABULARY = 512
BUDGETS = (768, 1024)  # tokens of a pack; a larger tree is cut between its episodes
TARGET = 0.85  # so much of the saved tokens should be saved time


def gradient(learner: TorchLearner, packs: list[Packed]) -> torch.Tensor:
    for packed in packs:
        learner.accumulate(packed, CrossEntropy())
    found = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
    learner.optimizer.zero_grad()
    return found


def padded_gradient(learner: TorchLearner, paths: list[Packed]) -> torch.Tensor:
    longest = max(map(len, paths))
    ids = torch.tensor(np.array([np.pad(one.token, (0, longest - len(one))) for one in paths]))
    weight = torch.tensor(np.array([np.pad(one.streams["weight"], (0, longest - len(one))) for one in paths]))
    logprobs = learner.model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    (-(weight[:, 1:] * logprobs).sum()).backward()
    found = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
    learner.optimizer.zero_grad()
    return found


def measure(name: str, copies: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    tree = grown(copies, VOCABULARY)
    alone = ByPath()([tree])
    learner = TorchLearner(new_model(VOCABULARY, seed=0), 1e-3)
    forms: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "by path": (sum(map(len, alone)), lambda: gradient(learner, ByPath()([tree]))),
        "padded": (len(alone) * max(map(len, alone)), lambda: padded_gradient(learner, alone)),
        "by tree": _in_packs(learner, tree, 10**6),
        **{f"by tree, {most}": _in_packs(learner, tree, most) for most in BUDGETS},
    }
    expected = forms["by path"][1]()
    errors = {form: float((run() - expected).norm() / expected.norm()) for form, (_, run) in forms.items()}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(rounds):  # form after form, so that a busy minute falls on all
        for form, (_, run) in forms.items():
            seconds[form].append(_timed(run))
    most, longest = forms["by path"][0], statistics.median(seconds["by path"])
    return [
        {
            "tree": name,
            "form": form,
            "tokens": tokens,
            "seconds": statistics.median(seconds[form]),
            "fewer_tokens": most / tokens,
            "times_faster": longest / statistics.median(seconds[form]),
            "relative_difference": errors[form],
        }
        for form, (tokens, _) in forms.items()
    ]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=9)
    arguments = command.parse_args()
    torch.set_num_threads(1)
    trees, rounds = (list(TREES.items())[-1:], 1) if arguments.quick else (TREES.items(), arguments.rounds)
    rows = [row for name, copies in trees for row in measure(name, copies, rounds)]
    if arguments.json:
        print(json.dumps({"benchmark": "packing", "model": "tiny Qwen3, 0.5M", "threads": 1, "target": TARGET, "rows": rows}))
        return
    print(f"{'tree':34} {'form':14} {'tokens':>7} {'seconds':>8} {'fewer':>6} {'faster':>7} {'target':>7} {'gradient differs':>17}")
    for row in rows:
        target = f"{TARGET * row['fewer_tokens']:7.2f}" if row["form"] == "by tree" else " " * 7
        print(
            f"{row['tree']:34} {row['form']:14} {row['tokens']:7} {row['seconds']:8.3f} {row['fewer_tokens']:6.2f} "
            f"{row['times_faster']:7.2f} {target} {row['relative_difference']:17.1e}"
        )


def _in_packs(learner: TorchLearner, tree: TurnTree, most: int) -> tuple[int, Callable[[], torch.Tensor]]:
    packs = pack([tree], most)
    return sum(map(len, packs)), lambda: gradient(learner, pack([tree], most))


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
