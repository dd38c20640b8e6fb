"""Policies that need no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentgym.errors import AgentGymError
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.turn import path


@dataclass(frozen=True, slots=True)
class Scripted:
    """Plays the actions of a list, one for each turn, or what a function of the prompt gives."""

    script: Sequence[str] | Callable[[Prompt], str]

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if callable(self.script):
            return Generation(text=self.script(prompt))
        played = sum(turn.author != "env" for turn in path(prompt.turn))
        if played >= len(self.script):
            raise AgentGymError(f"the script ends after {len(self.script)} actions, but the episode goes on")
        return Generation(text=self.script[played])
