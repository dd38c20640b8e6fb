"""Credits that bring models of their own: what is missing, and how a run goes on."""

from __future__ import annotations

import asyncio
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from credit_models import Says, credited, episodes, valued
from forests import random_model
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model
from agentgym.policies.tiny import tiny_chat as chat_of
from agentgym.policies.transformers import TransformersPolicy
from agentgym.rollout import Limits
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.trainers.credit.gae import GAE
from agentgym.trainers.credit.importance import Corrected
from agentgym.trainers.credit.logprobs import WithLogprobs
from agentgym.trainers.credit.prime import PRIME
from agentgym.trainers.credit.process_rewards import process_learner
from agentgym.trainers.learner import Frozen, TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.implicit_reward import ImplicitReward
from agentgym.trainers.seams import asked
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.trainers.values import SquaredError, ValueLearner


@pytest.mark.parametrize("make", [lambda model: process_learner(model, 1e-2), lambda model: ValueLearner(model, 1e-2)])
def test_a_second_learners_state_goes_on_to_the_last_bit(make: Any) -> None:
    def step(learner: Any, seed: int) -> float:
        packed = valued(seed)
        packed.streams["reference"] = np.zeros(len(packed))
        objective = SquaredError() if isinstance(learner, ValueLearner) else ImplicitReward(3)
        loss: float = learner.accumulate(packed, objective)["loss"]
        learner.step()
        return loss

    first, second = make(random_model("Llama")), make(random_model("Llama", seed=5))
    step(first, 0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    expected = [step(first, seed) for seed in (1, 2, 3)]
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert [step(second, seed) for seed in (1, 2, 3)] == expected


@pytest.mark.parametrize("credit", [PRIME(), PRIME(update="before"), GAE()])
def test_a_batch_of_nothing_teaches_nothing(credit: Any) -> None:
    models = {"process": Says(), "reference": Says(), "value": Says()}
    assert credited(credit, models) == []
    assert math.isnan(credit.metrics()["reward"])
    assert models["process"].steps == models["value"].steps == 0


def _training(credit: Any, source: Any = None, **others: Any) -> Training:
    nothing: Any = None
    learner = TorchLearner(random_model("Llama"), 1e-3)
    source = source or Uniform([Task("task", "")])
    return Training(nothing, nothing, nothing, source, Groups(2), credit, ClippedSurrogate(), learner, nothing, **others)


@pytest.mark.parametrize("credit", [PRIME(), GAE(), WithLogprobs(PRIME(), {"old": "learner"}), Corrected(GAE(), [])])
def test_a_missing_model_is_refused_as_the_training_is_made(credit: Any) -> None:
    assert len(asked(credit)) in (1, 2)
    with pytest.raises(AgentGymError, match=r"needs .*'(process|value)'.* pass models="):
        _training(credit)
    some = {"reference": Frozen(random_model("Llama"))}
    with pytest.raises(AgentGymError, match=r"needs '(process|value)' among"):
        _training(credit, models=some)
    _training(credit, models={name: make(random_model("Llama")) for name, make in asked(credit).items()})


def test_a_missing_model_is_refused_without_a_training_too() -> None:
    tree = episodes(2, 2, rewards=[1.0, 0.0])
    with pytest.raises(AgentGymError, match="'reference'"):
        credited(PRIME(), {}, tree)
    with pytest.raises(AgentGymError, match="model 'process'"):
        credited(PRIME(), {"reference": Says()}, tree)
    with pytest.raises(AgentGymError, match="model 'value'"):
        credited(GAE(), {"learner": None}, tree)


async def _play(folder: Path, steps: int, make_credit: Any, source: Any = None, most: int = 99) -> dict[str, Any]:
    """A run of the tiny policy; after ``most`` steps in one go it dies."""
    torch.set_num_threads(1)
    tokenizer = TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)
    model = new_model(len(tokenizer), seed=0)
    policy = TransformersPolicy(model, chat_of(tokenizer))
    credit = make_credit()
    run = Training(
        make_env=Letters,
        actor=policy,
        chat=policy.chat,
        source=source or Uniform(Letters().tasks("train")),
        expander=Groups(4),
        credit=credit,
        objective=ClippedSurrogate(),
        learner=TorchLearner(model, 1e-3),
        sync=SharedWeights(policy),
        limits=Limits(tokens=200, turn_tokens=8),
        batch=2,
        models={name: make(model) for name, make in asked(credit).items()},
    )
    store = RunStore.open(folder) if (folder / "run.json").exists() else RunStore.create(folder, {})
    heard: list[dict[str, float]] = []

    def done(step: int, metrics: Any, trees: Any) -> None:
        heard.append({name: value for name, value in metrics.items() if not name.startswith("seconds")})
        if len(heard) == most:
            raise KeyboardInterrupt

    await train(run, steps, store, done, checkpoint_every=1)
    states = {"policy": run.learner.state_dict(), **{k: m.state_dict() for k, m in run.models.items() if hasattr(m, "state_dict")}}
    return {"last": heard[-1], "states": states}


@pytest.mark.parametrize(("name", "make"), [("process", lambda: PRIME(rate=1e-2)), ("value", lambda: GAE(rate=1e-2, decay=0.95))])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, name: str, make: Any) -> None:
    whole = asyncio.run(_play(tmp_path / "whole", 3, make))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(_play(tmp_path / "killed", 3, make, most=2))
    again = asyncio.run(_play(tmp_path / "killed", 3, make))
    assert again["last"] == pytest.approx(whole["last"], abs=0, rel=0, nan_ok=True)
    for learner in ("policy", name):
        one, other = (run["states"][learner]["model"] for run in (whole, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert whole["states"][learner]["version"] == again["states"][learner]["version"] > 0
