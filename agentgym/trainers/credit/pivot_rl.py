"""PivotRL: reinforcement of single turns, at those turns of a demonstration where the policy is of two minds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats
from agentgym.trainers.credit.equivalence import Equivalence, SameObservation
from agentgym.trainers.credit.grpo import EPSILON, group_advantages, per_kilotoken
from agentgym.trainers.credit.tries import EQUIVALENT, PIVOT, is_cut_off, tried
from agentgym.trainers.credit.verdicts import alike
from agentgym.trainers.demonstrations import solved
from agentgym.turn import Turn, TurnTree


class PivotRL(Stateless):
    """The reward of a try is its ``equivalence`` to the demonstrated turn; a group are the tries at one turn.

    A turn is a pivot where the rewards differ and their mean is below ``hardest``, and only the tries at pivots are trained. The tag
    ``pivots`` of a tree says that this was found out before, and then no mean is too high: what is learnt is not dropped halfway. A reward
    is compared with the mean of the others and divided by their deviation + 1e-6, if they have any; with ``std="group"`` both are
    the whole group's [R]. Tries that a fault ended are in no group; one that was cut off has reward 0. A turn whose context
    came before in the batch is left out [R], and so is one whose own action is not equivalent to itself.

    Metrics: ``reward``, the mean over all tries; ``pivot_success``, that over the tries at pivots; ``pivots_seen`` and ``pivots_kept``, the
    numbers of groups; ``groups_with_signal``, the share that was kept; ``zero_variance``, that whose rewards are all alike;
    ``turns_rejected``; ``demonstrations_failed``, those without full reward, also because the environment went another way.

    What it finds of a turn, `agentgym.trainers.sources.pivots` reads. Source: PivotRL: High Accuracy Agentic Post-Training at Low Compute
    Cost, arXiv 2603.21383: filter, its 0.6, and that it is applied before training [S2]; advantages, of NeMo RL [S-code].
    """

    writes = frozenset({"advantage", "trained"})

    def __init__(
        self, equivalence: Equivalence | None = None, hardest: float = 0.6, std: Literal["leave_one_out", "group"] = "leave_one_out"
    ) -> None:
        if not 0 < hardest <= 1:
            raise AgentGymError(f"hardest is {hardest}: the mean reward below which a turn is a pivot must lie above 0, and be 1 at most")
        if std not in ("leave_one_out", "group"):
            raise AgentGymError(f"std is {std!r}: choose 'leave_one_out' or 'group'")
        self.equivalence: Equivalence = equivalence or SameObservation()
        self.hardest = hardest
        self.advantages = leave_one_out_advantages if std == "leave_one_out" else group_advantages
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        stops = models["chat"].stop_ids if "chat" in models else None
        given: dict[Turn, float] = {}
        groups: list[Floats] = []
        kept: list[Floats] = []
        rejected = 0
        for turn, tries, profiled in tried(trees):
            if self.equivalence(turn, turn) < 1:
                rejected += 1
                continue
            rewards = np.array([0.0 if is_cut_off(one, stops) else self.equivalence(turn, one) for one in tries], dtype=np.float64)
            is_pivot = not alike(rewards) and (profiled or float(rewards.mean()) < self.hardest)
            groups.append(rewards)
            if is_pivot:
                kept.append(rewards)
                given |= zip(tries, self.advantages(rewards).tolist(), strict=True)
            turn.metrics = {**turn.metrics, PIVOT: float(is_pivot)}
            for one, reward in zip(tries, rewards.tolist(), strict=True):
                one.metrics = {**one.metrics, EQUIVALENT: reward}
        for turn in (turn for tree in trees for turn in tree.turns):
            turn.streams["advantage"] = np.where(turn.sampled, given.get(turn, 0.0), 0.0)
            turn.streams["trained"] = np.where(turn.sampled, float(turn in given), 0.0)
        self._metrics = {**_figures(groups, kept), "turns_rejected": float(rejected)}
        self._metrics["demonstrations_failed"] = float(sum(not any(map(solved, tree.leaves()[:1])) for tree in trees))
        self._metrics["contrasts_per_kilotoken"] = per_kilotoken(len(kept), trees)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def leave_one_out_advantages(rewards: Floats) -> Floats:
    """Shape (n,) to shape (n,): against the mean of the others, over their sample deviation + 1e-6 if they are not all alike."""
    advantages = np.zeros(len(rewards))
    for number, reward in enumerate(() if alike(rewards) else rewards):
        others = np.delete(rewards, number)
        advantages[number] = (reward - others.mean()) / (1.0 if alike(others) else others.std(ddof=1) + EPSILON)
    return advantages


def _figures(groups: Sequence[Floats], kept: Sequence[Floats]) -> dict[str, float]:
    every, chosen = (np.concatenate([np.zeros(0), *rewards]) for rewards in (groups, kept))
    return {
        "reward": float(every.mean()) if len(every) else float("nan"),
        "pivot_success": float(chosen.mean()) if len(chosen) else float("nan"),
        "pivots_seen": float(len(groups)),
        "pivots_kept": float(len(kept)),
        "groups_with_signal": len(kept) / max(1, len(groups)),
        "zero_variance": sum(map(alike, groups)) / max(1, len(groups)),
    }
