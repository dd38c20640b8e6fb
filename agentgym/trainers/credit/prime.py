"""PRIME: a second learner, taught outcomes alone, rewards every token by its log-ratio to a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, figures, groups_of
from agentgym.trainers.credit.logprobs import write_logprobs
from agentgym.trainers.credit.process_rewards import learn_outcomes, process_learner, process_rewards
from agentgym.trainers.credit.rloo import leave_one_out
from agentgym.trainers.credit.tokens import mean_through, whitened_together, write_tokens
from agentgym.trainers.credit.verdicts import alike
from agentgym.trainers.learner import Frozen
from agentgym.trainers.seams import Metrics
from agentgym.turn import Turn, TurnTree


class PRIME(Stateless):
    """``A_t = coefficient * process_t + RLOO(R)``, whitened over the batch's tokens; R in [0, 1] is the episode's reward.

    ``q_t = logp of "process" - logp of "reference"``, over the batch's largest ``|sum over j >= t of q_j|`` with ``normalise``;
    ``process_t`` sums ``q_j n / (n - 1) - sum over the n episodes of mean(q_i) / (n - 1)`` over j >= t. Then "process" takes one
    step of `ImplicitReward` on the whole batch; the code steps by mini-batches. With ``update="before"`` it does so before it scores.

    A task with one episode is refused; one that lost all verdicts but one has 0 [R]. A token that several episodes share has the mean
    of theirs, and is whitened once [R]. The code drops prompts whose accuracy is beyond [0.2, 0.8] (here a source's ``admit``), and
    its configuration has a coefficient of 5 that it does not apply. Models: "process", which learns, and "reference". Source:
    Process Reinforcement through Implicit Rewards, arXiv 2502.01456 [S-code].
    """

    writes = frozenset({"advantage", "process", "reference"})

    def __init__(
        self,
        rate: float = 1e-6,
        beta: float = 0.05,
        coefficient: float = 1.0,
        normalise: bool = True,
        update: Literal["after", "before"] = "after",
        max_tokens: int = 4096,
    ) -> None:
        if update not in ("after", "before"):
            raise AgentGymError(f"update is {update!r}: choose 'after' or 'before'")
        self.beta, self.coefficient, self.normalise, self.update, self.max_tokens = beta, coefficient, normalise, update, max_tokens
        self.models: dict[str, Callable[[Any], Any]] = {"process": partial(process_learner, rate=rate), "reference": Frozen}
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        groups = [_checked(group) for group in groups_of(trees)]
        write_logprobs(trees, "reference", models, "reference", self.max_tokens)
        learnt = self._learn(trees, groups, models) if self.update == "before" else {}
        write_logprobs(trees, "process", models, "process", self.max_tokens)
        rewards = [[process_rewards(leaf) for leaf in group.leaves] for group in groups]
        scale = largest_return(rewards) if self.normalise else 1.0
        advantages: dict[Turn, Floats] = {}
        for group, q in zip(groups, rewards, strict=True):
            advantages |= mean_through(group.leaves, token_advantages([own / scale for own in q], group.rewards, self.coefficient))
        write_tokens(trees, "advantage", whitened_together(advantages))
        contrasts = sum(not alike(group.rewards) for group in groups)
        self._metrics = figures(trees, groups, contrasts) | (learnt or self._learn(trees, groups, models))

    def _learn(self, trees: Sequence[TurnTree], groups: Sequence[Group], models: Mapping[str, Any]) -> Metrics:
        return learn_outcomes(models["process"], trees, groups, self.beta, self.max_tokens)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def token_advantages(q: Sequence[Floats], rewards: Floats, coefficient: float = 1.0) -> list[Floats]:
    """Before whitening: one group's token rewards, n arrays, and outcomes (n,), to arrays of the same shapes. 0 for a group of one."""
    n = len(q)
    if n < 2:
        return [np.zeros(len(own)) for own in q]
    baseline = sum(float(own.mean()) for own in q if len(own)) / (n - 1)
    outcomes = leave_one_out(rewards).tolist()
    return [coefficient * _to_go(own * (n / (n - 1)) - baseline) + outcome for own, outcome in zip(q, outcomes, strict=True)]


def largest_return(q: Sequence[Sequence[Floats]]) -> float:
    """``max |sum over j >= t of q_j|`` of the episodes of all groups; 1 where there is nothing to scale by."""
    return max((float(np.abs(_to_go(own)).max(initial=0.0)) for of_group in q for own in of_group), default=0.0) or 1.0


def _to_go(rewards: Floats) -> Floats:
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1]


def _checked(group: Group) -> Group:
    wrong = [leaf.index for leaf, reward in zip(group.leaves, group.rewards.tolist(), strict=True) if not 0 <= reward <= 1]
    if wrong:
        raise AgentGymError(f"task {group.task.id}: the reward of the episode that ends in turn {wrong[0]} is not in [0, 1]")
    if sum(len(tree.leaves()) for tree in group.trees) == 1:
        raise AgentGymError(f"task {group.task.id}: PRIME compares an episode with the others of its task: play two at least")
    return group
