"""What can go wrong, by whose fault. The rollout engine turns each into a typed outcome; none becomes a reward of 0."""

from __future__ import annotations


class AgentGymError(Exception):
    """Bad input or a broken promise: says what happened, where, and what to do."""

    blames = "environment"  # where it leaves an episode without a verdict


class ToolError(AgentGymError):
    """A tool refuses a well-formed call. The policy reads the message and the episode goes on."""


class JudgeError(AgentGymError):
    """A grader failed to grade. The episode has no reward; it is counted, never averaged."""

    blames = "judge"


class InfrastructureError(AgentGymError):
    """A machine, network or service failed, not the policy. The episode has no reward; it is counted, never averaged."""


class SnapshotMismatch(AgentGymError):
    """A restored environment is not in the state that was saved."""


class MissingExtra(AgentGymError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs {module!r}, which is not installed: pip install 'agentgym[{extra}]'")
