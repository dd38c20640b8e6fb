"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable

ACTIVITIES = ("learn", "sync", "score", "generate", "environment")  # of several at once, the first counts
_PLACES = [(name, alone) for alone in (True, False) for name in ACTIVITIES]
_IDLE = len(_PLACES)


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
        self._open = [0] * len(_PLACES)
        self._first = _IDLE  # the place of what counts now
        self._seconds = [0.0] * (_IDLE + 1)
        self._activities = {activity: _Activity(self, place) for place, activity in enumerate(_PLACES)}

    def during(self, activity: str, alone: bool = False) -> _Activity:
        """While its block runs, the activity is under way; ``alone``: it holds the event loop, and counts before all others."""
        return self._activities[activity, alone]

    def lap(self) -> dict[str, float]:
        """``seconds_learn`` and so on, since the last lap or since the clock was made. What is under way goes on."""
        self._count()
        lap = {f"seconds_{name}": self._seconds[place] + self._seconds[place + len(ACTIVITIES)] for place, name in enumerate(ACTIVITIES)}
        lap["seconds_idle"] = self._seconds[_IDLE]
        self._seconds = [0.0] * (_IDLE + 1)
        return lap

    def open(self, place: int, by: int) -> None:
        """So many more are under way at a place of the order in which they count."""
        self._open[place] += by
        if place > self._first or (place == self._first and self._open[place]):
            return
        self._count()
        self._first = place
        while self._first < _IDLE and not self._open[self._first]:
            self._first += 1

    def _count(self) -> None:
        now = self.now()
        self._seconds[self._first] += now - self._since
        self._since = now


class _Activity:
    """Entered any number of times at once: it keeps nothing of its own."""

    __slots__ = ("_clock", "_place")

    def __init__(self, clock: Clock, place: int) -> None:
        self._clock, self._place = clock, place

    def __enter__(self) -> None:
        self._clock.open(self._place, 1)

    def __exit__(self, *_: object) -> None:
        self._clock.open(self._place, -1)
