"""What an agent is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """One task of one environment: what the agent reads, and what only the grader may read.

    ``answer`` (and ``data``, where the environment says so) must never be reachable from the tools: `check_env` plants
    a canary there and looks for it in all that the agent can see.
    """

    id: str
    prompt: str
    answer: Any = None
    split: str = "train"
    data: Mapping[str, Any] = field(default_factory=dict)
