"""One step of a training, without what surrounds it."""

import asyncio
from typing import Any

from agentgym.clock import Clock
from agentgym.trainers.loop import train_step
from agentgym.trainers.playing import playing


def one_step(run: Any) -> Any:
    """Its metrics, and the trees that were played."""
    clock = Clock()
    metrics, played, _ = asyncio.run(train_step(run, playing(run, None, clock), clock, 0))
    return metrics, played
