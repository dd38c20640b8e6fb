"""GiGPO: episodes against episodes, and within them actions against actions that were taken in the same state."""

from __future__ import annotations

from agentgym.pack import Floats
from agentgym.trainers.credit.contrasts import contrasts
from agentgym.trainers.credit.keys import Exact, Match
from agentgym.trainers.credit.states import states_of
from agentgym.trainers.credit.step_credit import StepCredit
from agentgym.trainers.credit.steps import Steps


class GiGPO(StepCredit):
    """``A = A_episode + weight A_step``; groups are the actions of one task in the batch, whatever trees they stand in.

    A_episode compares the rewards of episodes, each counted with every action it has (``by_step``, the code's default) or once.
    A_step compares the discounted returns of actions taken in one state: `AgentEnv.key` after the action before, as ``match``
    sees it. ``scale``: "none" centres only, "std" divides by ``std + 1e-6`` (n - 1). An episode alone of its task has A_episode
    0 [R]; the code may take its reward. An action that episodes share counts once, with the mean of their rewards and returns
    [R]. Source: Group-in-Group Policy Optimization for LLM Agent Training, arXiv 2505.10978 [S-code].
    """

    def __init__(
        self, match: Match | None = None, discount: float = 0.95, weight: float = 1.0, scale: str = "none", by_step: bool = True
    ) -> None:
        super().__init__(discount, scale)
        self.match, self.weight, self.by_step = match or Exact(), weight, by_step

    def advantages(self, steps: Steps) -> Floats:
        same_state = contrasts(steps.returns, states_of(steps, self.match), self.scale)
        return episode_advantages(steps, self.scale, self.by_step) + self.weight * same_state


def episode_advantages(steps: Steps, scale: str = "none", by_step: bool = True) -> Floats:
    """A_episode of each action, shape (N,)."""
    return contrasts(steps.score, steps.task, scale, among=None if by_step else (steps.rewards, steps.rewarded))
