"""``agentgym/Polyglot-v0``: complete the files of an exercise, hand them in, and once more with what the tests said."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from agentgym.action import call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.polyglot.grading import Verdict, grade, shown
from agentgym.envs.polyglot.own import ROWS
from agentgym.envs.polyglot.rows import read_rows
from agentgym.envs.rows import Rows
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sandbox import Sandbox, SandboxLimits, open_sandbox
from agentgym.tools.sandbox.client import check_names

LIMITS = SandboxLimits(wall=60.0, cpu=60.0, memory=512)  # for a whole suite of tests
MOST_FILES, LARGEST = 32, 2**20  # and bytes of them
TRIES = 2  # of the official metric
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class PolyglotState:
    files: tuple[tuple[str, bytes], ...]  # sorted by path
    verdicts: tuple[Verdict, ...] = ()  # of what was handed in


class Polyglot(AgentEnv):
    """Complete files with ``read``, ``write``, ``edit`` and ``submit``. Reward: 1 if all hidden tests pass at the first or second try.

    Without arguments: three exercises of our own. ``data``: JSON lines or rows with ``id``, ``instructions``, ``solution_files``,
    ``test_files`` (unittest) and perhaps ``editor_files`` and ``example``, such as the Python part of Aider's polyglot benchmark.
    The tests enter a sandbox only when they judge, and no program of the policy runs before; docs/environments/polyglot.md says more.
    Metrics: ``pass_rate_1``, ``pass_rate_2``, and ``sound``, 0 where a program passed what no right one can.
    """

    system = "Complete the files with write or edit, and hand them in with submit. If tests fail, read what they say and submit once more."
    max_turns = 12
    snapshots: Kind = "value"
    blocking = True
    state: PolyglotState

    def __init__(self, data: Rows | None = None, *, sandbox: Sandbox | None = None) -> None:
        super().__init__()
        self._chosen = sandbox
        self._tasks = read_rows(ROWS) if data is None else _tables(Path(data)) if isinstance(data, str | Path) else read_rows(data)
        self.splits = tuple(self._tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = PolyglotState(_sorted({path: text.encode() for path, text in task.data["files"].items()}))

    @tool(effect="read")
    def read(self, path: str) -> str:
        """Read a file.

        Args:
            path: one of the files of the exercise, or one that you wrote.
        """
        return self._text(path)

    @tool
    def write(self, path: str, text: str) -> str:
        """Write a file, in place of one that is there.

        Args:
            path: where, below the working folder.
            text: the whole of it.
        """
        return self._keep(path, text)

    @tool
    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a passage of a file.

        Args:
            path: the file.
            old: the passage, which must occur once.
            new: what comes in its place.
        """
        text = self._text(path)
        if not old or text.count(old) != 1:
            raise ToolError(f"the passage occurs {text.count(old) if old else 0} times in {path}: give one that occurs once")
        return self._keep(path, text.replace(old, new))

    @tool
    def submit(self) -> Reply:
        """Hand in the files as they are. If tests fail, you read what they print and may hand in once more."""
        tests, files = self.task.answer["tests"], dict(self.state.files)
        verdict = grade(self._sandbox, files, tests, self.task.id)
        self.state = replace(self.state, verdicts=(*self.state.verdicts, verdict))
        if verdict.passes:
            return Reply("All tests pass.", ends=True)
        if len(self.state.verdicts) >= TRIES:
            return Reply("Tests fail.", ends=True)
        said = shown(self._sandbox, files, tests)
        return Reply(f"Tests fail. The tests are right: mend the files, and submit once more.\n{said}")

    def score(self) -> float:
        return float(any(verdict.passes for verdict in self.state.verdicts))

    def metrics(self) -> dict[str, float]:
        passes = [float(verdict.passes) for verdict in self.state.verdicts]
        sound = all(verdict.sound for verdict in self.state.verdicts)
        return {"pass_rate_1": max(passes[:1], default=0.0), "pass_rate_2": max(passes, default=0.0), "sound": float(sound)}

    def gold(self, task: Task) -> list[str] | None:
        example: Mapping[str, str] = task.answer["example"]
        return [*(call("write", path=path, text=text) for path, text in example.items()), call("submit")] if example else None

    def key(self) -> str:
        """Equal where the files of the same task are equal, after as many tries."""
        return state_digest(self.task.id, self.state.files, len(self.state.verdicts))

    @property
    def _sandbox(self) -> Sandbox:
        return self._chosen or _shared_sandbox()

    def _text(self, path: str) -> str:
        files = dict(self.state.files)
        if path not in files:
            raise ToolError(f"there is no file {path!r}; there are {', '.join(files)}")
        return files[path].decode("utf-8", "replace")

    def _keep(self, path: str, text: str) -> str:
        """Nothing that the sandbox would refuse when the files are judged."""
        files = {**dict(self.state.files), path: text.encode("utf-8", "replace")}
        check_names(files)
        size = sum(map(len, files.values()))
        if len(files) > MOST_FILES or size > LARGEST:
            raise ToolError(f"{len(files)} files of {size:,} bytes are more than {MOST_FILES} of {LARGEST:,}: nothing was changed")
        self.state = replace(self.state, files=_sorted(files))
        return f"Wrote {path}."


def _sorted(files: Mapping[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted(files.items()))


@cache
def _tables(path: Path) -> dict[str, list[Task]]:
    return read_rows(path)


@cache
def _open() -> Sandbox:
    return open_sandbox(limits=LIMITS)


def _shared_sandbox() -> Sandbox:
    """One for all environments of this process, however many threads ask at once."""
    with _lock:
        return _open()
