"""A local page over runs that may still grow: ``agentgym view``. It only reads, and of a log it reads only what is new.

A request reads on for a moment and answers with what changed; the page shows that and asks for the rest.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from urllib.parse import parse_qsl, urlsplit

import orjson

from agentgym.errors import AgentGymError
from agentgym.report.page import Mark, Record, before_after, plain, render, tree_record, tree_summary
from agentgym.statistics import compare
from agentgym.store import RunStore, restore_turn
from agentgym.task import Task
from agentgym.turn import TurnTree

FIRST, SLICE = 0.1, 0.4  # seconds of reading in one request: the first paints the list
BLOCK = 1 << 18  # bytes
TREES_AT_ONCE = 5000
PROMPT = 300  # characters of it in the list
SHOWN_PROBLEMS = 10
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Log:
    """A file of lines that grows, and that is cut and written anew when its run is resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.lines = 0
        self.behind = False  # the time was up before the end of the file
        self._last = b""

    def replaced(self) -> bool:
        """What was read last stands there no longer."""
        if not self.position:
            return False
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position - len(self._last))
                return file.read(len(self._last)) != self._last
        except FileNotFoundError:
            return True

    def new(self, until: float) -> Iterator[tuple[int, int, list[bytes]]]:
        """Whole lines not read before, in blocks, each with its place and its first line's number; no block begins after ``until``."""
        self.behind = False
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.position)
            while lines := file.readlines(BLOCK):
                if torn := not lines[-1].endswith(b"\n"):  # or still being written
                    del lines[-1]
                yield self.position, self.lines + 1, lines
                self.position += sum(map(len, lines))
                self.lines += len(lines)
                self._last = lines[-1] if lines else self._last
                if torn:
                    return
                if time.monotonic() > until:
                    self.behind = True
                    return


@dataclass(slots=True)
class Listed:
    number: int
    id: str
    task: Task
    tags: Record
    places: list[tuple[int, int]] = field(default_factory=list)  # of its lines: where they begin, and their length
    marks: list[Mark] = field(default_factory=list)
    version: int = 0

    def take(self, turn: Record) -> None:
        index, parent = turn["turn"], turn["parent"]
        if not (0 <= index <= len(self.marks) and (parent is None if index == 0 else type(parent) is int and 0 <= parent < index)):
            raise ValueError(f"turn {index} below turn {parent} does not follow {len(self.marks)} turns")
        reward = None if turn["reward"] is None else turn["reward"] + 0.0
        end = None if turn["end"] is None else str(turn["end"])
        mark = Mark(parent, str(turn["author"]), reward, end, str(turn["outcome"]), turn["executed"], turn.get("partial", False))
        self.marks[index : index + 1] = [mark]


