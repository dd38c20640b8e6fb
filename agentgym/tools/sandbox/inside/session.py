"""One connection of the host: its calls, one after the other, and the interpreters that stand ready to go on from."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import folder, frames
from .box import Box, Nursery
from .plan import Plan
from .streams import Streams
from .supervision import Ran, Supervision

STANDING = 8  # interpreters that a connection keeps, by as many keys
HEAD_START = 0.0005  # seconds that the host has to take an answer before what comes after takes a core from it
PATIENCE = 1.0  # seconds for a process that has nothing to do but to answer
Files = dict[str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A process that holds an interpreter's state, runs nothing itself, and forks for each program that goes on from it."""

    box: Box
    conn: socket.socket
    pid: int  # as it is numbered in the box


@dataclass(frozen=True, slots=True)
class Done:
    ran: Ran
    files: Files


class Parted(Exception):
    """A cell of a history, replayed, fails, but had succeeded. Its argument is the index."""


class Lost(Exception):
    """An interpreter is gone that stood there. Its argument is the box."""


class Refused(Exception):
    """The files do not fit."""


class Session:
    def __init__(self, host: socket.socket, plan: Plan, uid: int, own_pids: int | None) -> None:
        self._host, self._plan = host, plan
        self._nursery = Nursery(plan, uid, own_pids)  # before anything of a call is in memory
        self._spare: Box | None = self._nursery.take()
        self._streams: Streams | None = Streams(plan.output)  # for the next program
        self._known: dict[str, Node] = {}  # the least recently used first
        self._boxes: dict[Box, set[Node]] = {}  # those in use, with all that stand there

    def serve(self) -> None:
        """Until the host closes the connection."""
        with suppress(EOFError, ConnectionError):
            while True:
                header, blobs, _ = frames.receive(self._host)
                frames.send(self._host, *self._answer(header, iter(blobs)))
                time.sleep(HEAD_START)
                self._clean_up()
        self._nursery.close()
        for box in self._boxes:
            box.close()

    def _answer(self, header: Mapping[str, Any], blobs: Iterator[bytes]) -> tuple[frames.Header, Sequence[bytes]]:
        program, stdin, files = next(blobs), next(blobs), _read_files(header["files"], blobs)
        try:
            if not header["keep"]:
                return self._report(self._run_once(program, header["name"], files, stdin))
            cells = [(cell["known"], next(blobs), _read_files(cell["files"], blobs)) for cell in header["replay"] or ()]
            node = self._known.pop(header["key"], None)
            if node is None and header["replay"] is None:
                return {"unknown": True}, ()
            node = node or self._replay(cells)
            self._known[header["key"]] = node  # now the most recently used
            done, after = self._go_on(node, program, header["name"], files, stdin)
        except Parted as parted:
            return {"parted": parted.args[0]}, ()
        except Refused as refused:
            return {"refused": str(refused)}, ()
        except Lost as lost:
            self._forget(lost.args[0])
            return {"unknown": True}, ()
        if after:
            self._known[frames.state_key(header["becomes"], done.files)] = after
        else:
            self._forget(node.box)
        return self._report(done)

    def _report(self, done: Done) -> tuple[frames.Header, Sequence[bytes]]:
        ran = done.ran
        about: frames.Header = {"status": ran.status, "stopped": ran.stopped, "seconds": ran.seconds, "cpu": ran.cpu}
        about |= {"missing": ran.missing, "files": list(done.files)}
        return about, (*map(bytes, ran.kept), *done.files.values())

    def _run_once(self, program: bytes, name: str, files: Files, stdin: bytes) -> Done:
        box = self._take_box()
        _fill(box, files)
        watch = self._start(_root(box), box.report, {"keep": False, "name": name}, program, frozenset())
        if not watch.watch(stdin).alone:
            box.kill()
        return self._collect(box, watch.finish())

    def _go_on(self, node: Node, program: bytes, name: str, files: Files, stdin: bytes) -> tuple[Done, Node | None]:
        """Run a program in the interpreter of ``node``. Also: the interpreter afterwards, which is ``node`` again if the program
        failed, or None if the program ended what stood in its box."""
        box = node.box
        folder.empty(box.work)
        folder.empty(box.temporary)
        os.fchmod(box.work, 0o755)  # another program may have changed it
        _fill(box, files)
        standing = frozenset({box.runner, node.pid, *(other.pid for other in self._boxes[box])})
        here, there = socket.socketpair()
        order = {"keep": True, "name": name}
        box.signal(node.pid, signal.SIGCONT)  # first, for it must read an order that is longer than what a socket holds
        with there:
            try:
                watch = self._start(node, node.conn, order, program, standing, there.fileno())
            except OSError as error:
                raise Lost(box) from error
        ran = watch.watch(stdin)
        after: Node | None = node
        if ran.status == 0 and not ran.stopped:
            after = self._successor(box, here)
        if after in (node, None):
            here.close()
        intact = box.end_all_but(standing | {after.pid} if after else standing)
        intact = intact and (ran.told or (bool(ran.stopped) and _hear(node.conn) is not None))  # of the end of what was killed
        for stands in {node, after} if after and intact else ():
            box.signal(stands.pid, signal.SIGSTOP)  # between calls nothing runs
        if not intact:
            box.kill()
        return self._collect(box, watch.finish()), after if intact else None

    def _start(
        self, node: Node, ends: socket.socket, order: frames.Header, program: bytes, spared: frozenset[int], *more: int
    ) -> Supervision:
        """Give an order, with the program's ends of its streams and ``more`` descriptors, and watch what comes of it."""
        streams, self._streams = self._streams or Streams(self._plan.output), None
        watch = Supervision(self._plan, node.box, ends, streams, spared)
        node.conn.settimeout(PATIENCE)
        watch.order(node.conn, order, program, more)
        return watch

    def _successor(self, box: Box, conn: socket.socket) -> Node | None:
        heard = _hear(conn)
        if heard is None or heard.get("pid") not in [process.pid for process in box.processes()]:
            return None
        node = Node(box, conn, heard["pid"])
        self._boxes[box].add(node)
        return node

    def _collect(self, box: Box, ran: Ran) -> Done:
        files, whole = folder.collect(box.work, box.room)
        if not whole:
            ran.status, ran.stopped = None, ran.stopped or "disk"
        return Done(ran, files)

    def _replay(self, cells: Sequence[tuple[bool | None, bytes, Files]]) -> Node:
        """The interpreter after ``cells``, each with whether it is known to succeed, or None, and the files that it found."""
        box = self._take_box()
        node = _root(box)
        self._boxes[box].add(node)
        for index, (known, source, files) in enumerate(cells):
            if known is False:
                continue  # it left no trace
            done, after = self._go_on(node, source, f"cell {index + 1}", files, b"")
            if after is None or (known and done.ran.status != 0):
                raise Parted(index)
            node = after
        return node

    def _take_box(self) -> Box:
        box, self._spare = self._spare or self._nursery.take(), None
        self._boxes[box] = set()
        return box

    def _forget(self, box: Box) -> None:
        self._known = {key: node for key, node in self._known.items() if node.box is not box}

    def _clean_up(self) -> None:
        """After the answer: what nobody waits for, but the next call."""
        if self._spare is None:
            self._nursery.order()
        for key in list(self._known)[:-STANDING]:
            del self._known[key]
        wanted = set(self._known.values())
        for box, nodes in list(self._boxes.items()):
            for node in nodes - wanted:
                box.signal(node.pid, signal.SIGKILL)
                node.conn.close()
            nodes &= wanted
            if not nodes:
                del self._boxes[box]
                box.close()
        gc.collect()
        self._streams = self._streams or Streams(self._plan.output)
        self._spare = self._spare or self._nursery.take()


def _root(box: Box) -> Node:
    return Node(box, box.conn, box.runner)


def _fill(box: Box, files: Files) -> None:
    try:
        folder.fill(box.work, files, box.uid)
    except OSError as error:
        raise Refused(str(error)) from error


def _hear(conn: socket.socket) -> frames.Header | None:
    conn.settimeout(PATIENCE)
    try:
        return frames.receive(conn, longest=4096)[0]
    except (EOFError, OSError, ValueError):
        return None


def _read_files(names: Sequence[str], blobs: Iterator[bytes]) -> Files:
    return {name: next(blobs) for name in names}
