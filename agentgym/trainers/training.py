"""Everything that a training run is made of: plain objects on the seams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.expand import Expander
from agentgym.pack import ByTree, Packing
from agentgym.policy import Actor
from agentgym.rollout import Limits
from agentgym.trainers.divisors import Divisor, token_mean
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.seams import Credit, Learner, Objective, Schedule, Source, Sync


@dataclass
class Training:
    """Plain objects on the seams. ``batch`` trees for each step, learnt in ``updates`` optimiser steps."""

    make_env: Callable[[], AgentEnv]
    actor: Actor
    chat: Chat
    source: Source
    expander: Expander
    credit: Credit
    objective: Objective
    learner: Learner
    sync: Sync
    schedule: Schedule = field(default_factory=Synchronous)
    divisor: Divisor = token_mean
    limits: Limits = field(default_factory=Limits)
    batch: int = 8
    updates: int = 2
    packing: Packing = field(default_factory=ByTree)
    seed: int = 0
    models: Mapping[str, Any] = field(default_factory=dict)

    def plugins(self) -> dict[str, Any]:
        return {"source": self.source, "expander": self.expander, "credit": self.credit, "schedule": self.schedule}

    def save(self, folder: Path) -> None:
        states = {name: plugin.state_dict() for name, plugin in self.plugins().items()}
        torch.save({**states, "learner": self.learner.state_dict(), "random": torch.get_rng_state()}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        for name, plugin in self.plugins().items():
            plugin.load_state_dict(state[name])
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["random"])
