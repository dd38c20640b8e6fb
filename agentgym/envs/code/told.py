"""Code for demonstrations: what the expert writes is made of known lines, so its verdicts are computed and nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.envs.code import Code
from agentgym.envs.code.grading import SOLUTION, Case, Verdict, verdict_of
from agentgym.envs.code.tasks import computed


class Told(Code):
    """A warm start plays tens of thousands of episodes, each with three calls of a sandbox otherwise."""

    blocking = False

    def _graded(self, tests: Mapping[str, Any]) -> Verdict:
        program = dict(self.state.files)[SOLUTION].decode()
        kind = self.task.id.partition(":")[0]
        cases = [Case(*case) for case in tests["calls"]]
        return verdict_of("f", cases, [("gave", computed(program, kind, *case.given)) for case in cases])
