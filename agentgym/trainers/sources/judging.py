"""Judge tasks, and the environment that plays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentgym.env import AgentEnv
from agentgym.task import Task
from agentgym.tool import tool

SPLIT = "judge"
POINTWISE = 0.3  # the share of single answers among tasks that were answered right and wrong
SINGLE = (
    "A task:\n{task}\n\nSomebody's answer:\n{answer}\n\nIs it right? Call verdict with yes or no.",
    "Check an answer. The task was:\n{task}\n\nThe answer was:\n{answer}\n\nCall verdict with yes if it is correct, else with no.",
)
PAIR = (
    "A task:\n{task}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\nOne is right. Call verdict with A or B.",
    "Two answers to one task, one of them correct. The task:\n{task}\n\nA:\n{first}\n\nB:\n{second}\n\nWhich? Call verdict with A or B.",
)
AGAIN = (
    "{task}\n\nAn earlier attempt at this was wrong:\n{wrong}\n\nFind what is wrong with it, then do better.",
    "{task}\n\nThis did not solve it:\n{wrong}\n\nThink again, and solve it.",
)


def judging(task: Task, name: str, right: str | None, wrong: str | None, kind: float, order: float, words: float) -> Task | None:
    """A task that asks for the verdict on answers to ``task``: "yes" or "no" on one, or which of two is right, "A" or "B".

    Draws lie in [0, 1): of two, one alone is shown where ``kind`` is below 0.3, and the right one, or the right one first, where
    ``order`` is below 0.5; ``words`` chooses the prompt's. None without an answer.
    """
    if right is not None and wrong is not None and kind >= POINTWISE:
        first, second, verdict = (right, wrong, "A") if order < 0.5 else (wrong, right, "B")
        prompt = _chosen(PAIR, words).format(task=task.prompt, first=first, second=second)
    elif right is not None and (wrong is None or order < 0.5):
        prompt, verdict = _chosen(SINGLE, words).format(task=task.prompt, answer=right), "yes"
    elif wrong is not None:
        prompt, verdict = _chosen(SINGLE, words).format(task=task.prompt, answer=wrong), "no"
    else:
        return None
    return Task(f"{name}/judging", prompt, verdict, SPLIT)


def reflecting(task: Task, name: str, wrong: str, words: float) -> Task:
    """The same task once more, for its own environment, after a wrong attempt."""
    return replace(task, id=f"{name}/reflecting", prompt=_chosen(AGAIN, words).format(task=task.prompt, wrong=wrong))


def _chosen(prompts: Sequence[str], words: float) -> str:
    return prompts[int(words * len(prompts))]


class Judge(AgentEnv):
    """One verdict on a task of `judging`: reward 1 where it is the right one."""

    max_turns = 1
    snapshots = "value"

    def tasks(self, split: str) -> Sequence[Task]:
        return []

    def begin(self, task: Task) -> None:
        self.state = ""

    @tool(ends=True)
    def verdict(self, answer: str) -> str:
        """Give the verdict that the task asks for."""
        self.state = answer.strip().lower()
        return "Thank you."

    def score(self) -> float:
        return float(self.state == str(self.task.answer).lower())
