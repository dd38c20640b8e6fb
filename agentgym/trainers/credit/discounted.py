"""Rewards of every turn, discounted: an action is as good as what came after it is better than what came after the others."""

from __future__ import annotations

from agentgym.pack import Floats
from agentgym.trainers.credit.contrasts import contrasts, joined
from agentgym.trainers.credit.step_credit import StepCredit
from agentgym.trainers.credit.steps import Steps


class Discounted(StepCredit):
    """``A_t = R_t - mean`` over the t-th actions of a task's episodes, ``R_t = sum over j >= t of discount^(j - t) r_j``.

    For environments whose turns earn rewards of their own: what was earned before an action is not put down to it. ``scale``:
    "std" (default) divides by ``std + 1e-6`` (n - 1), "none" centres only. Where all other episodes have ended, the advantage is
    0. An action that episodes share counts once, with the mean of their returns. Returns to go, against a group at each turn [R].
    """

    def __init__(self, discount: float = 1.0, scale: str = "std") -> None:
        super().__init__(discount, scale)

    def advantages(self, steps: Steps) -> Floats:
        return contrasts(steps.returns, joined(steps.task, steps.number), self.scale)
