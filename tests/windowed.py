"""Episodes played up to a window, and who teaches and learns from them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from test_rollout import Counter, tiny_chat
from token_actors import Writes

from agentgym import Lineage, Rollout, Start, Task, call
from agentgym.expand import Stateless
from agentgym.rollout import episode
from agentgym.trainers.credit import adwin
from agentgym.trainers.credit.streams import check_streams
from agentgym.turn import TurnTree, path


class Teaches(Stateless):
    """Every sampled token trains, by an advantage that its id decides, whether its episode was judged or given up."""

    writes = frozenset({"advantage", "trained"})

    async def assign(self, trees: Any, models: Any) -> None:
        for tree in trees:
            for turn in tree.turns:
                sampled = turn.sampled.astype(np.float64)
                turn.streams["trained"] = sampled
                turn.streams["advantage"] = sampled * np.cos(np.array(turn.ids, dtype=np.float64))

    def metrics(self) -> dict[str, float]:
        return {"taught": 1.0}


class Lasts:
    """Writes as many actions as a task is numbered, the last of which ends the episode; 9 goes on for ever."""

    def __init__(self, late: int | None = None) -> None:
        self.late = late

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        turns = int(prompt.tree.task.id)
        actions = [call("add", n=n) for n in range(1, turns)] + [call("stop_here")]
        return await Writes(actions, late=self.late).generate(prompt, sampling)


ADDS, STOPS = (len(tiny_chat().write(action)) for action in (call("add", n=1), call("stop_here")))  # tokens of an action


def play(expander: Any, turns: Any, actor: Any = None, root: int = 0, make_env: Any = Counter, limits: Any = None) -> list[TurnTree]:
    rollout = Rollout(make_env, expander, {"policy": actor or Lasts()}, tiny_chat(), Lineage.of(root), limits=limits)
    forest = asyncio.run(rollout.run([Start(Task(str(number), "Count!")) for number in turns]))
    assert all(tree.closed for tree in forest)
    assert not any(turn.end is None for tree in forest for turn in tree.turns if not turn.children)
    return forest


def credited(forest: Any, learner: Any = None, **options: Any) -> adwin.ADWIN:
    credit = adwin.ADWIN(Teaches(), **options)
    asyncio.run(credit.assign(forest, {"learner": learner}))
    check_streams(forest)
    return credit


def lengths(forest: Any) -> list[tuple[int, int]]:
    """Whole turns and sampled tokens of each episode, in order."""
    leaves = [leaf for tree in forest for leaf in tree.leaves()]
    return [(len(episode(leaf)), sum(turn.sampled_tokens for turn in path(leaf))) for leaf in leaves]


def probes(forest: Any) -> list[str]:
    return [tree.task.id for tree in forest for _ in tree.tags["window"]["probes"]]


class Given:
    """A learner whose gradients a test chose, and what was asked of it."""

    def __init__(self, gradients: Any) -> None:
        self.gradients, self.weights = list(gradients), []

    def gradient(self, packs: Any, objective: Any) -> Any:
        self.weights.append(np.concatenate([packed.streams["weight"] for packed in packs]))
        return torch.tensor(self.gradients[len(self.weights) - 1])
