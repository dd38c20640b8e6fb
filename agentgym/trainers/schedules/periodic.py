"""Periodic asynchrony: the learner learns from what has ended while the rest of the batch is played, and all of it is on-policy."""

from __future__ import annotations

from agentgym.trainers.schedules.synchronous import Synchronous


class Periodic(Synchronous):
    """As `Synchronous`, but a task is learnt from as soon as its trees are complete; the optimiser step waits for all.

    Gradients add up in the order in which tasks end, and their sum is that of the whole batch up to rounding. So nothing may hang on the
    batch as a whole: credit that says ``apart``, an objective that measures no packs, a fixed divisor
    (`agentgym.trainers.divisors.Constant`), and one optimiser step for each batch. Figures of the credit are means over parts, by their
    episodes with a verdict. Source: Periodic Asynchrony, arXiv 2511.18871 [S-2nd]; that parts
    are whole tasks, as many as have ended, is ours [R].
    """
