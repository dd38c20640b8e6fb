"""What packing saves in training: one forked tree, each token once, against each path on its own.

The peers of "paths" are trainers that hold an episode as one row (verl, TRL): a shared prefix is computed once for each
path. "padded" is the same in one rectangular batch. All three give the same gradient; the difference is reported.

    python benchmarks/packing.py [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from agentgym.pack import Packed, pack
from agentgym.policies.tiny import new_model
from agentgym.task import Task
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import Turn, TurnTree, path

VOCABULARY = 512
BUDGETS = (512, 768, 1024)  # tokens of a pack; a larger tree is cut between its episodes
PROMPT, ACTION, OBSERVATION = 120, 24, 40  # tokens, about those of the search environment


def forked_tree(branches: int, depth: int, fork_every: int) -> TurnTree:
    """``branches`` episodes from one root; every ``fork_every`` turns each episode forks in two."""
    rng = random.Random(0)
    tree = TurnTree("tree", Task("task", ""))
    tree.add(_turn(rng, None, 0, PROMPT))
    tips = [tree.root] * branches
    for level in range(depth):
        copies = 2 if level and level % fork_every == 0 else 1
        tips = [tree.add(_turn(rng, tip, ACTION, OBSERVATION)) for tip in tips for _ in range(copies)]
    for tip in tips:
        tip.end = "done"
    return tree


def paths_alone(tree: TurnTree) -> list[TurnTree]:
    """Each episode as a tree of its own. A shared turn's weight is divided among its episodes."""
    lines = [path(leaf) for leaf in tree.leaves()]
    shares: dict[Turn, int] = {}
    for turn in (turn for line in lines for turn in line):
        shares[turn] = shares.get(turn, 0) + 1
    alone = []
    for line in lines:
        single = TurnTree("path", tree.task)
        for turn in line:
            above = single.turns[-1] if single.turns else None
            streams = {"weight": turn.streams["weight"] / shares[turn]}
            single.add(Turn(0, above, turn.author, 0, turn.ids, turn.sampled, turn.logprobs, streams=streams))
        alone.append(single)
    return alone


def gradient(learner: TorchLearner, packs: list[Packed]) -> torch.Tensor:
    for packed in packs:
        learner.accumulate(packed, CrossEntropy())
    found = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
    learner.optimizer.zero_grad()
    return found


def padded_gradient(learner: TorchLearner, paths: list[TurnTree]) -> torch.Tensor:
    rows = [[token for turn in tree.turns for token in turn.ids] for tree in paths]
    weights = [np.concatenate([turn.streams["weight"] for turn in tree.turns]) for tree in paths]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    weight = torch.tensor(np.array([np.pad(w, (0, longest - len(w))) for w in weights]))
    logprobs = learner.model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    (-(weight[:, 1:] * logprobs).sum()).backward()
    found = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
    learner.optimizer.zero_grad()
    return found


def measure(name: str, branches: int, depth: int, fork_every: int, repeats: int) -> list[dict[str, Any]]:
    tree = forked_tree(branches, depth, fork_every)
    alone = paths_alone(tree)
    learner = TorchLearner(new_model(VOCABULARY, seed=0), 1e-3)
    forms: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "packed": (_tokens([tree]), lambda: gradient(learner, pack([tree], 10**6))),
        **{f"in packs of {most}": _in_packs(learner, tree, most) for most in BUDGETS},
        "paths": (_tokens(alone), lambda: gradient(learner, pack(alone, 1))),
        "padded": (len(alone) * max(_tokens([one]) for one in alone), lambda: padded_gradient(learner, alone)),
    }
    expected = forms["packed"][1]()
    rows = []
    for form, (tokens, run) in forms.items():
        error = float((run() - expected).norm() / expected.norm())
        seconds = statistics.median(_timed(run) for _ in range(repeats))
        rows.append({"tree": name, "form": form, "tokens": tokens, "seconds": seconds, "relative_difference": error})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = {"group of 8, no forks": (8, 4, 99), "2 episodes, forked twice": (2, 6, 2), "1 episode, forked thrice": (1, 8, 2)}
    rows = [row for name, shape in shapes.items() for row in measure(name, *shape, arguments.repeats)]
    if arguments.json:
        print(json.dumps({"benchmark": "packing", "model": "tiny Qwen3, 0.47M", "threads": 1, "rows": rows}))
        return
    print(f"{'tree':26} {'form':16} {'tokens':>7} {'seconds':>8} {'times packed':>13} {'gradient differs':>17}")
    for row in rows:
        base = next(r for r in rows if r["tree"] == row["tree"])
        times = row["seconds"] / base["seconds"]
        print(f"{row['tree']:26} {row['form']:16} {row['tokens']:7} {row['seconds']:8.3f} {times:13.2f} {row['relative_difference']:17.1e}")


def _in_packs(learner: TorchLearner, tree: TurnTree, most: int) -> tuple[int, Callable[[], torch.Tensor]]:
    packs = pack([tree], most)
    return sum(map(len, packs)), lambda: gradient(learner, pack([tree], most))


def _turn(rng: random.Random, parent: Turn | None, sampled: int, said: int) -> Turn:
    ids = [rng.randrange(VOCABULARY) for _ in range(sampled + said)]
    mask = [place < sampled for place in range(len(ids))]
    streams = {"weight": np.array(mask, dtype=np.float64) / 1000}
    return Turn(0, parent, "policy" if parent else "env", 0, ids, mask, [-3.0] * sampled, streams=streams)


def _tokens(trees: list[TurnTree]) -> int:
    return sum(len(turn.ids) for tree in trees for turn in tree.turns)


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
