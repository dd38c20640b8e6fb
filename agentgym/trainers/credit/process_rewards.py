"""An implicit process reward model: a learner that is taught outcomes alone, and rewards each token by its log-ratio to a reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentgym.pack import Floats
from agentgym.trainers.credit.groups import Group
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.implicit_reward import ImplicitReward
from agentgym.trainers.packing import ByWholeTree
from agentgym.trainers.seams import Metrics
from agentgym.turn import Turn, TurnTree, path


def process_learner(model: Any, rate: float = 1e-6) -> TorchLearner:
    """A learner of its own on a copy of the policy's model, with PRIME's gradient clip of 10."""
    return TorchLearner(copy.deepcopy(model).requires_grad_(True), rate, max_grad_norm=10.0)


def learn_outcomes(learner: Any, trees: Sequence[TurnTree], groups: Sequence[Group], beta: float, max_tokens: int) -> Metrics:
    """One step of `ImplicitReward` on the judged episodes of a batch; none where nothing was sampled. Gives what it says of it."""
    episodes = sum(any(turn.sampled_tokens for turn in path(leaf)) for group in groups for leaf in group.leaves)
    if not episodes:
        return {}
    token_mean(trees)  # marks what is learnt from; `ImplicitReward` itself counts episodes
    objective = ImplicitReward(episodes, beta)
    found = [learner.accumulate(packed, objective) for packed in ByWholeTree(max_tokens)(trees)]
    loss, accuracy = (sum(metrics.get(name, 0.0) for metrics in found) for name in ("loss", "process_accuracy"))
    norm = learner.step()["gradient_norm"]
    return {"process_loss": loss, "process_accuracy": accuracy, "process_gradient_norm": norm}


def process_rewards(leaf: Turn) -> Floats:
    """Of the tokens that were sampled in an episode, by its last turn: the stream ``process`` less ``reference``."""
    turns = path(leaf)
    ratios = np.concatenate([turn.streams["process"] - turn.streams["reference"] for turn in turns])
    found: Floats = ratios[np.concatenate([turn.sampled for turn in turns])]
    return found
