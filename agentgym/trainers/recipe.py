"""A training run from a YAML file: the same plain objects as in a script, each named by its class path and arguments."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentgym.errors import AgentGymError


class Plugin(BaseModel):
    """``class: module:Name`` and the keyword arguments of its constructor."""

    model_config = ConfigDict(extra="allow")
    path: str = Field(alias="class")

    def build(self, **more: Any) -> Any:
        module, _, name = self.path.partition(":")
        try:
            target = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise AgentGymError(f"class {self.path!r} cannot be loaded: {error}. Write it as module:Name") from error
        try:
            return target(**{**(self.model_extra or {}), **more})
        except TypeError as error:
            raise AgentGymError(f"class {self.path!r}: {error}") from error


def _plugin(path: str, **arguments: Any) -> Plugin:
    return Plugin.model_validate({"class": path, **arguments})


class Environment(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str
    split: str = "train"
    arguments: dict[str, Any] = {}


class LimitsOf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tokens: int = Field(default=448, ge=32)
    turn_tokens: int = Field(default=72, ge=1)
    seconds: float | None = Field(default=None, gt=0)


class Recipe(BaseModel):
    """What ``agentgym train`` reads. Every field but ``env`` and ``steps`` has a default that trains the tiny policy."""

    model_config = ConfigDict(extra="forbid")
    env: Environment
    steps: int = Field(ge=1)
    policy: str = "tiny"
    expander: Plugin = _plugin("agentgym.expand:Groups", size=8)
    credit: Plugin = _plugin("agentgym.trainers.credit.grpo:GRPO")
    objective: Plugin = _plugin("agentgym.trainers.objectives.clipped:ClippedSurrogate")
    source: Plugin = _plugin("agentgym.trainers.sources.uniform:Uniform")
    schedule: Plugin = _plugin("agentgym.trainers.schedules.synchronous:Synchronous")
    limits: LimitsOf = LimitsOf()
    learning_rate: float = Field(default=4e-4, gt=0)
    batch: int = Field(default=8, ge=1)
    updates: int = Field(default=2, ge=1)
    seed: int = 0
    checkpoint_every: int = Field(default=5, ge=1)


def read_recipe(path: Path) -> Recipe:
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise AgentGymError(f"recipe {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise AgentGymError(f"recipe {path} is not YAML: {error}") from error
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {_reason(e)}" for e in error.errors())
        raise AgentGymError(f"recipe {path}: {reasons}") from None


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such field; fields: {', '.join(Recipe.model_fields)}"
    return f"{problem['msg']} (it is {problem['input']!r})" if problem["type"] != "missing" else "it is required"
