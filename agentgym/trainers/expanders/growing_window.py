"""A window that grows with every rollout: the baseline of ADWIN."""

from __future__ import annotations

from agentgym.trainers.expanders.adwin import ADWIN
from agentgym.trainers.expanders.windows import Windows


class GrowingWindow(ADWIN):
    """Episodes up to a window that grows from the first candidate to the last over ``steps`` rollouts, without probes [S2]."""

    def __init__(self, windows: Windows, steps: int, size: int = 1) -> None:
        super().__init__(windows, size, probes=0, stale=1)
        self.steps = steps

    def _renew(self) -> None:
        super()._renew()
        first, last = self.windows.candidates[0], self.windows.candidates[-1]
        self.window = round(first + (last - first) * min(1.0, (self.age - 1) / self.steps))
