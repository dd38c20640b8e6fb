"""``agentgym/Bash-v0``: find the command that does what is asked, in a file system of one's own; InterCode's bash tasks among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agentgym.action import call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.bash.own import TASKS, TREE
from agentgym.envs.bash.rows import read_folder
from agentgym.envs.bash.scoring import Score, score
from agentgym.envs.bash.shell import LIMITS, SECONDS, Done, Place, perform
from agentgym.envs.bash.tree import Tree
from agentgym.errors import InfrastructureError, JudgeError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.sandbox import Sandbox, open_sandbox

LONGEST_SHOWN = 4000  # characters of an output
MOST_TURNS = 10  # of the official runs
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class BashState:
    place: Place
    best: Score | None = None  # of the commands so far
    last: Score | None = None
    output: str = ""  # of the last command, whole


class Bash(AgentEnv):
    """Up to ten commands; each is judged, and the best one counts. Reward: InterCode's, and 1 is success, which ends the episode.

    Without arguments: a dozen tasks of our own. ``data``: the folder of InterCode's files (``fs1.jsonl``, ``fs1_manifest.json`` and so on).
    A command runs in a sandbox whose root holds the files of the task and the commands of this machine; what it leaves is the state, a
    value. The gold command runs beside it, in a sandbox call of its own, each time that a command is judged. Raises `JudgeError`
    where the gold command itself comes to no end, and `InfrastructureError` where it is late.
    """

    system = (
        'Find one command that does what is asked. It runs as /bin/bash -c "command", so write \\" for a double quote, or use single ones. '
        "You read its output and its reward, 1 at most, and may try again."
    )
    max_turns = MOST_TURNS
    max_calls = MOST_TURNS
    snapshots: Kind = "value"
    blocking = True
    state: BashState

    def __init__(self, data: str | Path | None = None, *, sandbox: Sandbox | None = None) -> None:
        super().__init__()
        self._chosen = sandbox
        official = None if data is None else read_folder(Path(data))
        self._tasks = TASKS if official is None else official.tasks
        self._trees: Mapping[int, Tree] = {0: TREE} if official is None else official.trees
        self.splits = ("train",) if official is None else ("test",)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks if split in self.splits else ()

    def begin(self, task: Task) -> None:
        self.state = BashState(Place(self._trees[task.data["fs"]]))

    @tool
    def bash(self, command: str) -> Reply:
        """Run a command, and read its output and its reward.

        Args:
            command: what bash is to run. Files stay for the next command, variables do not.
        """
        now = int(time.time())
        done = perform(self._sandbox, self.state.place, command, now)
        found = self._judged(done, now)
        best = max(found, self.state.best or found, key=lambda one: one.total)
        self.state = BashState(done.place, best, found, done.output)
        return Reply(f"{_shown(done.output)}\nReward: {found.total:.2f}", ends=found.total == 1)

    def score(self) -> float:
        return self.state.best.total if self.state.best else 0.0

    def metrics(self) -> dict[str, float]:
        best = self.state.best or Score(0.0, 0.0, 0.0)
        return {"paths": best.paths, "contents": best.contents, "output": best.output, "commands": float(self.calls)}

    def gold(self, task: Task) -> list[str]:
        return [call("bash", command=task.answer["gold"])]

    def key(self) -> str:
        """Equal where the files of the same task are equal, whenever they were written."""
        files = [(path, entry.kind, entry.mode, entry.content) for path, entry in self.state.place.tree]
        return state_digest(self.task.id, self.state.place.folder, files)

    @property
    def _sandbox(self) -> Sandbox:
        return self._chosen or _shared_sandbox()

    def _judged(self, done: Done, now: int) -> Score:
        before = Place(self._trees[self.task.data["fs"]])
        gold = perform(self._sandbox, before, self.task.answer["gold"], now)
        if gold.problem:
            raise JudgeError(f"the gold command of task {self.task.id} comes to no end ({gold.problem}): mend the task")
        if gold.late:
            raise InfrastructureError(f"the gold command of task {self.task.id} took more than {SECONDS:g} s: the machine is too busy")
        return score(before.tree, done.place.tree, done.output, gold.place.tree, gold.output)


def _shown(output: str) -> str:
    left_out = len(output) - LONGEST_SHOWN
    return (output if left_out <= 0 else f"{output[:LONGEST_SHOWN]}\n… {left_out} characters are left out").rstrip("\n") or "(no output)"


@cache
def _open() -> Sandbox:
    return open_sandbox(limits=LIMITS, commands=True)


def _shared_sandbox() -> Sandbox:
    """One for all environments of this process, however many threads ask at once."""
    with _lock:
        return _open()
