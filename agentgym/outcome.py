"""How a turn went: by whose fault it failed, if it did."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    OK = "ok"
    MODEL_ERROR = "model_error"  # the policy wrote something malformed; it reads what was wrong and goes on
    TOOL_ERROR = "tool_error"  # a tool refused a well-formed call; the policy reads why and goes on
    TIMEOUT = "timeout"
    INFRASTRUCTURE = "infrastructure"
    JUDGE = "judge"
    CANCELLED = "cancelled"

    @property
    def blames_policy(self) -> bool:
        """False: the turn says nothing about the policy, so its episode has no reward and trains nothing."""
        return self in (Outcome.OK, Outcome.MODEL_ERROR, Outcome.TOOL_ERROR)
