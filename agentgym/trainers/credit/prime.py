"""PRIME: a second learner, taught outcomes alone, rewards every token by its log-ratio to a reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, groups_of
from agentgym.trainers.credit.grpo import per_kilotoken
from agentgym.trainers.credit.logprobs import write_logprobs
from agentgym.trainers.credit.rloo import leave_one_out
from agentgym.trainers.credit.tokens import whitened_together, write_tokens
from agentgym.trainers.credit.verdicts import alike
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import Frozen, TorchLearner
from agentgym.trainers.objectives.implicit_reward import ImplicitReward
from agentgym.trainers.packing import ByWholeTree
from agentgym.turn import Turn, TurnTree, path


def process_learner(model: Any, rate: float = 1e-6) -> TorchLearner:
    """A learner of its own on a copy of the policy's model, with PRIME's gradient clip of 10."""
    return TorchLearner(copy.deepcopy(model).requires_grad_(True), rate, max_grad_norm=10.0)


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
        rewards = [[_ratios(leaf) for leaf in group.leaves] for group in groups]
        scale = largest_return(rewards) if self.normalise else 1.0
        advantages: dict[Turn, Floats] = {}
        for group, q in zip(groups, rewards, strict=True):
            advantages |= _of_turns(group.leaves, token_advantages([own / scale for own in q], group.rewards, self.coefficient))
        write_tokens(trees, "advantage", whitened_together(advantages))
        self._metrics = _figures(trees, groups) | (learnt or self._learn(trees, groups, models))

    def _learn(self, trees: Sequence[TurnTree], groups: Sequence[Group], models: Mapping[str, Any]) -> dict[str, float]:
        episodes = sum(any(turn.sampled_tokens for turn in path(leaf)) for group in groups for leaf in group.leaves)
        if not episodes:
            return {}
        token_mean(trees)  # marks what is learnt from; `ImplicitReward` itself counts episodes
        objective = ImplicitReward(episodes, self.beta)
        found = [models["process"].accumulate(packed, objective) for packed in ByWholeTree(self.max_tokens)(trees)]
        loss, accuracy = (sum(metrics.get(name, 0.0) for metrics in found) for name in ("loss", "process_accuracy"))
        norm = models["process"].step()["gradient_norm"]
        return {"process_loss": loss, "process_accuracy": accuracy, "process_gradient_norm": norm}

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


def _ratios(leaf: Turn) -> Floats:
    turns = path(leaf)
    ratios = np.concatenate([turn.streams["process"] - turn.streams["reference"] for turn in turns])
    found: Floats = ratios[np.concatenate([turn.sampled for turn in turns])]
    return found


def _figures(trees: Sequence[TurnTree], groups: Sequence[Group]) -> dict[str, float]:
    mixed = sum(not alike(group.rewards) for group in groups)
    rewards = np.concatenate([np.zeros(0), *(group.rewards for group in groups)])
    return {
        "reward": float(rewards.mean()) if len(rewards) else float("nan"),
        "groups_with_signal": mixed / max(1, len(groups)),
        "contrasts_per_kilotoken": per_kilotoken(mixed, trees),
    }


def _of_turns(leaves: Sequence[Turn], advantages: Sequence[Floats]) -> dict[Turn, Floats]:
    """The mean over the episodes through each turn, for its sampled tokens."""
    through: dict[Turn, list[Floats]] = {}
    for leaf, own in zip(leaves, advantages, strict=True):
        turns = path(leaf)
        for turn, part in zip(turns, np.split(own, np.cumsum([turn.sampled_tokens for turn in turns])[:-1]), strict=True):
            through.setdefault(turn, []).append(part)
    return {turn: np.mean(parts, axis=0) for turn, parts in through.items()}


def _checked(group: Group) -> Group:
    wrong = [leaf.index for leaf, reward in zip(group.leaves, group.rewards.tolist(), strict=True) if not 0 <= reward <= 1]
    if wrong:
        raise AgentGymError(f"task {group.task.id}: the reward of the episode that ends in turn {wrong[0]} is not in [0, 1]")
    if sum(len(tree.leaves()) for tree in group.trees) == 1:
        raise AgentGymError(f"task {group.task.id}: PRIME compares an episode with the others of its task: play two at least")
    return group
