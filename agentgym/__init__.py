"""agentgym: the gym in which agents are trained, compared and evaluated.

Importing it registers the installed environments with Gymnasium and loads nothing heavy; names load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentgym.action import Action, Call, call, format_action, parse_action
from agentgym.env import AgentEnv, Reply
from agentgym.errors import AgentGymError, InfrastructureError, JudgeError, SnapshotMismatch, ToolError
from agentgym.outcome import Outcome
from agentgym.policy import Actor, Generation, Prompt, Sampling, Scorer
from agentgym.registry import make, register, register_entry_points
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.tool import Tool, tool
from agentgym.turn import Turn, TurnTree

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.check import check_env
    from agentgym.envs.functions import FunctionEnv, register_functions
    from agentgym.evaluation import evaluate
    from agentgym.rollout import Limits, Rollout, Start

_LATER = {
    "Chat": "chat",
    "check_env": "envs.check",
    "evaluate": "evaluation",
    "FunctionEnv": "envs.functions",
    "register_functions": "envs.functions",
    "Limits": "rollout",
    "Rollout": "rollout",
    "Start": "rollout",
}

__all__ = [
    "Action",
    "Actor",
    "AgentEnv",
    "AgentGymError",
    "Call",
    "Chat",
    "FunctionEnv",
    "Generation",
    "InfrastructureError",
    "JudgeError",
    "Limits",
    "Lineage",
    "Outcome",
    "Prompt",
    "Reply",
    "Rollout",
    "Sampling",
    "Scorer",
    "SnapshotMismatch",
    "Start",
    "Task",
    "Tool",
    "ToolError",
    "Turn",
    "TurnTree",
    "call",
    "check_env",
    "evaluate",
    "format_action",
    "make",
    "parse_action",
    "register",
    "register_functions",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'agentgym' has no attribute {name!r}")
    return getattr(import_module(f"agentgym.{_LATER[name]}"), name)


register_entry_points()
