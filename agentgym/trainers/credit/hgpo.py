"""HGPO: actions against those taken in the same state after the same recent states, the longer alike the more."""

from __future__ import annotations

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Ints
from agentgym.trainers.credit.contrasts import contrasts, joined
from agentgym.trainers.credit.gigpo import episode_advantages
from agentgym.trainers.credit.keys import Exact, Match
from agentgym.trainers.credit.states import states_of
from agentgym.trainers.credit.step_credit import StepCredit
from agentgym.trainers.credit.steps import Steps

OFFSETS = {"released": 1, "paper": 0}


class HGPO(StepCredit):
    """``A = sum w_L a_L / sum w_L``, a_L the discounted return of an action against those that agree on the last L states.

    L is 1 to ``history`` + 1, the present state included; a level whose a_L is 0 is left out. ``scale``: "none" centres only,
    "std" divides by ``std + 1e-6``, of the population. ``weights``: "released" ``(L + 1)^alpha`` [S-code], "paper" ``L^alpha``
    [S2]. ``base_group`` adds GiGPO's A_episode as a level of weight 1 [S-code]. States are those of `AgentEnv.key`, as ``match``
    sees them. An action that episodes share counts once, with the mean of their returns [R].
    Source: Hierarchy-of-Groups Policy Optimization for Long-Horizon Agentic Tasks, arXiv 2602.22817; the code adds 1e-6 to the
    sum of weights.
    """

    def __init__(
        self,
        history: int = 2,
        match: Match | None = None,
        discount: float = 0.95,
        alpha: float = 1.0,
        scale: str = "none",
        weights: str = "released",
        base_group: bool = False,
    ) -> None:
        super().__init__(discount, scale)
        if history < 0 or weights not in OFFSETS:
            raise AgentGymError(f"history is {history} and weights is {weights!r}: give 0 states or more, and {' or '.join(OFFSETS)}")
        self.history, self.match, self.alpha, self.base_group = history, match or Exact(), alpha, base_group
        self.offset = OFFSETS[weights]

    def advantages(self, steps: Steps) -> Floats:
        return self.over_levels(steps, states_of(steps, self.match))

    def over_levels(self, steps: Steps, states: Ints) -> Floats:
        """Shape (N,), from the number of the state that each action was taken in; unlike tasks share no number."""
        total = episode_advantages(steps, self.scale) if self.base_group else np.zeros(len(states))
        weights = (total != 0).astype(np.float64)
        lines = states  # the last L states as one number
        for level in range(1, self.history + 2):
            rows = np.flatnonzero(steps.number >= level - 1)
            if level > 1:
                lines = joined(lines[steps.previous], states)  # means nothing where there are fewer states: not in rows
            found = contrasts(steps.returns[rows], lines[rows], self.scale, ddof=0)
            weight = float(level + self.offset) ** self.alpha
            total[rows] += weight * found
            weights[rows] += weight * (found != 0)
        averaged: Floats = total / np.where(weights, weights, 1.0)
        return averaged
