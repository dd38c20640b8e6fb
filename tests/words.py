"""Trees made by hand or grown in an environment of letters, and predictors that were told."""

from __future__ import annotations

import asyncio
import itertools
import random

import numpy as np
from forests import add_turn
from hypothesis import strategies as st

from agentgym import AgentEnv, InfrastructureError, Lineage, Reply, Rollout, Start, Task
from agentgym.expand import Stateless
from agentgym.policy import Generation
from agentgym.rollout import episode
from agentgym.trainers.expanders.value import Belief
from agentgym.turn import TurnTree

VALUES = [0.5, 0.9, 0.2, 0.98]
chance = st.floats(0.0, 1.0)


def worked_tree():
    """a1 → a2 → a3 won, b1 → b2 lost, and after a1 also c2 → c3 lost and d2 won."""
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, [1])
    turns = {}
    for parent, name, reward in (
        (None, "a1", None),
        ("a1", "a2", None),
        ("a2", "a3", 1.0),
        (None, "b1", None),
        ("b1", "b2", 0.0),
        ("a1", "c2", None),
        ("c2", "c3", 0.0),
        ("a1", "d2", 1.0),
    ):
        end = {} if reward is None else {"end": "done", "reward": reward}
        turns[name] = add_turn(tree, turns[parent] if parent else tree.root, [2, 3], 1, **end)
    return tree, turns


def a_group(*rewards, id="tree"):
    """A tree of one-turn episodes; a reward of None is a fault."""
    tree = TurnTree(id, Task(id, ""))
    root = add_turn(tree, None, [1])
    for reward in rewards:
        add_turn(tree, root, [2], 1, end="error" if reward is None else "done", reward=reward)
    return tree


class Letters(AgentEnv):
    """Three letters make a word; a task's answer lists the words that win. An x is a fault of the machine."""

    max_turns = 3
    snapshots = "value"

    def begin(self, task):
        if task.answer is None:
            raise InfrastructureError("the machine did not start")
        self.state = ""

    def act(self, action):
        if action.text == "x":
            raise InfrastructureError("the network is down")
        self.state += action.text
        return Reply(f"So far: {self.state}", ends=len(self.state) == self.task.data.get("turns", 3))

    def score(self):
        return float(self.state in self.task.answer)


def word(turn):
    return "".join(turn.action for turn in episode(turn))


class Writer:
    """Writes what ``letter(task, written, branch)`` says, the branch counted among the siblings."""

    def __init__(self, letter):
        self.letter = letter

    async def generate(self, prompt, sampling):
        seeds = (Lineage.of(prompt.turn.seed, "branch", branch).seed() for branch in itertools.count())
        branch = next(branch for branch, seed in enumerate(seeds) if seed == sampling.seed)
        return Generation(text=self.letter(prompt.tree.task.id, word(prompt.turn), branch))


class Coin:
    """Writes a or b, by the turn's own seed."""

    async def generate(self, prompt, sampling):
        return Generation(text=random.Random(sampling.seed).choice("ab"))


class Told(Stateless):
    """A predictor that was told the values, by task and what is written; it remembers what it was taught."""

    cold = False

    def __init__(self, values, cold=False):
        self.values, self.cold, self.taught = values, cold, []

    def predict(self, anchors):
        values = [self.values.get((anchor.tree.task.id, word(anchor.turn)), 0.5) for anchor in anchors]
        return Belief(np.array(values), np.full(len(values), np.inf))

    def learn(self, trees):
        self.taught.append([tree.id for tree in trees])

    def metrics(self):
        return {}


def play(expander, tasks, actor=None, step=0, committed=None):
    rollout = Rollout(Letters, expander, {"policy": actor or Coin()}, None, Lineage.of(0, "train", step), committed=committed)
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def a_task(id="t", wins=("aaa",), turns=3):
    return Task(id, f"Write a word for {id}.", list(wins), data={"turns": turns})


def grown(tree):
    return [(word(turn), len(turn.children)) for turn in tree.turns if len(turn.children) > 1]


AAA_OR_BBB = Writer(lambda task, written, branch: written[0] if written and branch == 0 else "ab"[branch % 2])


def two_chains(expander):
    """aaa, which wins, and bbb, which loses; then what the expander chooses."""
    (tree,) = play(expander, [a_task()], AAA_OR_BBB)
    assert [word(leaf) for leaf in tree.leaves()][:2] == ["aaa", "bbb"]
    assert tree.closed
    return tree
