"""Several servers with one policy: which of them is asked, and what is done until one that was lost can be asked again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any

from agentgym.errors import InfrastructureError
from agentgym.policies.vllm.replica import Lost, Replica, Where

SPREAD = 1.25  # times the mean of what is under way: so much a replica may have before its trees' turns go elsewhere
LONGEST_REST = 5.0  # seconds between two looks at a server that is down

Check = Callable[[Replica], Awaitable[None]]


class Fleet:
    """The replicas of one event loop. One is asked only while it is up: healthy, and ``check`` found nothing wrong with it.

    ``check`` raises `Lost` to be called again later, and anything else to refuse the whole fleet.
    """

    def __init__(self, urls: Sequence[Where], width: int, timeout: float, check: Check, backoff: float) -> None:
        self.replicas = [Replica(url, width, timeout) for url in urls]
        self.pushing = asyncio.Lock()  # weights reach all replicas, or one that was lost, never both at once
        self._check, self._backoff = check, backoff
        self._complete = False  # all of them were up once: only then may one be missing
        self._refusal: Exception | None = None
        self._changed = asyncio.Condition()
        self._mending: dict[Replica, asyncio.Task[None]] = {}
        for replica in self.replicas:
            self.lose(replica, "it was not asked yet")

    @property
    def up(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.up]

    async def choose(self, tree: str, remembered: Any, patience: float) -> Replica:
        """The replica that has a tree's prefix, unless it is down or has far more to do than the others."""
        await self.wait(1 if self._complete else len(self.replicas), patience)
        self._complete = True
        total = sum(replica.asked for replica in self.up) + 1
        most = math.ceil(SPREAD * total / len(self.up))
        ranked = sorted(self.up, key=lambda replica: (replica.url != remembered, _rank(replica, tree)))
        return next(replica for replica in ranked if replica.asked < most)

    async def wait(self, count: int, patience: float) -> None:
        """Until so many replicas are up. Raises `InfrastructureError` after ``patience`` seconds without."""
        if len(self.up) < count:
            try:
                async with asyncio.timeout(patience), self._changed:
                    await self._changed.wait_for(lambda: len(self.up) >= count or self._refusal is not None)
            except TimeoutError:
                down = "; ".join(f"{replica.url} ({replica.trouble})" for replica in self.replicas if not replica.up)
                raise InfrastructureError(f"not up within {patience:g} s: {down}. Is 'agentgym serve-policy' running there?") from None
        if self._refusal is not None:
            raise self._refusal

    def lose(self, replica: Replica, trouble: str) -> None:
        """Ask it no more until it is well again."""
        replica.up, replica.trouble = False, trouble
        if replica not in self._mending or self._mending[replica].done():
            self._mending[replica] = asyncio.create_task(self._mend(replica))

    async def close(self) -> None:
        for task in self._mending.values():
            task.cancel()
        await asyncio.gather(*self._mending.values(), return_exceptions=True)
        for replica in self.replicas:
            await replica.http.aclose()

    async def _mend(self, replica: Replica) -> None:
        rest = self._backoff
        while not await self._well(replica):
            await asyncio.sleep(rest)
            rest = min(2 * rest, LONGEST_REST)

    async def _well(self, replica: Replica) -> bool:
        try:
            await replica.find()
            if not await replica.healthy():
                replica.trouble = "it does not answer"
                return False
            async with self.pushing:
                await self._check(replica)
                replica.up = True
        except Lost as error:
            replica.trouble = str(error)
            return False
        except Exception as error:  # nobody awaits this task: it reaches who waits for a server
            self._refusal = error
        async with self._changed:
            self._changed.notify_all()
        return True


def _rank(replica: Replica, tree: str) -> bytes:
    """Which replica a tree begins at: all trees spread evenly, and one that goes down changes only its own trees' place."""
    return blake2b(f"{replica.name} {tree}".encode(), digest_size=8).digest()