class Index:
    """What the page lists of one run. A tree is read whole when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = Lock()
        self.best = 1.0  # the reward of a success
        self._begin()

    def _begin(self) -> None:
        self.generation = secrets.token_hex(4)
        self.turns, self.metrics = Log(self.folder / "turns.jsonl"), Log(self.folder / "metrics.jsonl")
        self.times = Log(self.folder / "times.jsonl")
        self.trees: dict[str, Listed] = {}
        self.rows: list[Record] = []
        self.spent: list[Record] = []
        self.version = 0
        self.problems: list[str] = []

    def changes(self, generation: str, since: int, rows: int, times: int) -> Record:
        """What is new since a version and since so many rows of metrics and of times; all, where the logs were replaced meanwhile."""
        about = about_run(self.folder)
        self.best = about["config"].get("best", 1.0)
        if any(log.replaced() for log in (self.turns, self.metrics, self.times)):
            self._begin()
        if generation != self.generation:
            since = rows = times = 0
        self._read_on(time.monotonic() + (SLICE if since else FIRST))
        changed = sorted((tree for tree in self.trees.values() if tree.version > since), key=lambda tree: tree.version)
        told, size = changed[:TREES_AT_ONCE], self.turns.path.stat().st_size if self.turns.path.exists() else 0
        problems = self.problems[:SHOWN_PROBLEMS]
        if len(self.problems) > SHOWN_PROBLEMS:
            problems.append(f"… and {len(self.problems) - SHOWN_PROBLEMS} more such lines")
        return {
            **about,
            "generation": self.generation,
            "version": told[-1].version if told else since,
            "behind": self.turns.behind or self.metrics.behind or self.times.behind or len(told) < len(changed),
            "read": self.turns.position / size if size else 1.0,
            "trees": [{**tree_summary(one.id, one.task, one.tags, one.marks, self.best), "number": one.number} for one in told],
            "metrics": self.rows[rows:],
            "rows": len(self.rows),
            "times": self.spent[times:],
            "steps": (self.folder / "steps.jsonl").exists(),
            "problems": problems,
        }

    def _read_on(self, until: float) -> None:
        for log, take in (
            (self.metrics, partial(_take_row, self.rows)),
            (self.times, partial(_take_row, self.spent)),
            (self.turns, self._take_turn),
        ):
            for place, first, lines in log.new(until):
                for number, line in enumerate(lines, first):
                    try:
                        take(place, line)
                    except DAMAGE as error:
                        self.problems.append(f"{log.path.name}, line {number}: damaged, left out ({error})")
                    place += len(line)

    def _take_turn(self, place: int, line: bytes) -> None:
        record = _loads_without(line, b'"ids":[', b'"reward":')
        id = str(record["tree"])
        if "task" in record:
            task = record["task"]
            shown = Task(str(task["id"]), str(task["prompt"])[:PROMPT], split=str(task["split"]))
            number = self.trees[id].number if id in self.trees else len(self.trees)
            self.trees[id] = Listed(number, id, shown, dict(record["tags"]))
        elif "advantages" not in record:
            self.trees[id].take(record)
        elif len(record["advantages"]) != len(self.trees[id].marks):
            raise ValueError("its advantages are of other turns")
        tree = self.trees[id]
        tree.places.append((place, len(line)))
        self.version = tree.version = self.version + 1

    def tree(self, id: str) -> Record:
        if (listed := self.trees.get(id)) is None:
            raise AgentGymError(f"{self.folder} has no tree {id!r}")
        try:
            with open(self.turns.path, "rb") as file:
                about, *records = (_line(file, place) for place in listed.places)
            tree = TurnTree(about["tree"], Task(**about["task"]), about["tags"])
            for record in records:
                if record.pop("tree") != tree.id:
                    raise ValueError("the log was replaced")
                restore_turn(tree, record)
            return tree_record(tree, self.best)
        except DAMAGE as error:
            raise AgentGymError(f"{self.turns.path}: the lines of tree {id!r} cannot be read ({error})") from error

    def step(self, step: int) -> list[str]:
        """The trees that a step's metrics were computed from."""
        path = self.folder / "steps.jsonl"
        if path.exists():
            with open(path, "rb") as file:
                for line in file:
                    if line.startswith(b'{"step":%d,' % step) and line.endswith(b"\n"):
                        row = orjson.loads(line)
                        return list(dict.fromkeys([*row["trees"], *row["learnt"]]))
        return []

    def search(self, words: str) -> list[str]:
        """The trees that hold these words in their task, an action, an observation or an error; case does not matter."""
        words = words.lower()
        raw = orjson.dumps(words)[1:-1] if words.isascii() else b""
        found: dict[str, bool] = {}
        with open(self.turns.path, "rb") as file:
            while file.tell() < self.turns.position:
                if raw in (line := file.readline()).lower():
                    with suppress(*DAMAGE):
                        record = _loads_without(line, b'"ids":[', b'"action_tokens":')
                        found[record["tree"]] = found.get(record["tree"], False) or words in _text(record).lower()
        return [id for id, holds in found.items() if holds and id in self.trees]


def _take_row(rows: list[Record], place: int, line: bytes) -> None:
    row = {name: value for name, value in orjson.loads(line).items() if isinstance(value, int | float)}
    if "step" not in row:
        raise ValueError("it has no step")
    rows.append(row)


def _line(file: BinaryIO, place: tuple[int, int]) -> Record:
    file.seek(place[0])
    record: Record = orjson.loads(file.read(place[1]))
    return record


def _loads_without(line: bytes, start: bytes, end: bytes) -> Record:
    """A turn's record without what stands between two of its fields, such as tokens, which are most of the line.

    Quotes within JSON strings are escaped, so these are names of fields. Where cutting leaves no JSON, the line is read whole.
    """
    first, last = line.find(start), line.rfind(end)
    record: Record
    if 0 < first < last:
        try:
            record = orjson.loads(line[:first] + line[last:])
            return record
        except ValueError:
            pass
    record = orjson.loads(line)
    return record


def _text(record: Record) -> str:
    if "task" in record:
        return "\n".join((record["tree"], str(record["task"]["id"]), str(record["task"]["prompt"])))
    if "action" not in record:
        return ""
    return "\n".join((record["action"], *(str(message["content"]) for message in record["replies"]), record["error"]))


