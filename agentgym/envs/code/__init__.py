"""``agentgym/Code-v0``: write a program, run it, test it and hand it in, in a sandbox."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentgym.action import call
from agentgym.env import AgentEnv
from agentgym.envs.code.expert import Expert, gold_actions
from agentgym.envs.code.grading import SOLUTION, Case, Verdict, grade_calls, grade_check, grade_prints
from agentgym.envs.code.tasks import SIZES, code_tasks
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sandbox import Backend, Execution, Sandbox, SandboxLimits, open_sandbox
from agentgym.tools.sandbox.client import check_names

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.demonstrations import Demonstrations
    from agentgym.envs.rows import Rows

MOST_FILES = 64
LARGEST = 2**20  # bytes of all files
LONGEST_SHOWN = 4000  # characters of what a program printed
MOST_VERDICTS = 2**14
_verdicts: dict[tuple[Sandbox, str], Verdict] = {}  # the oldest first
_sandboxes: dict[tuple[Backend | None, SandboxLimits | None], Sandbox] = {}
_lock = threading.Lock()  # of both


@dataclass(frozen=True, slots=True)
class CodeState:
    files: tuple[tuple[str, bytes], ...] = ()  # the working folder, sorted by path
    handed_in: bool = False
    verdict: Verdict | None = None


class Code(AgentEnv):
    """Write a Python program with the tools ``write``, ``run``, ``test`` and ``submit``. Reward: 1 if all hidden tests pass.

    Without arguments: one to three steps on a number, a text or a list. ``data`` takes JSON-lines files or rows, see
    `agentgym.envs.code.rows`, among them those of HumanEval, MBPP and CodeContests. ``sandbox``: one of your own, or the name of a backend;
    None: the safest that this machine has, with room for the largest limits of the tasks. The working folder is the state, a value;
    programs leave nothing else behind. Hidden tests and reference solutions never enter a process in which the policy's code runs.
    """

    system = "Write the program to solution.py with write, try it with test, hand it in with submit."
    snapshots: Kind = "value"
    blocking = True
    state: CodeState

    def __init__(self, data: Rows | None = None, *, sandbox: Sandbox | Backend | None = None, max_turns: int = 8) -> None:
        super().__init__()
        self.max_turns = max_turns
        self._chosen = sandbox
        self._tasks = None if data is None else _rows(data)
        self._limits = _limits(self._tasks) if self._tasks else None
        self.splits = tuple(SIZES if self._tasks is None else self._tasks)

    @property
    def sandbox(self) -> Sandbox:
        chosen = self._chosen
        return shared_sandbox(chosen, self._limits) if chosen is None or isinstance(chosen, str) else chosen

    def tasks(self, split: str) -> Sequence[Task]:
        return code_tasks(split) if self._tasks is None else self._tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = CodeState()

    @tool
    def write(self, code: str, path: str = SOLUTION) -> str:
        """Write a file, in place of one that is there.

        Args:
            code: the whole text of the file.
            path: where, below the working folder.
        """
        self._keep({**dict(self.state.files), _inside(path): code.encode("utf-8", "replace")})
        return f"Wrote {path}."

    @tool
    def run(self, code: str, stdin: str = "") -> str:
        """Run a Python program in the working folder, and read what it prints. The files that it writes stay.

        Args:
            code: the program. To run a file of the folder, import it.
            stdin: what it can read from standard input.
        """
        done = self.sandbox.run(code, files=dict(self.state.files), stdin=stdin)
        self._keep(done.files)
        return shown(done)

    @tool(effect="read")
    def test(self) -> str:
        """Try solution.py on the examples of the task."""
        verdict = self._examples()
        return f"{verdict.passed} of {verdict.of} examples pass." + (f" {verdict.problem}." if verdict.problem else "")

    @tool(ends=True)
    def submit(self) -> str:
        """Hand in solution.py as it is. This ends the task."""
        self.state = replace(self.state, handed_in=True)
        return "Handed in."

    def score(self) -> float:
        verdict = Verdict(0, 1, "nothing was handed in") if not self.state.handed_in else self._graded(self.task.answer)
        self.state = replace(self.state, verdict=verdict)
        return float(verdict.passes)

    def metrics(self) -> dict[str, float]:
        verdict = self.state.verdict
        return {"handed_in": float(self.state.handed_in), "tests_passed": verdict.passed / verdict.of if verdict else 0.0}

    def gold(self, task: Task) -> list[str] | None:
        if "solution" in (task.answer or {}):
            return [call("write", code=task.answer["solution"]), call("submit")]
        return gold_actions(task) if self._tasks is None else None

    def key(self) -> str:
        """Equal where the working folders of the same task are equal."""
        return state_digest(self.task.id, self.state.files, self.state.handed_in)

    def demonstrations(self, chat: Chat | None, seed: int, mistakes: float) -> Demonstrations:
        """Episodes of an expert that errs with probability ``mistakes`` at each line and each decision, for a warm start."""
        from agentgym.envs.code.told import Told
        from agentgym.envs.demonstrations import Demonstrations

        return Demonstrations(Told, Expert(seed=seed, mistakes=mistakes), chat, seed)

    def _keep(self, files: Mapping[str, bytes]) -> None:
        """Nothing that the sandbox would refuse later, when an episode is judged: that would be no verdict, for the policy's own deed."""
        check_names(files)
        size = sum(map(len, files.values()))
        if len(files) > MOST_FILES or size > LARGEST:
            raise ToolError(
                f"the working folder would hold {len(files)} files of {size:,} bytes, and {MOST_FILES} of {LARGEST:,} are the most: "
                "nothing was changed"
            )
        self.state = replace(self.state, files=tuple(sorted(files.items())))

    def _examples(self) -> Verdict:
        examples = self.task.data.get("examples", ())
        if not examples:
            raise ToolError("this task has no examples: try the program with run")
        return self._graded({"calls" if "entry" in self.task.data else "prints": examples})

    def _graded(self, tests: Mapping[str, Any]) -> Verdict:
        """Equal folders have equal verdicts, in every fork, and most of a group's are equal: each is judged once."""
        key = (self.sandbox, state_digest(tests, self.task.data.get("entry"), self.state.files))
        verdict = _verdicts.get(key) or self._judge(tests)
        with _lock:
            while len(_verdicts) >= MOST_VERDICTS:
                del _verdicts[next(iter(_verdicts))]
            return _verdicts.setdefault(key, verdict)

    def _judge(self, tests: Mapping[str, Any]) -> Verdict:
        solution, entry = dict(self.state.files), self.task.data.get("entry", "")
        if "check" in tests:
            return grade_check(self.sandbox, solution, entry, tests["before"], tests["check"])
        if "calls" in tests:
            return grade_calls(self.sandbox, solution, entry, [Case(*case) for case in tests["calls"]])
        return grade_prints(self.sandbox, solution, [Case(*case) for case in tests["prints"]], tests.get("seconds"))


