"""Answers of tools in a file, so that what was played with a service can be played again without it."""

from __future__ import annotations

import copy
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, Self

import orjson

from agentgym.env import REFUSALS, Reply
from agentgym.errors import AgentGymError, InfrastructureError, ToolError
from agentgym.outcome import Outcome
from agentgym.snapshot import state_digest
from agentgym.tool import Tool, to_text

Row = Mapping[str, Any]
Key = tuple[str, str, str]
CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


class Recording:
    """A file of JSON lines, one for each answer: ``tool``, ``arguments``, ``after``, and what was said, refused or replied.

    ``after`` is empty, or a hash of the calls before it that wrote (see `Tape`). Lines are added and never changed: a process
    that is killed leaves at most a torn last line, which the next one drops with a warning. One process at a time writes to a
    file. Raises `AgentGymError` for a bad line and for a file that another process is writing to.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self._lock = Lock()
        self._file: int | None = None
        if writes:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._own()
        elif not self.path.is_file():
            raise AgentGymError(f"there is no recording {self.path}: make it with recorded(tools, path)")
        self._rows = {_key(row["tool"], row["arguments"], row["after"]): row for row in self._read()}

    def find(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def add(self, key: Key, row: Row) -> Row:
        """Write down an answer. What was written first stays, and is returned."""
        with self._lock:
            if key not in self._rows:
                if self._file is None:
                    raise AgentGymError(f"the recording {self.path} is closed or only read")
                os.write(self._file, orjson.dumps(row, default=str, option=CANONICAL | orjson.OPT_APPEND_NEWLINE))
                self._rows[key] = row
            return self._rows[key]

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _own(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise AgentGymError(f"{self.path} is being recorded already: share one Recording, or use another file") from error

    def _read(self) -> Iterator[Row]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            warnings.warn(f"the last line of {self.path} is torn and was dropped: its call will be made again", stacklevel=4)
            if self._file is not None:
                os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = orjson.loads(line)
                row["tool"], row["arguments"], row["after"]
            except (ValueError, KeyError, TypeError) as error:
                raise AgentGymError(f"{self.path}, line {number} is no recorded answer: delete the line or the file") from error
            yield row


class Tape:
    """Tools that record their answers or replay them. ``tools`` go to ``AgentEnv(tools=…)``.

    An answer is found again by the tool's name, its arguments and, where any of the tools writes, the calls that wrote before
    it in the same episode, for what they changed it may tell. So an environment whose tools write calls ``begin(task.id)`` in its
    own ``begin``, makes all anew there, and has ``snapshots = "log"``; a fork then finds its answers too.
    """

    def __init__(self, tools: Sequence[Callable[..., Any]], recording: Recording, calls: bool) -> None:
        self.recording, self._calls = recording, calls
        plain = [tool if isinstance(tool, Tool) else Tool(tool) for tool in tools]
        self._writes = any(tool.effect == "write" for tool in plain)
        self._after = ""
        self.tools = [self._taped(tool) for tool in plain]

    def begin(self, episode: str) -> None:
        """An episode begins: nothing was written yet."""
        self._after = state_digest(episode) if self._writes else ""

    def _taped(self, tool: Tool) -> Tool:
        function = tool.function

        @wraps(function)
        def play(**arguments: Any) -> Any:
            key = _key(tool.name, arguments, self._after)
            row = self.recording.find(key)
            if self._calls and (row is None or tool.effect == "write"):
                made = _answer(function, arguments)
                row = self.recording.add(key, {"tool": tool.name, "arguments": arguments, "after": self._after, **made})
            if row is None:
                raise InfrastructureError(
                    f"{self.recording.path} holds no answer to {tool.name}({key[1]})"
                    f"{' after these writes' if self._after else ''}: play it once with recorded(tools, path)"
                )
            if tool.effect == "write":
                self._after = state_digest(key)
            return _told(row)

        taped = copy.copy(tool)
        taped.function = play
        return taped


def recorded(tools: Sequence[Callable[..., Any]], recording: Recording | str | Path) -> Tape:
    """Tools that call and write down. What is in the file already is not called again, except what writes.

    Environments of one process share a `Recording`. An `InfrastructureError` is not recorded.
    """
    return Tape(tools, recording if isinstance(recording, Recording) else Recording(recording, writes=True), calls=True)


def replayed(tools: Sequence[Callable[..., Any]], recording: Recording | str | Path) -> Tape:
    """Tools that never call: they answer from the file, or raise `InfrastructureError` where it has no answer."""
    return Tape(tools, recording if isinstance(recording, Recording) else Recording(recording, writes=False), calls=False)


def _key(tool: str, arguments: Mapping[str, Any], after: str) -> Key:
    return tool, orjson.dumps(arguments, default=str, option=CANONICAL).decode(), after


def _answer(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result = function(**arguments)
    except REFUSALS as error:
        return {"refused": str(error)}
    return {"replied": asdict(result)} if isinstance(result, Reply) else {"said": to_text(result)}


def _told(row: Row) -> Any:
    if "refused" in row:
        raise ToolError(row["refused"])
    if "said" in row:
        return row["said"]
    reply = dict(row["replied"])
    return Reply(**{**reply, "outcome": Outcome(reply["outcome"]), "messages": tuple(reply["messages"])})
