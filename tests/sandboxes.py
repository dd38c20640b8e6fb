"""Sandboxes for tests: one of each backend that is there, and a visible skip, or a failure where it is required, for each that is not."""

from __future__ import annotations

import os
from functools import cache

import pytest

from agentgym.errors import AgentGymError
from agentgym.tools.sandbox import Sandbox, SandboxLimits, open_sandbox

BACKENDS = ("bubblewrap", "docker", "subprocess")
REQUIRED = os.environ.get("AGENTGYM_REQUIRE", "").split(",")
SMALL = SandboxLimits(wall=1.0, cpu=0.8, memory=64, processes=12, output=4096, disk=4)


@cache
def shared(backend: str) -> Sandbox | str:
    """Or why there is none. One for all tests, which is itself a test: each call leaves it as it was."""
    try:
        return open_sandbox(backend, SMALL)  # type: ignore[arg-type]
    except AgentGymError as error:
        return str(error)


def sandbox_of(backend: str) -> Sandbox:
    found = shared(backend)
    if isinstance(found, str):
        if backend in REQUIRED:
            pytest.fail(f"{backend} is required here: {found}")
        pytest.skip(found)
    return found
