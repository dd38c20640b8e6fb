"""SPARK: finished rollouts come back as judge tasks, on which the same policy is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.rollout import Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.trainers.credit.answers import answer_of, reasoning_of
from agentgym.trainers.credit.groups import Group, groups_of
from agentgym.trainers.credit.verdicts import mean_reward
from agentgym.trainers.seams import Source
from agentgym.trainers.sources.around import Around
from agentgym.trainers.sources.hosting import hosting
from agentgym.trainers.sources.judging import judging, reflecting
from agentgym.trainers.sources.uniform import Uniform
from agentgym.turn import Turn, TurnTree

TAG = "spark"


class SPARK(Around):
    """What ``source`` draws, and tasks made of the last batch: judge an answer, choose the better of two, try again after a wrong one.

    A source, because such a task is played, graded and credited like any other: its group of episodes meets any credit (GRPO in the
    code), and its right answer is known. It comes one step later, so that what is learnt stays on-policy [R]; the code answers it
    within the step. The environment that plays it comes along, through ``host``: `Training` asks a source for that.

    Each task of the last batch gives a `judging` task and, if an episode of it was wrong, a `reflecting` one, which its own environment
    grades. An episode is right from the reward ``right`` on. Its answer is the last action without the thought; one that was cut off,
    or says nothing, is skipped, and so is one with more than ``longest`` characters [R]. Of a batch, ``share`` at most are judging
    and ``share`` reflecting tasks (the code: 32 and 32 beside 64), drawn by chance; the rest are dropped. It must be the outermost source.

    Settings of the code: learning rate 5e-7, 8 episodes, a KL term of 0.001 (k3). Source: SPARK: Synergistic Policy And Reward
    Co-Evolving Framework, arXiv 2509.22624 [S-code].
    """

    def __init__(self, source: Source, seed: int = 0, right: float = 1.0, share: float = 0.25, longest: int = 4000) -> None:
        if not 0 < share <= 0.5:
            raise AgentGymError(f"share is {share}: it must lie above 0, and be 0.5 at most, for there are two kinds")
        super().__init__(source)
        self.seed, self.right, self.share, self.longest = seed, right, share, longest
        self.batches = 0
        self.pending: dict[str, list[Task]] = {"judging": [], "reflecting": []}

    def host(self, make_env: Callable[[], AgentEnv]) -> Callable[[], AgentEnv]:
        return partial(hosting, make_env)

    def draw(self, n: int) -> list[Start]:
        room = int(n * self.share)
        if not room:
            raise AgentGymError(f"a batch of {n} trees has no room for judge tasks at a share of {self.share}: raise one of them")
        made = [Start(task, {TAG: kind}) for kind, tasks in self.pending.items() for task in tasks[:room]]
        self.pending = {kind: [] for kind in self.pending}
        return [*self.source.draw(n - len(made)), *made]

    def observe(self, trees: Sequence[TurnTree]) -> None:
        played = [tree for tree in trees if TAG not in tree.tags]
        self.source.observe(played)
        lineage = Lineage.of(self.seed, "spark", self.batches)
        self.batches += 1
        for group in groups_of(played):
            self._recycle(group, lineage / group.task.id)
        for kind, tasks in self.pending.items():
            (lineage / kind).rng().shuffle(tasks)
        labels = [task.answer for task in self.pending["judging"]]
        self._metrics = {f"judge_{label}": float(labels.count(label)) for label in ("yes", "no", "A", "B")}
        self._metrics["reflections"] = float(len(self.pending["reflecting"]))
        self._metrics["judge_reward"] = mean_reward([tree for tree in trees if tree.tags.get(TAG) == "judging"])

    def _recycle(self, group: Group, lineage: Lineage) -> None:
        draws = {name: (lineage / name).rng().random() for name in ("kind", "order", "words", "reasoning")}
        answers: dict[bool, list[Turn]] = {True: [], False: []}
        for leaf, reward in zip(group.leaves, group.rewards.tolist(), strict=True):
            if 0 < len(answer_of(leaf)) <= self.longest:
                answers[reward >= self.right].append(leaf)
        right, wrong = ((lineage / str(which)).rng().choice(found) if found else None for which, found in answers.items())
        name = f"{group.task.id}/{self.batches}"
        good, bad = (answer_of(leaf) if leaf is not None else None for leaf in (right, wrong))
        if (task := judging(group.task, name, good, bad, draws["kind"], draws["order"], draws["words"])) is not None:
            self.pending["judging"].append(task)
        if wrong is not None:
            reasoning = reasoning_of(wrong) if draws["reasoning"] < 0.5 else answer_of(wrong)
            if len(reasoning) <= self.longest:
                self.pending["reflecting"].append(reflecting(group.task, name, reasoning, draws["words"]))

    def admit(self, tree: TurnTree) -> str | None:
        return None if TAG in tree.tags else self.source.admit(tree)

    def state_dict(self) -> dict[str, Any]:
        pending = orjson.dumps(self.pending, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()
        return {"source": self.source.state_dict(), "batches": self.batches, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.batches = state["batches"]
        self.pending = {kind: [Task(**task) for task in tasks] for kind, tasks in orjson.loads(state["pending"]).items()}


def spark_uniform(tasks: Sequence[Task], seed: int = 0, **settings: Any) -> SPARK:
    """`SPARK` over `Uniform`, for a recipe."""
    return SPARK(Uniform(tasks, seed), seed, **settings)
