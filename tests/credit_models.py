"""What stands for the models that credits bring, and episodes for them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import torch
from forests import add_turn, random_tree

from agentgym.pack import pack
from agentgym.task import Task
from agentgym.trainers.credit.streams import check_streams
from agentgym.turn import TurnTree


class Says:
    """Log-probabilities or values that a test chose, for the sampled tokens of a batch in the order of the pack."""

    def __init__(self, *values: float) -> None:
        self.given, self.seen, self.steps = values, [], 0

    def logprobs(self, packed: Any) -> Any:
        found = torch.zeros(len(packed), dtype=torch.float64)
        found[torch.from_numpy(packed.sampled)] = torch.tensor(self.given or 0.0, dtype=torch.float64)
        return found

    values = logprobs

    def accumulate(self, packed: Any, objective: Any) -> dict[str, float]:
        self.seen.append((packed, objective))
        return {"loss": 1.0}

    def step(self, pace: float = 1.0) -> dict[str, float]:
        self.steps += 1
        return {"gradient_norm": 0.0}


def episodes(*lengths: int, rewards: Any, task: str = "task") -> TurnTree:
    tree = TurnTree("tree", Task(task, ""))
    root = add_turn(tree, None, [1])
    for i, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
        add_turn(tree, root, [2 + i] * length, length, end="done", reward=reward)
    return tree


def credited(credit: Any, models: dict[str, Any], *trees: TurnTree) -> list[list[float]]:
    asyncio.run(credit.assign(trees, models))
    check_streams(trees)
    turns = [turn for tree in trees for turn in tree.turns if turn.sampled_tokens]
    return [turn.streams["advantage"][: turn.sampled_tokens].tolist() for turn in turns]


def flat(found: Any) -> list[float]:
    return [value for part in found for value in part]


def valued(seed: int = 0) -> Any:
    tree = random_tree(random.Random(seed), turns=9)
    packed = pack([tree], 10**6)[0]
    packed.streams.update({"weight": packed.sampled / 7.0, "return": np.random.default_rng(seed).normal(size=len(packed))})
    return packed