def shown(done: Execution) -> str:
    """What a policy reads of a program that ran."""
    text = done.stdout + done.stderr
    cut = f"\n… {len(text) - LONGEST_SHOWN} characters are left out" if len(text) > LONGEST_SHOWN else ""
    end = f"\nIt was stopped at the limit of {done.stopped}." if done.stopped else f"\nExit status {done.status}." if done.status else ""
    return (text[:LONGEST_SHOWN].rstrip("\n") + cut + end).strip("\n") or "It printed nothing."


def shared_sandbox(backend: Backend | None = None, limits: SandboxLimits | None = None) -> Sandbox:
    """One for all environments of this process with these limits, however many threads ask at once."""
    with _lock:
        if (backend, limits) not in _sandboxes:
            _sandboxes[backend, limits] = open_sandbox(backend, limits) if limits else open_sandbox(backend)
        return _sandboxes[backend, limits]


def _limits(tasks: Mapping[str, Sequence[Task]]) -> SandboxLimits | None:
    """What the largest of the tasks that have limits of their own needs, and a second more; twice that on the clock, for busy machines."""
    usual = SandboxLimits()
    answers = [task.answer for split in tasks.values() for task in split if "seconds" in task.answer or "memory" in task.answer]
    seconds = max([usual.wall, *(1.0 + answer.get("seconds", 0.0) for answer in answers)])
    memory = max([usual.memory, *(answer.get("memory", 0) for answer in answers)])
    return replace(usual, wall=2 * seconds, cpu=seconds, memory=memory) if answers else None


@cache
def _tables(path: Path) -> dict[str, list[Task]]:
    from agentgym.envs.code.rows import read_rows

    return read_rows(path)


def _rows(data: Rows) -> dict[str, list[Task]]:
    from agentgym.envs.code.rows import read_rows

    return _tables(Path(data)) if isinstance(data, str | Path) else read_rows(data)


def _inside(path: str) -> str:
    parts = Path(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts or "\0" in path:
        raise ToolError(f"{path!r} is not a path below the working folder: write a relative one, such as {SOLUTION}")
    return "/".join(parts)
