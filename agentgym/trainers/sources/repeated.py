"""Every start several times, for methods that grow several trees for each prompt."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.errors import AgentGymError
from agentgym.rollout import Start
from agentgym.task import Task
from agentgym.trainers.seams import Source
from agentgym.trainers.sources.around import Around
from agentgym.trainers.sources.uniform import Uniform


class Repeated(Around):
    """What ``source`` draws, each ``copies`` times in a row. Raises `AgentGymError` for a batch that ``copies`` do not divide."""

    def __init__(self, source: Source, copies: int = 2) -> None:
        if copies < 1:
            raise AgentGymError(f"copies is {copies}: every start must be played at least once")
        super().__init__(source)
        self.copies = copies

    def draw(self, n: int) -> list[Start]:
        prompts, rest = divmod(n, self.copies)
        if rest:
            raise AgentGymError(f"a batch of {n} trees cannot hold {self.copies} of each prompt: choose a multiple of {self.copies}")
        return [start for start in self.source.draw(prompts) for _ in range(self.copies)]


def repeated_uniform(tasks: Sequence[Task], copies: int = 2, seed: int = 0) -> Repeated:
    """`Repeated` over `Uniform`, for a recipe."""
    return Repeated(Uniform(tasks, seed), copies)
