"""Whether files pass a unittest suite, and what the suite prints about them, in a sandbox that sees the tests only then."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentgym.envs.polyglot.decoys import Suite, with_decoys
from agentgym.seeds import Lineage
from agentgym.snapshot import state_digest
from agentgym.tools.sandbox import Sandbox

ANSWER = ".outcomes"
_VARYING = re.compile(r"(?<=\d tests) in [\d.]+s|(?<=\d test) in [\d.]+s|(?<=0x)[0-9a-f]{6,}")  # times and addresses
MOST_LINES, LONGEST = 50, 6000  # of what the policy reads of a failed run
Texts = Mapping[str, str]

# The tests are in this text alone and never in a file. Which of them are to pass is nowhere here.
_JUDGES = """
import json, sys, types, unittest
sys.path.insert(0, "")
def _passes(module, owner, name):
    result = unittest.TestResult()
    unittest.TestSuite([getattr(module, owner)(name)]).run(result)
    return result.testsRun == 1 and result.wasSuccessful()
def _main():
    module = sys.modules["tests"] = types.ModuleType("tests")
    exec(compile({source!r}, "tests.py", "exec"), vars(module))
    found = [_passes(module, owner, name) for owner, name in {cases!r}]
    with open({answer!r}, "w") as file:
        json.dump(found, file)
_main()
"""
_SHOWS = """
import linecache, sys, types, unittest
sys.path.insert(0, "")
def _main():
    name, source = {name!r}, {source!r}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module = sys.modules["tests"] = types.ModuleType("tests")
    exec(compile(source, name, "exec"), vars(module))
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    unittest.TextTestRunner(stream=sys.stdout).run(suite)
_main()
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``passed``: of the tests of the suite, not counting twins. ``sound``: whether no test passed together with its twin."""

    passed: int
    of: int
    sound: bool = True

    @property
    def passes(self) -> bool:
        return self.sound and self.passed == self.of


def grade(sandbox: Sandbox, files: Mapping[str, bytes], tests: Texts, task: str) -> Verdict:
    """All suites of an exercise, each in a process of its own. Raises `AgentGymError` for what is no suite."""
    verdicts = [_judged(sandbox, files, with_decoys(text, _lineage(task, name, files).rng())) for name, text in tests.items()]
    passed, of = (sum(getattr(verdict, what) for verdict in verdicts) for what in ("passed", "of"))
    return Verdict(passed, of, all(verdict.sound for verdict in verdicts))


def shown(sandbox: Sandbox, files: Mapping[str, bytes], tests: Texts) -> str:
    """What the suites print, cut to its first lines: for the policy to read, it counts for nothing."""
    texts = []
    for name, source in tests.items():
        done = sandbox.run(_SHOWS.format(name=PurePosixPath(name).name, source=source), files=files)
        end = f"\nIt was stopped at the limit of {done.stopped}." if done.stopped else ""
        texts.append((done.stdout + done.stderr).strip("\n") + end)
    return "\n".join(_VARYING.sub("", "\n".join(texts)).splitlines()[:MOST_LINES])[:LONGEST]


def _lineage(task: str, name: str, files: Mapping[str, bytes]) -> Lineage:
    return Lineage.of(0, "polyglot", task, name, state_digest(sorted(files.items())))


def _judged(sandbox: Sandbox, files: Mapping[str, bytes], suite: Suite) -> Verdict:
    done = sandbox.run(_JUDGES.format(source=suite.source, cases=suite.cases, answer=ANSWER), files=files)
    of = len(suite.tests)
    try:
        found = json.loads(done.files[ANSWER])
    except (KeyError, ValueError, RecursionError):
        return Verdict(0, of)
    if not isinstance(found, list) or len(found) != len(suite.cases) or not all(isinstance(one, bool) for one in found):
        return Verdict(0, of)
    passed = [twin for test, twin in suite.tests if found[test]]
    return Verdict(len(passed), of, not any(twin is not None and found[twin] for twin in passed))
