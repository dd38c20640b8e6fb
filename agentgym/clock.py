"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ACTIVITIES = ("learn", "sync", "score", "generate", "environment")  # of several at once, the first counts


class Clock:
    """Counts each moment once, for one of `ACTIVITIES` or as idle, so that a lap's seconds sum to the wall time.

    Summed over turns they would be more than passes, and would not say what holds a run up. Of activities that overlap, those
    hidden behind another cost nothing: ``generate`` is time with at least one generation and no learning under way, ``environment``
    time with environments alone, or with one that held the event loop, where nothing else goes on. ``idle`` is the rest: drawing,
    planning, logs, checkpoints, whatever hears of a step. All calls come from the event loop's thread.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._since = now()
        self._open: Counter[tuple[str, bool]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def during(self, activity: str, alone: bool = False) -> Iterator[None]:
        """While the block runs, the activity is under way; ``alone``: it holds the event loop, and counts before all others."""
        self._count()
        self._open[activity, alone] += 1
        try:
            yield
        finally:
            self._count()
            self._open[activity, alone] -= 1

    def lap(self) -> dict[str, float]:
        """``seconds_learn`` and so on, since the last lap or since the clock was made. What is under way goes on."""
        self._count()
        lap = {f"seconds_{name}": self._seconds[name] for name in (*ACTIVITIES, "idle")}
        self._seconds.clear()
        return lap

    def _count(self) -> None:
        now = self.now()
        under_way = (name for alone in (True, False) for name in ACTIVITIES if self._open[name, alone])
        self._seconds[next(under_way, "idle")] += now - self._since
        self._since = now
