"""Whether files pass a unittest suite, and what the suite prints about them, in a sandbox that sees the tests only then."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentgym.envs.polyglot.decoys import Suite, with_decoys
from agentgym.seeds import Lineage
from agentgym.snapshot import state_digest
from agentgym.tools.sandbox import Sandbox

ANSWER, REPORT = ".outcomes", ".report"
_VARYING = re.compile(r"(?<=\d tests) in [\d.]+s|(?<=\d test) in [\d.]+s|(?<=0x)[0-9a-f]{6,}")  # times and addresses
MOST_LINES, LONGEST = 50, 6000  # of what the policy reads of a failed run
Texts = Mapping[str, str]

# Of this process alone, so that no program can know which of two tests is the true one. No verdict of a right program depends on it.
_SECRET = secrets.randbits(256)

# The tests are in this text alone and never in a file. Which of them are to pass is nowhere here.
_JUDGES = """
import json, sys, types, unittest
sys.path.insert(0, "")
def _passes(module, owner, name):
    result = unittest.TestResult()
    unittest.TestSuite([getattr(module, owner)(name)]).run(result)
    return None if result.skipped and result.wasSuccessful() else result.testsRun == 1 and result.wasSuccessful()
def _main():
    module = sys.modules["tests"] = types.ModuleType("tests")
    exec(compile({source!r}, "tests.py", "exec"), vars(module))
    found = [_passes(module, owner, name) for owner, name in {cases!r}]
    with open({answer!r}, "w") as file:
        json.dump(found, file)
_main()
"""
_SHOWS = """
import linecache, sys, traceback, types, unittest
sys.path.insert(0, "")
def _main(report):
    name, source = {name!r}, {source!r}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module = sys.modules["tests"] = types.ModuleType("tests")
    try:
        exec(compile(source, name, "exec"), vars(module))
        unittest.TextTestRunner(stream=report).run(unittest.defaultTestLoader.loadTestsFromModule(module))
    except BaseException:
        traceback.print_exc(file=report)
with open({report!r}, "w", buffering=1) as report:
    _main(report)
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
    digest = state_digest(sorted(files.items()))
    suites = [with_decoys(text, Lineage.of(_SECRET, "polyglot", task, name, digest).rng()) for name, text in tests.items()]
    verdicts = [_judged(sandbox, files, suite) for suite in suites]
    passed, of = (sum(getattr(verdict, what) for verdict in verdicts) for what in ("passed", "of"))
    return Verdict(passed, of, all(verdict.sound for verdict in verdicts))


def shown(sandbox: Sandbox, files: Mapping[str, bytes], tests: Texts) -> str:
    """What unittest reports, cut to its first lines: for the policy to read, it counts for nothing. What the program prints is left out."""
    texts = []
    for name, source in tests.items():
        done = sandbox.run(_SHOWS.format(name=PurePosixPath(name).name, source=source, report=REPORT), files=files)
        end = f"\nIt was stopped at the limit of {done.stopped}." if done.stopped else ""
        texts.append(done.files.get(REPORT, b"").decode("utf-8", "replace").strip("\n") + end)
    return "\n".join(_VARYING.sub("", "\n".join(texts)).splitlines()[:MOST_LINES])[:LONGEST]


def _judged(sandbox: Sandbox, files: Mapping[str, bytes], suite: Suite) -> Verdict:
    done = sandbox.run(_JUDGES.format(source=suite.source, cases=suite.cases, answer=ANSWER), files=files)
    of = len(suite.pairs)
    try:
        found = json.loads(done.files[ANSWER])
    except (KeyError, ValueError, RecursionError):
        return Verdict(0, of)
    if not isinstance(found, list) or len(found) != len(suite.cases) or not all(one is None or isinstance(one, bool) for one in found):
        return Verdict(0, of)
    passed = [pair for pair in suite.pairs if found[pair.test] or (found[pair.test] is None and pair.may_skip)]
    return Verdict(len(passed), of, not any(pair.twin is not None and found[pair.twin] for pair in passed))
