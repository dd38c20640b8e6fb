"""A training run from a YAML file: the same plain objects as in a script, each named by its class path and arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentgym.errors import AgentGymError
from agentgym.rollout import Limits

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.env import AgentEnv
    from agentgym.policy import Actor
    from agentgym.trainers.divisors import Divisor
    from agentgym.trainers.learner import TorchLearner
    from agentgym.trainers.processes import Together
    from agentgym.trainers.seams import Sync
    from agentgym.trainers.training import Training

Model = TypeVar("Model", bound=BaseModel)
FindPolicy = Callable[[str], tuple[Any, Any]]  # a name to an actor and its chat format


class Plugin(BaseModel):
    """``class: module:Name`` and the keyword arguments of its constructor, some of which may be such classes themselves."""

    model_config = ConfigDict(extra="allow")
    path: str = Field(alias="class")

    def build(self, **more: Any) -> Any:
        target = load(self.path)
        try:
            return target(**{**{name: _built(value) for name, value in (self.model_extra or {}).items()}, **more})
        except TypeError as error:
            raise AgentGymError(f"class {self.path!r}: {error}") from error


def load(path: str) -> Any:
    """What ``module:Name`` names."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise AgentGymError(f"class {path!r} cannot be loaded: {error}. Write it as module:Name") from error


def _built(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_built(item) for item in argument]
    if isinstance(argument, dict) and "class" not in argument:
        return {name: _built(value) for name, value in argument.items()}
    return Plugin.model_validate(argument).build() if isinstance(argument, dict) else argument


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


class LoraOf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)


class LearnerOf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    precision: Literal["float32", "bf16"] = "float32"  # of the products; what trains is float32
    checkpointing: bool = False
    lora: LoraOf | None = None
    sharded: bool = False  # over the processes that torchrun started

    def accelerator(self) -> Any:
        """Raises `AgentGymError` where another precision was chosen in this process before, which is for good."""
        import torch
        from accelerate import Accelerator

        try:
            return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if self.precision == "bf16" else "no")
        except ValueError as error:
            raise AgentGymError(f"learner.precision {self.precision} cannot be had: {str(error).splitlines()[0]}") from error

    def build(self, model: Any, rate: float) -> TorchLearner | Together:
        """A learner of ``model``, together with those of all processes that torchrun started."""
        from agentgym.trainers.learner import TorchLearner, warm_up
        from agentgym.trainers.processes import Together, shard

        accelerator = self.accelerator()
        if self.sharded and accelerator.num_processes == 1:
            raise AgentGymError("learner.sharded: there is one process to hold all shards: start several with torchrun")
        if self.sharded:
            shard(model, accelerator.device.type)
        learner = TorchLearner(model, warm_up(rate), checkpointing=self.checkpointing, accelerator=accelerator)
        return Together(learner) if accelerator.num_processes > 1 else learner


class WorkersOf(BaseModel):
    """What ``--ray`` asks of a cluster: so many actors that hold environments, of so many CPUs each."""

    model_config = ConfigDict(extra="forbid")
    number: int | None = Field(default=None, ge=1)  # None: as many as have room
    cpus: float = Field(default=1.0, ge=0.0001, allow_inf_nan=False)