def about_run(folder: Path) -> Record:
    """The run's settings and its summary, if it has one. Raises `AgentGymError` where there is no run."""
    about: Record = {"config": RunStore.open(folder).config, "summary": []}
    with suppress(FileNotFoundError):
        try:
            about["summary"] = list(orjson.loads((folder / "summary.json").read_bytes()).items())
        except DAMAGE as error:
            raise AgentGymError(f"{folder / 'summary.json'} is damaged: {error}") from None
    logs = [path.stat().st_mtime for name in ("turns", "metrics", "episodes") if (path := folder / f"{name}.jsonl").exists()]
    return {**about, "changed": max(logs, default=None)}


class Viewer(ThreadingHTTPServer):
    """Serves one run, or the runs within a folder, on this machine alone. Whoever knows `address` may read; nobody may write."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.indexes: dict[Path, Index] = {}
        self.token = secrets.token_urlsafe(16)
        self.single = (folder / "run.json").exists()
        if not self.runs():
            raise AgentGymError(f"{folder} holds no run, and no folder of it does (run.json is missing)")
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise AgentGymError(f"port {port} cannot be served on ({error.strerror}): choose another, or 0 for any that is free") from error
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away in the middle of an answer is no event."""

    def runs(self) -> dict[str, Path]:
        if self.single:
            return {"": self.folder}
        found = sorted(path.parent for pattern in ("*/run.json", "*/*/run.json") for path in self.folder.glob(pattern))
        inside = [path for path in found if path.resolve().is_relative_to(self.folder.resolve())]
        return {str(path.relative_to(self.folder)): path for path in inside}

    def answer(self, name: str, asked: dict[str, str]) -> object:
        """What the page asks for. Raises `AgentGymError`, in one sentence for the page."""
        if name == "runs":
            return [{"name": run, **_headline(path)} for run, path in self.runs().items()]
        if name == "compare":
            a, b = asked["a"], asked["b"]
            compared = compare(_rewards(self._run(a)), _rewards(self._run(b)))
            return plain(before_after({"reward": compared}, a, b))
        path = self._run(asked["run"])
        index = self.indexes.setdefault(path, Index(path))
        with index.lock:
            if name == "changes":
                return index.changes(asked["generation"], int(asked["since"]), int(asked["rows"]), int(asked["times"]))
            if name == "tree":
                return plain(index.tree(asked["id"]))
            if name == "step":
                return index.step(int(asked["step"]))
            if name == "search":
                return index.search(asked["words"])
        raise AgentGymError(f"there is nothing to read at {name!r}")

    def _run(self, name: str) -> Path:
        if (path := self.runs().get(name)) is None:
            raise AgentGymError(f"{self.folder} has no run {name!r}: it was deleted, moved or never there")
        return path


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    timeout = 30

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        token, slash, name = path.path[1:].partition("/")
        host = self.headers.get("Host", "").rsplit(":", 1)[0]  # another name that leads here is another site's
        if host not in LOOPBACK or not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._send(403, "text/plain", b"Open the whole address that agentgym view printed.\n")
        elif not name:
            page = render(str(self.server.folder), {"live": True, "single": self.server.single}, asks="'self'")
            self._send(200, "text/html", page.encode(errors="replace"))
        else:
            self._answer(name, dict(parse_qsl(path.query, keep_blank_values=True)))

    def _answer(self, name: str, asked: dict[str, str]) -> None:
        status = 200
        try:
            body = orjson.dumps(self.server.answer(name, asked), option=orjson.OPT_NON_STR_KEYS, default=str)
        except AgentGymError as error:
            status, body = 404, orjson.dumps({"error": str(error)})
        except (OSError, *DAMAGE) as error:
            status, body = 400, orjson.dumps({"error": f"{name} of {asked} cannot be answered: {error!r}"})
        self._send(status, "application/json", body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for header, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The terminal stays quiet."""


def _headline(folder: Path) -> Record:
    try:
        return {**about_run(folder), "last": next(iter(deque(RunStore.open(folder).read("metrics"), maxlen=1)), None)}
    except (AgentGymError, OSError, *DAMAGE) as error:
        return {"error": str(error)}


def _rewards(folder: Path) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {}
    for episode in RunStore.open(folder).read("episodes"):
        if episode["reward"] is not None:
            rewards.setdefault(episode["task"], []).append(episode["reward"])
    if not rewards:
        raise AgentGymError(f"{folder} has no finished episodes to compare: choose runs of 'agentgym eval'")
    return rewards
