"""On-policy distillation: the policy acts, and a teacher says of each token that it sampled how much likelier it should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.expand import Stateless
from agentgym.pack import Floats, behaviour
from agentgym.trainers.credit.logprobs import write_logprobs
from agentgym.trainers.credit.returns import to_go
from agentgym.trainers.credit.streams import teaches
from agentgym.trainers.credit.teachers import Routed, by_teacher, figures, teachers
from agentgym.trainers.credit.tokens import checked_window, mark_sampled
from agentgym.turn import Turn, TurnTree


class OPD(Stateless):
    """``A_t = coefficient * (teacher logp - behaviour logp)`` on every token that the policy sampled, whatever became of its episode.

    In expectation the gradient of KL(policy | teacher) in the states that were visited. With ``discount``, what a token brings about
    counts too: one d positions and j turns further on ``discount^d * turn_discount^j`` times, observations counting as positions with no
    reward of their own; a token that episodes share gets their mean [R]. ``clip`` then bounds A, and ``window`` trains the first so many
    sampled tokens of an episode alone. A turn that failed does not train. ``teacher`` names a model of the training, or is `Routed`.

    Metrics: ``reward``, ``reverse_kl`` (mean of behaviour - teacher logp over what trains, in nats) and its ``reverse_kl_p95``,
    ``teacher_tokens``, ``groups_with_signal``. Source: On-Policy Distillation (Thinking Machines, 2025) and tinker-cookbook [S-code];
    "On-Policy Distillation of Language Models", arXiv 2306.13649 [S-paper].
    """

    writes = frozenset({"advantage", "trained", "teacher"})

    def __init__(
        self,
        teacher: str | Routed = "teacher",
        coefficient: float = 1.0,
        discount: float = 0.0,
        turn_discount: float = 0.0,
        clip: float | None = None,
        window: int | None = None,
        max_tokens: int = 4096,
    ) -> None:
        if not (0 <= discount <= 1 and 0 <= turn_discount <= 1):
            raise AgentGymError(f"discount is {discount}, turn_discount {turn_discount}: both must lie between 0 and 1")
        if turn_discount and not discount:
            raise AgentGymError(f"turn_discount is {turn_discount}, but with a discount of 0 nothing reaches the next turn: set discount")
        if clip is not None and not clip > 0:
            raise AgentGymError(f"clip is {clip}: it must be above 0, or null for none")
        self.teacher, self.coefficient, self.discount, self.turn_discount = teacher, coefficient, discount, turn_discount
        self.clip, self.window, self.max_tokens = clip, checked_window(window), max_tokens
        self.models: dict[str, Callable[[Any], Any]] = teachers(teacher)
        self._metrics: dict[str, float] = {}

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        mark_sampled(trees, self.window)
        self.score(trees, models)
        for tree in trees:
            signals = {turn: _of_trained(tree, turn, self.signal(turn), self.clip) for turn in tree.turns}
            if self.discount:
                signals = to_go(tree, signals, self.discount, self.turn_discount)
            for turn, signal in signals.items():
                bound = np.inf if self.clip is None else self.clip
                turn.streams["advantage"] = np.clip(self.coefficient * signal * (turn.streams["trained"] > 0), -bound, bound)
        self._metrics = {**figures(trees), **_divergence(trees), "groups_with_signal": sum(map(teaches, trees)) / max(1, len(trees))}

    def score(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        """Write the stream ``teacher``."""
        for name, own in by_teacher(trees, self.teacher).items():
            write_logprobs(own, "teacher", models, name, self.max_tokens)

    def signal(self, turn: Turn) -> Floats:
        """What each token of a turn earns by itself, shape (len(ids),); read where it trains."""
        return turn.streams["teacher"] - behaviour(turn)

    def metrics(self) -> dict[str, float]:
        return self._metrics


def _of_trained(tree: TurnTree, turn: Turn, signal: Floats, clip: float | None) -> Floats:
    found: Floats = np.where(turn.streams["trained"] > 0, signal, 0.0)
    if clip is not None:
        found = np.where(np.isneginf(found), -clip, found)  # a teacher may never write some tokens
    if not np.isfinite(found).all():
        raise AgentGymError(
            f"task {tree.task.id}, turn {turn.index} of tree {tree.id}: the teacher's log-probability of a token that the policy "
            "sampled is not finite: set clip, if it is a token that the teacher may not write"
        )
    return found


def _divergence(trees: Sequence[TurnTree]) -> dict[str, float]:
    ratios = [(behaviour(turn) - turn.streams["teacher"])[turn.streams["trained"] > 0] for tree in trees for turn in tree.turns]
    k1 = np.concatenate([np.zeros(0), *ratios])
    k1 = k1[np.isfinite(k1)]
    return {"reverse_kl": float(k1.mean()), "reverse_kl_p95": float(np.percentile(k1, 95))} if len(k1) else {}