class ServersOf(BaseModel):
    """What ``--ray`` starts on a cluster: so many servers of the policy, of so many CPUs and GPUs each."""

    model_config = ConfigDict(extra="forbid")
    number: int | None = Field(default=None, ge=1)  # None: as many as have room
    cpus: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lora: int | None = Field(default=None, ge=1)  # the largest rank of adapters that there is room for
    flags: list[str] = []  # of vLLM, which overrule ours


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
    actor: Plugin | None = None  # what plays in place of the policy itself, such as a server; made around its chat format
    sync: Plugin = _plugin("agentgym.policies.sync:SharedWeights")  # made around the actor, and the policy's weights beside another actor
    packing: Plugin = _plugin("agentgym.trainers.packing:ByTree", max_tokens=4096)
    models: dict[str, str | Plugin] = {}  # teachers and other models beside the policy's own: a policy, or a class
    hook: Plugin | None = None
    trackers: list[Plugin] = Field(default=[], exclude=True)  # beside TensorBoard; who looks on changes no run
    divisor: str | Plugin = "agentgym.trainers.divisors:token_mean"  # a function, or what makes one
    limits: LimitsOf = LimitsOf()
    learner: LearnerOf = LearnerOf()
    workers: WorkersOf = Field(default=WorkersOf(), exclude=True)  # no part of what is trained: a run may go on with others
    servers: ServersOf | None = Field(default=None, exclude=True)
    learning_rate: float = Field(default=4e-4, gt=0)
    batch: int = Field(default=8, ge=1)
    updates: int = Field(default=2, ge=1)
    seed: int = 0
    checkpoint_every: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _an_actor_gets_weights(self) -> Recipe:
        if self.actor is not None and "sync" not in self.model_fields_set:
            raise ValueError(f"actor {self.actor.path} needs a sync that brings it weights, such as the one in docs/serving.md")
        if self.servers is not None and self.actor is None:
            raise ValueError("servers are for an actor that asks them: set actor to agentgym.policies.vllm:VllmPolicy")
        if self.servers is not None and self.actor is not None and "urls" in (self.actor.model_extra or {}):
            raise ValueError("actor has urls, and servers are to be started for it: leave one of the two out")
        return self

    def training(
        self, make_env: Callable[[], AgentEnv], actor: Actor, model: Any, chat: Chat, sync: Sync, find_policy: FindPolicy
    ) -> Training:
        """The objects that the recipe names, as a script would make them, around an actor and its model's weights."""
        from agentgym.trainers.learner import Frozen
        from agentgym.trainers.seams import asked
        from agentgym.trainers.teacher import teacher
        from agentgym.trainers.training import Training

        self.learner.accelerator()  # before any other, which would choose the precision
        with closing(make_env()) as env:
            tasks = env.tasks(self.env.split)
        if not tasks:
            raise AgentGymError(f"env.split: {self.env.id} has no split {self.env.split!r}; splits: {', '.join(env.splits)}")
        objective, credit, expander = self.objective.build(), self.credit.build(), self.expander.build()
        source = self.source.build(tasks=tasks, seed=self.seed)
        needed = {**({"reference": Frozen} if "reference" in objective.needs else {}), **asked(source, expander, credit)}
        rows = model.config.get_text_config().vocab_size
        models = {
            name: found.build() if isinstance(found, Plugin) else teacher(*find_policy(found), chat, rows)
            for name, found in self.models.items()
        }
        return Training(
            make_env=make_env,
            actor=actor,
            chat=chat,
            source=source,
            expander=expander,
            credit=credit,
            objective=objective,
            schedule=self.schedule.build(),
            packing=self.packing.build(),
            divisor=self.build_divisor(),
            models={**{name: make(model) for name, make in needed.items() if name not in models}, **models},
            hook=None if self.hook is None else self.hook.build(),
            learner=self.learner.build(model, self.learning_rate),
            sync=sync,
            limits=Limits(**self.limits.model_dump()),
            batch=self.batch,
            updates=self.updates,
            seed=self.seed,
        )

    def build_divisor(self) -> Divisor:
        found: Divisor = load(self.divisor) if isinstance(self.divisor, str) else self.divisor.build()
        return found


def read_recipe(path: Path) -> Recipe:
    return validated(Recipe, read_yaml(path, "recipe"), f"recipe {path}")


def read_yaml(path: Path, kind: str) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise AgentGymError(f"{kind} {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise AgentGymError(f"{kind} {path} is not YAML: {error}") from error


def validated(model: type[Model], value: Any, what: str) -> Model:
    """``value`` as ``model``. Raises `AgentGymError` with one sentence that names each wrong field of ``what``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {_reason(model, e)}" for e in error.errors())
        raise AgentGymError(f"{what}: {reasons}") from None


def _reason(model: type[BaseModel], problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such field; fields: {', '.join(_fields(model, problem['loc'][:-1]))}"
    if problem["type"] == "value_error":  # said by a validator of ours
        return str(problem["ctx"]["error"])
    return f"{problem['msg']} (it is {problem['input']!r})" if problem["type"] != "missing" else "it is required"


def _fields(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The names that the part at ``place`` of a model knows."""
    for name in place:
        inner = model.model_fields[name].annotation if isinstance(name, str) else model
        model = next(kind for kind in (*get_args(inner), inner) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
