"""A scripted expert that reads a task's words, and can be made to err, for demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from agentgym.action import call
from agentgym.envs.code.tasks import lines_of, other_line, program_of
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import path


def gold_actions(task: Task) -> list[str]:
    return [call("write", code=program_of(lines_of(task.prompt)), thought="write it"), call("test", thought="try it"), _SUBMIT]


_SUBMIT = call("submit", thought="done")


@dataclass(frozen=True, slots=True)
class Expert:
    """Writes, tests, and mends until the examples pass. With probability ``mistakes`` a line is another, and a test is left out."""

    seed: int = 0
    mistakes: float = 0.0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt, Lineage.of(self.seed, "expert", sampling.seed).rng()))

    def act(self, prompt: Prompt, rng: Random) -> str:
        last = path(prompt.turn)[-1].observation if prompt.turn.parent is not None else ""
        if last.startswith("Wrote"):
            return _SUBMIT if rng.random() < self.mistakes else call("test", thought="try it")
        if " examples pass." in last:
            passed, of = last.split(" examples pass.")[0].split(" of ")
            if passed == of or rng.random() < self.mistakes:
                return _SUBMIT
        lines = [self._line(line, prompt.tree.task.prompt, rng) for line in lines_of(prompt.tree.task.prompt)]
        return call("write", code=program_of(lines), thought="mend it" if last else "write it")

    def _line(self, line: str, prompt: str, rng: Random) -> str:
        return other_line(prompt, rng) if rng.random() < self.mistakes else line
