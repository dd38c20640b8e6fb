"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.policy import Actor, Prompt
from agentgym.registry import unknown
from agentgym.turn import path

NAMES = ("tiny", "gold")


def find_policy(name: str, make_env: Callable[[], AgentEnv]) -> tuple[Actor, Chat | None]:
    """``tiny`` is the shipped one; ``gold`` plays the environment's own solutions; else a folder or ``owner/model``."""
    if name == "gold":
        return _gold(make_env()), None
    if name == "tiny" or ((Path(name) / "tokenizer.json").is_file() and not (Path(name) / "tokenizer_config.json").is_file()):
        from agentgym.policies import tiny
        from agentgym.policies.transformers import TransformersPolicy

        model, chat = tiny.load(tiny.SHIPPED if name == "tiny" else name)
        return TransformersPolicy(model, chat, slots=256), chat
    if not Path(name).exists() and len(Path(name).parts) > 1 and Path(name).parent.is_dir():
        raise AgentGymError(f"there is no folder {name} to load a policy from: make one with 'agentgym warmstart' or 'agentgym train'")
    if Path(name).is_dir() or name.count("/") == 1:
        return _hub(name)
    raise AgentGymError(unknown("policy", name, [*NAMES, "a folder", "owner/model"]))


def _hub(name: str) -> tuple[Actor, Chat]:
    from agentgym.policies.transformers import TransformersPolicy

    try:
        policy = TransformersPolicy.load(name)
    except (OSError, ValueError) as error:
        raise AgentGymError(f"policy {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return policy, policy.chat


def _gold(env: AgentEnv) -> Actor:
    from agentgym.policies.scripted import Scripted

    def act(prompt: Prompt) -> str:
        actions: Any = env.gold(prompt.tree.task)
        if actions is None:
            raise AgentGymError(f"{type(env).__name__} knows no gold actions for task {prompt.tree.task.id}")
        return str(actions[sum(turn.author != "env" for turn in path(prompt.turn))])

    return Scripted(act)
