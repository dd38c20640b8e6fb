"""Policies by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.policies import tiny
from agentgym.policy import Actor, Prompt
from agentgym.registry import unknown
from agentgym.turn import path

NAMES = ("tiny", "gold")
VLLM = "vllm+"  # before the address of a server of 'agentgym serve-policy', which is asked token for token


def find_policy(
    name: str, make_env: Callable[[], AgentEnv], model: str | None = None, key: str | None = None
) -> tuple[Actor, Chat | None]:
    """``tiny`` is the shipped one; ``gold`` plays the environment's solutions; else a folder, ``owner/model``, or a server's address.

    ``model`` and ``key`` are for a server: the model's name there, and the environment variable that holds the key. After `VLLM`, ``model``
    is the name or folder of the model that is served, for its tokenizer.
    """
    if name.startswith(VLLM):
        if key is not None:
            raise AgentGymError("a server of 'agentgym serve-policy' asks for no key: leave --key out, and keep its port to this machine")
        return _tokens_served(name.removeprefix(VLLM), model or "tiny")
    if is_address(name):
        return _served(name, model, key), None
    if model is not None or key is not None:
        raise AgentGymError(f"--model and --key belong to a policy on a server, and {name!r} is no address")
    if name == "gold":
        return _gold(make_env()), None
    if folder := tiny.folder_of(name):
        from agentgym.policies.transformers import TransformersPolicy

        model, chat = tiny.load(folder)
        return TransformersPolicy(model, chat, slots=256), chat
    if not Path(name).exists() and len(Path(name).parts) > 1 and Path(name).parent.is_dir():
        raise AgentGymError(f"there is no folder {name} to load a policy from: make one with 'agentgym warmstart' or 'agentgym train'")
    if Path(name).is_dir() or name.count("/") == 1:
        return _hub(name)
    raise AgentGymError(unknown("policy", name, [*NAMES, "a folder", "owner/model"]))


def is_address(policy: str) -> bool:
    return policy.startswith(("http://", "https://"))


def refuse_without_tools(actor: Actor, chat: Chat | None, offered: Callable[[], list[dict[str, Any]]]) -> None:
    """Raises `AgentGymError` where the policy cannot be told of the tools that it needs. ``offered`` begins an episode to know them."""
    from agentgym.policies.endpoint import Endpoint

    if isinstance(actor, Endpoint) and offered():
        asyncio.run(actor.refuse_without_tools())
    if chat is None or _knows_its_tools(chat) or not (tools := offered()):
        return
    hello: list[Any] = [{"role": "user", "content": "Hello."}]
    if chat.open(hello, tools) == chat.open(hello, []):
        raise AgentGymError("the policy's chat format has no place for tools, which this environment has: choose a model that calls tools")


def _knows_its_tools(chat: Chat) -> bool:
    """The tiny policy is told of no tools: it knows those that it was warm-started with."""
    return isinstance(chat.tokenizer, tiny.TinyTokenizer)


def _tokens_served(url: str, model: str) -> tuple[Actor, Chat]:
    from agentgym.policies.vllm.client import VllmPolicy, chat_of

    chat = chat_of(model)
    return VllmPolicy(url, chat), chat


def _served(url: str, model: str | None, key: str | None) -> Actor:
    from agentgym.policies.endpoint import Endpoint

    if model is None:
        raise AgentGymError(f"{url} is a server: name its model with --model")
    return Endpoint(url, model, key)


def _hub(name: str) -> tuple[Actor, Chat]:
    from agentgym.policies.transformers import TransformersPolicy

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what goes wrong is said below, in one sentence
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
        played = sum(turn.author != "env" for turn in path(prompt.turn))
        if played >= len(actions):
            raise AgentGymError(f"task {prompt.tree.task.id} goes on after its {len(actions)} gold actions")
        return str(actions[played])

    return Scripted(act)
