"""Training on what older weights sampled, at a chosen distance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.policies.sync import CopiedWeights, SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.rollout import Limits
from agentgym.store import RunStore
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.schedules.lagging import Lagging
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training


def _run(sync: type, steps: int = 4) -> Training:
    torch.set_num_threads(1)
    tokenizer = TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)
    policy = TransformersPolicy(new_model(len(tokenizer), seed=0), tiny_chat(tokenizer))
    made = sync(policy)
    return Training(
        Letters, policy, policy.chat, Uniform(Letters().tasks("train")), Groups(4), GRPO(), ClippedSurrogate(),
        TorchLearner(made.model, 1e-2), made, Lagging(steps), limits=Limits(tokens=200, turn_tokens=8), batch=2,
    )  # fmt: skip


def _played(run: Training, steps: int, folder: Path | None = None, most: int = 99) -> list[Any]:
    """The policy version that sampled each step's tokens, with the schedule's own count; after ``most`` steps it dies."""
    heard: list[Any] = []

    def done(step: int, metrics: Any, trees: Any) -> None:
        versions = {version for tree in trees for turn in tree.turns for version, _ in turn.versions}
        heard.append((versions, run.learner.version, metrics["lag"]))
        if len(heard) == most:
            raise KeyboardInterrupt

    store = None
    if folder is not None:
        store = RunStore.open(folder) if (folder / "run.json").exists() else RunStore.create(folder, {})
    asyncio.run(train(run, steps, store, done, checkpoint_every=1))
    return heard


def test_the_actor_keeps_old_weights_until_a_push_is_due() -> None:
    run = _run(CopiedWeights)
    before = [weight.clone() for weight in run.actor.model.parameters()]
    assert _played(run, 1) == [({0}, 2, 0.0)]
    assert all(map(torch.equal, before, run.actor.model.parameters()))
    assert not all(map(torch.equal, before, run.sync.model.parameters()))
    run = _run(CopiedWeights)
    assert _played(run, 5) == [({0}, 2, 0.0), ({0}, 4, 2.0), ({4}, 6, 0.0), ({4}, 8, 2.0), ({8}, 10, 0.0)]


def test_old_samples_are_told_by_their_ratios() -> None:
    run, ratios = _run(CopiedWeights), []
    asyncio.run(train(run, 2, done=lambda step, metrics, trees: ratios.append(metrics["kl"])))
    assert ratios[1] > 3 * ratios[0]


def test_a_run_that_was_killed_goes_on_with_the_old_weights(tmp_path: Path) -> None:
    whole = _run(CopiedWeights)
    expected = _played(whole, 3)
    with pytest.raises(KeyboardInterrupt):
        _played(_run(CopiedWeights), 3, tmp_path / "run", most=2)
    again = _run(CopiedWeights)
    assert _played(again, 3, tmp_path / "run") == expected[1:]  # the second step died before its checkpoint
    assert all(map(torch.equal, whole.sync.model.parameters(), again.sync.model.parameters()))
    assert all(map(torch.equal, whole.actor.model.parameters(), again.actor.model.parameters()))


def test_weights_that_are_shared_cannot_lag() -> None:
    with pytest.raises(AgentGymError, match="Lagging needs an actor with weights of its own, and SharedWeights gives it none"):
        _run(SharedWeights)
    with pytest.raises(AgentGymError, match="steps is 0"):
        Lagging(0)
