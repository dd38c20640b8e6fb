"""Every backend keeps every promise of a sandbox."""

from __future__ import annotations

import pytest
from sandboxes import BACKENDS, sandbox_of

from agentgym.tools.sandbox.conformance import PROMISES, check


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("promise", PROMISES)
def test_a_backend_keeps_a_promise(backend, promise):
    assert check(sandbox_of(backend), promise).problem == ""
