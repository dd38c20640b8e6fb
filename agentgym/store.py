"""A run directory that survives being killed: turns appended as they are committed, checkpoints replaced atomically."""

from __future__ import annotations

import errno
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

FORMAT = 2
KEPT_CHECKPOINTS = 2


class RunStore:
    """``run.json`` says what the run is; ``turns.jsonl`` and other logs only grow; ``checkpoints/`` holds the newest two.

    A checkpoint remembers how long the logs were. To resume is to cut them there and to play on: what was logged after it
    belongs to a step that will be played again, identically.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self._logs: dict[str, Any] = {}

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any]) -> RunStore:
        """A new run. Raises `AgentGymError` where the folder holds something already."""
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise AgentGymError(f"{folder} is not empty: resume that run, or choose another folder. Nothing was overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, dict(config))
        store.write("run.json", {"format": FORMAT, "config": dict(config)})
        return store

    @classmethod
    def open(cls, folder: str | Path) -> RunStore:
        folder = Path(folder)
        try:
            about = orjson.loads((folder / "run.json").read_bytes())
        except FileNotFoundError:
            raise AgentGymError(f"{folder} holds no run (run.json is missing)") from None
        except ValueError as error:
            raise AgentGymError(f"{folder / 'run.json'} is damaged: {error}") from None
        if about.get("format") != FORMAT:
            raise AgentGymError(
                f"{folder} has format {about.get('format')!r}, this version reads format {FORMAT}. Nothing was changed"
            )
        return cls(folder, about["config"])

    def append(self, log: str, *records: Mapping[str, Any]) -> None:
        """Add a line for each record to ``<log>.jsonl``; they are with the operating system when this returns."""
        lines = _lines(records)
        with _disk(self.folder):
            if log not in self._logs:
                path = self.folder / f"{log}.jsonl"
                _cut_torn_line(path)
                self._logs[log] = open(path, "ab", buffering=0)  # noqa: SIM115
            self._logs[log].write(lines)

    def rewrite(self, log: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace ``<log>.jsonl`` as a whole."""
        self.close()
        temporary = self.folder / f".{log}.new"
        with _disk(self.folder):
            temporary.write_bytes(_lines(records))
            os.replace(temporary, self.folder / f"{log}.jsonl")

    def read(self, log: str) -> Iterator[dict[str, Any]]:
        """The lines of a log. A last line that was cut off by a kill is left out."""
        path = self.folder / f"{log}.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield orjson.loads(line)
                except ValueError as error:
                    raise AgentGymError(f"{path}, line {number}: damaged ({error})") from None

    def write(self, name: str, value: Any) -> None:
        """Replace a small JSON file as a whole."""
        temporary = self.folder / f".{name}.new"
        with _disk(self.folder):
            temporary.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str))
            os.replace(temporary, self.folder / name)

    def turn(self, tree: TurnTree, turn: Turn) -> None:
        """Log a committed turn. A later line about the same turn replaces it."""
        if turn.parent is None:
            self.append("turns", {"tree": tree.id, "task": tree.task, "tags": tree.tags, "tools": tree.tools})
        self.append("turns", {"tree": tree.id, **turn_record(turn)})

    def trees(self) -> list[TurnTree]:
        """The forest as it was logged."""
        trees: dict[str, TurnTree] = {}
        for record in self.read("turns"):
            if "task" in record:
                task = record["task"]
                trees[record["tree"]] = TurnTree(record["tree"], Task(**task), record["tags"])
                trees[record["tree"]].tools = record["tools"]
            else:
                restore_turn(trees[record.pop("tree")], record)
        return list(trees.values())

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """``save`` fills a folder, which then takes its place in one step: a checkpoint is whole or it is not there."""
        checkpoints = self.folder / "checkpoints"
        temporary = checkpoints / ".new"
        with _disk(self.folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save(temporary)
            for log in self._logs.values():
                os.fsync(log.fileno())
            sizes = {path.name: path.stat().st_size for path in self.folder.glob("*.jsonl")}
            (temporary / "logs.json").write_bytes(orjson.dumps({"step": step, "sizes": sizes}))
            for path in temporary.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, checkpoints / f"step-{step:08d}")
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def resume(self) -> tuple[int, Path] | None:
        """The newest checkpoint and its step, with the logs cut to its length; None where there is no checkpoint."""
        found = self._checkpoints()
        about: dict[str, Any] = orjson.loads((found[-1] / "logs.json").read_bytes()) if found else {"step": 0, "sizes": {}}
        for path in self.folder.glob("*.jsonl"):
            os.truncate(path, about["sizes"].get(path.name, 0))
        return (about["step"], found[-1]) if found else None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(record, option=options, default=str) for record in records)


def _cut_torn_line(path: Path) -> None:
    """What a kill left of a last line; the next line would be added to it."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turns the operating system's refusals into one clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise AgentGymError(f"{folder}: {reason}. What was written before is whole; make room and resume the run") from error


def turn_record(turn: Turn) -> dict[str, Any]:
    """What is stored of a turn: all but what can be derived, its snapshot and its wall time."""
    return {
        "turn": turn.index,
        "parent": None if turn.parent is None else turn.parent.index,
        "author": turn.author,
        "seed": turn.seed,
        "ids": turn.ids,
        "sampled_tokens": turn.sampled_tokens,
        "logprobs": list(turn.logprobs),
        "entropies": list(turn.entropies),
        "versions": turn.versions,
        "action_tokens": turn.action_tokens,
        "action": turn.action,
        "replies": turn.replies,
        "reward": turn.reward,
        "end": turn.end,
        "outcome": turn.outcome,
        "executed": turn.executed,
        "partial": turn.partial,
        "restarts": turn.restarts,
        "key": turn.key,
        "metrics": turn.metrics,
        "tokens_read": turn.tokens_read,
        "tokens_written": turn.tokens_written,
        "error": turn.error,
    }


def restore_turn(tree: TurnTree, record: dict[str, Any]) -> None:
    """Add to ``tree`` what `turn_record` wrote, or bring a turn that it has up to date."""
    if "advantages" in record:
        for turn, advantage in zip(tree.turns, record["advantages"], strict=True):
            turn.streams["advantage"] = np.where(turn.sampled, advantage, 0.0)
        return
    index, parent = record.pop("turn"), record.pop("parent")
    for name in ("logprobs", "entropies"):
        record[name] = array("d", np.array(record[name], dtype=np.float64))  # JSON has null for what is not finite
    record["versions"] = [(version, count) for version, count in record["versions"]]
    record["outcome"] = Outcome(record["outcome"])
    if index < len(tree.turns):
        for name, value in record.items():
            setattr(tree.turns[index], name, value)
    else:
        tree.add(Turn(index, None if parent is None else tree.turns[parent], **record))
