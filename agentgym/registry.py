"""Environments by name, in Gymnasium's own registry. Packages join by the entry-point group ``agentgym.envs``."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, TypeVar

import gymnasium
import orjson
from gymnasium.envs.registration import load_env_creator

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError

EnvClass = TypeVar("EnvClass", bound=type[AgentEnv])
GROUP = "agentgym.envs"


def register(id: str, **kwargs: Any) -> Callable[[EnvClass], EnvClass]:
    """Register an environment class: ``@agentgym.register("mine/Orders-v0")``. ``kwargs`` go to its constructor."""

    def decorate(cls: EnvClass) -> EnvClass:
        path = f"{cls.__module__}:{cls.__qualname__}"
        local = "<locals>" in path or cls.__module__ == "__main__"  # Gymnasium could not import these by their path
        entry_point: Any = cls if local else path
        gymnasium.register(id, entry_point=entry_point, kwargs=kwargs)
        return cls

    return decorate


def register_entry_points() -> None:
    """Register what installed packages declare under ``agentgym.envs``, without importing them.

    ``[project.entry-points."agentgym.envs"]`` holds ``"mine/Orders-v0" = "my_package.orders:Orders"``.
    """
    for point in entry_points(group=GROUP):
        if point.name in gymnasium.registry:
            continue
        try:
            gymnasium.register(point.name, entry_point=point.value)
        except gymnasium.error.Error as error:  # another package's mistake must not stop the import of this one
            warnings.warn(f"environment {point.name!r} of {point.value} is not registered: {error}", stacklevel=2)


def make(id: str, **kwargs: Any) -> AgentEnv:
    """The environment of that name, or of ``module:Class``, without Gymnasium's wrappers."""
    if id not in gymnasium.registry and ":" in id:
        create = _load(id)
        _check_arguments(id, create, kwargs)
        env: Any = create(**kwargs)
    elif id not in gymnasium.registry:
        raise AgentGymError(unknown("environment", id, sorted(ours())))
    else:
        try:
            entry_point: Any = gymnasium.spec(id).entry_point
            create = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
            _check_arguments(id, create, kwargs)
            env = gymnasium.make(id, disable_env_checker=True, **kwargs).unwrapped
        except (ImportError, AttributeError) as error:
            raise AgentGymError(f"environment {id!r} cannot be made: {error}") from error
    if not isinstance(env, AgentEnv):
        raise AgentGymError(f"{id!r} is a {type(env).__name__}, not an agentgym.AgentEnv")
    return env


def _check_arguments(id: str, create: Any, kwargs: Mapping[str, Any]) -> None:
    if isinstance(create, type) and issubclass(create, AgentEnv):
        try:
            signature(create).bind_partial(**kwargs)
        except TypeError as error:
            raise AgentGymError(f"environment {id!r} cannot be made: {error}") from None


def typed_settings(pairs: Iterable[str], taken: Container[str]) -> dict[str, Any]:
    """Arguments of an environment that were typed as ``NAME=VALUE``; a value is JSON or text. ``taken``: names given otherwise."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or name in taken:
            raise AgentGymError(f"--set {pair}: write --set NAME=VALUE, with an argument of the environment that is no option here")
        try:
            found[name] = orjson.loads(value)
        except ValueError:
            found[name] = value
    return found


def ours() -> list[str]:
    """The ids whose environment is an `AgentEnv` by its entry point, rather than one of Gymnasium's own."""
    return [id for id, spec in gymnasium.registry.items() if not str(spec.entry_point).startswith("gymnasium.")]


def unknown(kind: str, name: str, known: list[str]) -> str:
    """One sentence with the nearest names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    return f"no {kind} named {name!r}; did you mean {' or '.join(map(repr, near))}?"


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise AgentGymError(f"{path!r} cannot be loaded: {error}. Write it as module:Class") from error
    return value
