"""Everything that a training run is made of: plain objects on the seams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.expand import Expander
from agentgym.policy import Actor
from agentgym.rollout import Limits
from agentgym.trainers.credit.streams import written
from agentgym.trainers.divisors import Divisor, token_mean
from agentgym.trainers.packing import ByPath, ByTree, Packing
from agentgym.trainers.processes import Together
from agentgym.trainers.schedules.lagging import Lagging
from agentgym.trainers.schedules.periodic import Periodic
from agentgym.trainers.schedules.synchronous import Synchronous
from agentgym.trainers.seams import (
    Ahead,
    Credit,
    Hook,
    Hosts,
    Learner,
    Objective,
    Paced,
    Schedule,
    Source,
    Stateful,
    Sync,
    apart,
    asked,
    layers,
    stacked,
)


@dataclass
class Training:
    """Plain objects on the seams. ``batch`` trees for each step, learnt in ``updates`` optimiser steps.

    ``models`` are what the plug-ins ask for, and more: credit compares with them, and those that write actions are actors of the
    rollout, by their names. Those with a state are in every checkpoint. Raises `AgentGymError` where one is missing, or the
    objective needs what the learner, the credit or the packing do not give.
    """

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
    hook: Hook | None = None

    def __post_init__(self) -> None:
        name, needs = type(self.objective).__name__, self.objective.needs
        if "paths" in needs and isinstance(self.packing, ByTree | ByPath):  # others are checked pack by pack
            raise AgentGymError(
                f"{name} couples the tokens of whole episodes, which {type(self.packing).__name__} may cut: "
                "set packing to agentgym.trainers.packing:ByWholeTree"
            )
        if isinstance(self.learner, Together) and self.learner.sharded:
            self._refuse_what_looks_at_gradients()
        if unknown := needs - self.learner.heads - written(self.credit):
            raise AgentGymError(
                f"{name} needs {', '.join(sorted(unknown))}, which neither {type(self.credit).__name__} writes nor "
                f"{type(self.learner).__name__} gives: use a credit that writes it, such as agentgym.trainers.credit.logprobs:WithLogprobs"
            )

        if isinstance(self.schedule, Lagging | Ahead | Periodic) and not isinstance(self.sync, Stateful):
            raise AgentGymError(
                f"{type(self.schedule).__name__} needs an actor with weights of its own, and {type(self.sync).__name__} gives it none: "
                "use a sync such as agentgym.policies.sync:CopiedWeights"
            )
        if isinstance(self.schedule, Ahead):
            self._refuse_what_shares()
        if isinstance(self.schedule, Periodic):
            self._refuse_what_waits_for_a_batch()
        if isinstance(self.learner, Together):
            keeping = [layer for layer in layers(self.objective) if isinstance(layer, Stateful | Paced)]
            if held := [type(plugin).__name__ for plugin in (*keeping, *([self.hook] if self.hook else []))]:
                raise AgentGymError(
                    f"{' and '.join(held)} would see the packs or change the weights of one process in {self.learner.processes}: "
                    "train with one"
                )
        if isinstance(self.source, Hosts):
            self.make_env = self.source.host(self.make_env)
        if reserved := self.models.keys() & {"policy", "learner", "chat"}:
            raise AgentGymError(f"models: {', '.join(sorted(reserved))} is the training's own: give the model another name")
        for plugin in (self.source, self.expander, self.credit):
            if missing := [name for name in asked(plugin) if name not in self.models]:
                raise AgentGymError(
                    f"{type(plugin).__name__} needs {' and '.join(map(repr, missing))} among the models of the training: pass "
                    "models={name: make(model) for name, make in asked(source, expander, credit).items()}, and any teachers beside them"
                )

    def _refuse_what_looks_at_gradients(self) -> None:
        """Each process has a part of them."""
        objectives = [self.objective] if "gradient_norms" in self.objective.needs else []
        credits = [credit for credit in stacked(self.credit) if getattr(credit, "gradients", False)]
        if looking := [type(plugin).__name__ for plugin in (*objectives, *credits)]:
            raise AgentGymError(
                f"{' and '.join(looking)} would look at whole gradients, of which a sharded learner leaves each process a part: "
                "train without learner.sharded"
            )

    def _refuse_what_shares(self) -> None:
        """Several rollouts are played at once, and go on while weights change."""
        name = type(self.schedule).__name__
        if not apart(self.expander):
            raise AgentGymError(
                f"{name} plays several rollouts at once, and {type(self.expander).__name__} plans their trees together: use an expander "
                "whose trees share nothing, such as agentgym.expand:Groups"
            )
        if not getattr(self.source, "apart", True):
            raise AgentGymError(f"{name} draws on while trees are played, and {type(self.source).__name__} waits for whole passes of them")
        if self.hook is not None:
            raise AgentGymError(f"{name} plays on while {type(self.hook).__name__} tries weights, which would sample what is learnt")

    def _refuse_what_waits_for_a_batch(self) -> None:
        """What is learnt of one task may not hang on those that have not ended."""
        name = type(self.schedule).__name__
        if not apart(self.credit):
            raise AgentGymError(
                f"{name} learns from a task before the others have ended, and {type(self.credit).__name__} does not say that it takes "
                "tasks by themselves (apart): use a credit that does, such as agentgym.trainers.credit.grpo:GRPO"
            )
        for layer in layers(self.objective):
            if isinstance(layer, Stateful | Paced) or not getattr(layer, "apart", True):
                raise AgentGymError(
                    f"{name} packs tasks as they end, and {type(layer).__name__} measures a pack or a batch as a whole: use an objective "
                    "of single tokens or episodes, such as agentgym.trainers.objectives.clipped:ClippedSurrogate"
                )
        if not apart(self.divisor):
            raise AgentGymError(
                f"{name} cannot divide by the size of a batch that is not played yet: set divisor to agentgym.trainers.divisors:Constant"
            )
        if self.updates != 1:
            raise AgentGymError(f"{name} takes one optimiser step for a batch, not {self.updates}: set updates to 1")

    def plugins(self) -> dict[str, Any]:
        found = {"source": self.source, "expander": self.expander, "credit": self.credit, "schedule": self.schedule}
        stateful = (layer for layer in layers(self.objective) if isinstance(layer, Stateful))
        found |= {name: plugin for name, plugin in (("hook", self.hook), ("sync", self.sync)) if isinstance(plugin, Stateful)}
        return {**found, **{f"objective {number}": layer for number, layer in enumerate(stateful)}}

    def save(self, playing: Stateful, folder: Path) -> None:
        """All that a resumed run needs. ``playing``: `agentgym.trainers.playing.Playing`."""
        states = {name: plugin.state_dict() for name, plugin in {**self.plugins(), "playing": playing}.items()}
        states["models"] = {name: model.state_dict() for name, model in self._learnt().items()}
        torch.save({**states, "learner": self.learner.state_dict(), "random": torch.get_rng_state()}, folder / "state.pt")

    def load(self, playing: Stateful, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        for name, plugin in {**self.plugins(), "playing": playing}.items():
            plugin.load_state_dict(state[name])
        for name, model in self._learnt().items():
            model.load_state_dict(state["models"][name])
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["random"])

    def _learnt(self) -> dict[str, Any]:
        return {name: model for name, model in self.models.items() if hasattr(model, "load_state_dict")}
