"""How thousands of episodes share one process: threads for those that wait, watches that stand still, and turns that let others by."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import Context
from queue import SimpleQueue
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
Orders = SimpleQueue[Callable[[], None] | None]  # of one thread; None ends it


class Threads:
    """Daemon threads for calls from one event loop: as many as there are calls at once.

    If a call hangs, neither others nor the end of the process wait for it: once it is cancelled, as by a deadline, its
    thread is missing here until it is done.
    """

    def __init__(self) -> None:
        self._idle: list[Orders] = []
        self._closed = False

    async def call(self, function: Callable[[], Result]) -> Result:
        """What ``function`` returns or raises, called in a thread and in an empty context."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[tuple[Result | None, BaseException | None]]] = loop.create_future()
        orders = self._idle.pop() if self._idle else _new_thread()

        def work() -> None:
            try:
                settled: tuple[Result | None, BaseException | None] = Context().run(function), None
            except BaseException as error:
                settled = None, error
            try:
                loop.call_soon_threadsafe(settle, settled)
            except RuntimeError:  # the loop is closed: nobody waits any more
                orders.put(None)
            finally:
                del settled  # an error refers to this frame

        def settle(settled: tuple[Result | None, BaseException | None]) -> None:
            if self._closed:
                orders.put(None)
            else:
                self._idle.append(orders)
            if not done.done():
                done.set_result([settled])

        orders.put(work)
        del work  # what the call holds goes when it is done, and not at some collection of garbage
        result, error = (await done).pop()  # an error's traceback will hold this frame: it must not hold the error
        try:
            if error is not None:
                raise error
            return cast(Result, result)
        finally:
            del error

    def close(self) -> None:
        """End the threads: the idle ones now, each other when it is done."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)


def _new_thread() -> Orders:
    orders: Orders = SimpleQueue()

    def obey() -> None:
        while (work := orders.get()) is not None:
            work()
            del work  # an idle thread holds nothing

    threading.Thread(target=obey, daemon=True).start()
    return orders


class Stopwatch:
    """The seconds of an episode, ``spent`` of them before; ``deadline`` lets it have ``most``. While it waits for a thread, none pass."""

    def __init__(self, spent: float = 0.0, most: float | None = None) -> None:
        self._now = asyncio.get_running_loop().time
        self._start = self._now() - spent
        self._most = most
        self._timeout = None if most is None else asyncio.timeout_at(self._start + most)

    @property
    def deadline(self) -> AbstractAsyncContextManager[Any]:
        return self._timeout or nullcontext()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    async def wait_for(self, free: asyncio.Semaphore) -> None:
        """Acquire ``free`` while the watch stands still."""
        if not free.locked():
            await free.acquire()
            return
        stopped = self._now()
        if self._timeout is not None:
            self._timeout.reschedule(None)
        await free.acquire()
        self._start += self._now() - stopped
        if self._timeout is not None and self._most is not None:
            self._timeout.reschedule(self._start + self._most)


class Turnstile:
    """Lets so many pass in one round of the event loop, in the order of arrival; the next only after the loop has seen to all else."""

    def __init__(self, most: int) -> None:
        self._most = self._room = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def pass_one(self) -> None:
        loop = asyncio.get_running_loop()
        if self._room == self._most:
            loop.call_soon(self._begin_round)
        if self._room:
            self._room -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin_round(self) -> None:
        self._room = self._most
        while self._waiting and self._room:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(None)
                self._room -= 1
        if self._room < self._most:
            asyncio.get_running_loop().call_soon(self._begin_round)
