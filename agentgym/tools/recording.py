"""Answers of tools in a file, so that what was played with a service can be played again without it."""

from __future__ import annotations

import copy
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
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
        try:
            self._rows = dict(self._read())
        except BaseException:
            self.close()
            raise

    def find(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def add(self, key: Key, row: Row) -> Row:
        """Write down an answer. What was written first stays, and is returned."""
        with self._lock:
            if key not in self._rows:
                self._write(_json(row) + b"\n")
                self._rows[key] = row
            return self._rows[key]

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise AgentGymError(f"the recording {self.path} is closed or only read")
        before = os.fstat(self._file).st_size
        with suppress(OSError):
            if os.write(self._file, line) == len(line):
                return
        os.ftruncate(self._file, before)
        raise AgentGymError(f"an answer could not be written to {self.path}: make room on the disk")

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

    def _read(self) -> Iterator[tuple[Key, Row]]:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            warnings.warn(f"the last line of {self.path} is torn and was dropped: its call will be made again", stacklevel=4)
            if self._file is not None:
                os.ftruncate(self._file, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = orjson.loads(line)
                key = _key(str(row["tool"]), row["arguments"], str(row["after"]))
                with suppress(ToolError):
                    _told(row)
            except (ValueError, KeyError, TypeError) as error:
                raise AgentGymError(f"{self.path}, line {number} is no recorded answer: delete the line or the file") from error
            yield key, row


class Tape:
    """Tools that record their answers or replay them. ``tools`` go to ``AgentEnv(tools=…)``.

    An answer is found again by the tool's name, its arguments and, where any of the tools writes, the calls that wrote before
    it in the same episode, for what they changed it may tell. So an environment whose tools write must call ``begin(task.id)`` in
    its own ``begin``, make all anew there, and have ``snapshots = "log"``; a fork then finds its answers too.
    """

    def __init__(self, tools: Sequence[Callable[..., Any]], recording: Recording, calls: bool) -> None:
        self.recording, self._calls = recording, calls
        plain = [tool if isinstance(tool, Tool) else Tool(tool) for tool in tools]
        self._writes = any(tool.effect == "write" for tool in plain)
        self._after: str | None = None if self._writes else ""
        self.tools = [self._taped(tool) for tool in plain]

    def begin(self, episode: str) -> None:
        """An episode begins: nothing was written yet."""
        self._after = state_digest(episode) if self._writes else ""

    def _taped(self, tool: Tool) -> Tool:
        taped = copy.copy(tool)
        taped.function = partial(self._play, tool)
        # Made of the function's signature: asked of the original, they are made once and not for each tape.
        taped.description, taped.parameters = tool.description, tool.parameters
        taped.read_arguments = tool.read_arguments  # type: ignore[method-assign]
        return taped

    def _play(self, tool: Tool, /, **arguments: Any) -> Any:
        if self._after is None:
            raise AgentGymError(f"{tool.name} is one of tools that write: call tape.begin(task.id) in the environment's begin first")
        try:
            key = _key(tool.name, arguments, self._after)
        except TypeError as error:
            raise ToolError(f"the arguments cannot be written down: {error}") from error
        writes = tool.effect == "write"
        row = self.recording.find(key)
        if self._calls and (row is None or writes):
            made = {"tool": tool.name, "arguments": arguments, "after": self._after, **_answer(tool.function, arguments)}
            row = self.recording.add(key, made)
            if writes and _json(row) != _json(made):
                raise InfrastructureError(
                    f"{tool.name}({key[1]}) answers otherwise than in {self.recording.path}: begin() must make all anew, "
                    "or record to another file"
                )
        if row is None:
            raise InfrastructureError(
                f"{self.recording.path} holds no answer to {tool.name}({key[1]})"
                f"{' after these writes' if self._after else ''}: play it once with recorded(tools, path)"
            )
        if writes:
            self._after = state_digest(key)
        return _told(row)


def recorded(tools: Sequence[Callable[..., Any]], recording: Recording | str | Path) -> Tape:
    """Tools that call and write down. What is in the file already is not called again, except what writes.

    Environments of one process share a `Recording`. An `InfrastructureError` is not recorded.
    """
    return Tape(tools, recording if isinstance(recording, Recording) else Recording(recording, writes=True), calls=True)


def replayed(tools: Sequence[Callable[..., Any]], recording: Recording | str | Path) -> Tape:
    """Tools that never call: they answer from the file, or raise `InfrastructureError` where it has no answer."""
    return Tape(tools, recording if isinstance(recording, Recording) else Recording(recording, writes=False), calls=False)


def _key(tool: str, arguments: Mapping[str, Any], after: str) -> Key:
    return tool, _json(arguments).decode(), after


def _json(value: Any) -> bytes:
    """The same for equal values, in every process."""
    return orjson.dumps(value, default=_plain, option=CANONICAL)


def _plain(value: Any) -> Any:
    return sorted(value, key=_json) if isinstance(value, set | frozenset) else str(value)


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
