"""POW3R: the criteria of a rubric count for more where they tell the present episodes apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group, GroupCredit, scores
from agentgym.trainers.credit.grpo import group_advantages

LEAST = 0.1  # of a criterion that all episodes meet, or none


class POW3R(GroupCredit):
    """GRPO's advantages of ``R = sum_j w~_j S_j / sum_j |w~_j|``, over a rubric in place of the environment's reward.

    ``rubric`` is category -> criterion -> weight. A criterion's score in [0, 1] is the metric of its name, of an episode's last
    turn. ``w~ = w (0.1 + 4 var S)``, rescaled so that each category keeps its sum of ``|w|``; the variance is the group's, of the
    population. A negative weight keeps its sign. The metric ``reward`` is still the environment's: let it score by ``w``.

    Source: Not Every Rubric Teaches Equally: Policy-Aware Rubric Rewards for RLVR, arXiv 2605.20164: weights that grow with
    contrast and keep the totals of categories [S-2nd]; this form of them [R].
    """

    def __init__(self, rubric: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.rubric = rubric
        if not any(weight for criteria in rubric.values() for weight in criteria.values()):
            raise AgentGymError(f"the rubric {rubric} weighs nothing: give each category criteria with weights")

    def advantages(self, group: Group) -> Floats:
        weights = [weight for criteria in self.rubric.values() for weight in criteria.values()]
        category = [number for number, criteria in enumerate(self.rubric.values()) for _ in criteria]
        found = np.stack([scores(group, name) for criteria in self.rubric.values() for name in criteria], axis=1)
        if ((found < 0) | (found > 1)).any():
            wrong = group.leaves[int(((found < 0) | (found > 1)).any(axis=1).argmax())]
            raise AgentGymError(f"task {group.task.id}: a criterion's score in turn {wrong.index} lies outside [0, 1]: {wrong.metrics}")
        aware = aware_weights(found, np.array(weights, dtype=np.float64), category)
        return group_advantages(found @ aware / np.abs(aware).sum())


def aware_weights(scores: Floats, weights: Floats, category: Sequence[int]) -> Floats:
    """``w~`` of shape (J,), from scores of shape (n, J), weights of shape (J,) and the category of each criterion."""
    scaled: Floats = weights * (LEAST + 4 * np.asarray(scores, dtype=np.float64).var(axis=0))
    kept = np.bincount(category, np.abs(weights)) / np.maximum(np.bincount(category, np.abs(scaled)), np.finfo(np.float64).tiny)
    return scaled * kept[category]
