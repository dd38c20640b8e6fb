"""Distillation in a training: what fits, what is refused, and that it brings a learner closer to its teacher."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from credits import assigned
from distilling import OBJECTIVES, Silent, a_learner, copy_of, episode, loss_of, random_forest, scorers
from forests import random_model
from packs import learn
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.pack import pack
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import load
from agentgym.policies.transformers import TransformersPolicy
from agentgym.task import Task
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.topk import TopK
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.distillation import Distillation
from agentgym.trainers.objectives.divergences import JSD
from agentgym.trainers.objectives.sampled_kl import SampledKL
from agentgym.trainers.objectives.token_rewards import TokenRewards
from agentgym.trainers.recipe import Recipe
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training


def _training(credit: Any, objective: Any, models: Any = None) -> Training:
    nothing: Any = None
    source = Uniform([Task("task", "")])
    learner = TorchLearner(random_model("Llama"), 1e-3)
    return Training(nothing, nothing, nothing, source, Groups(2), credit, objective, learner, nothing, models=models or {})


def test_credits_and_objectives_that_do_not_fit_are_refused() -> None:
    models = {"teacher": Silent(), "reference": Silent()}
    for credit, objective, reason in (
        (TopK(), ClippedSurrogate(), "ClippedSurrogate needs advantage, which neither TopK writes"),
        (OPD(), Distillation(), "Distillation needs teacher_ids, teacher_logprobs, which neither OPD writes"),
        (TopK(), TokenRewards(), "TokenRewards needs student_logprobs, which neither TopK writes"),
        (TopK(), SampledKL(), "SampledKL needs teacher, which neither TopK writes"),
    ):
        with pytest.raises(AgentGymError, match=reason):
            _training(credit, objective, models)
    with pytest.raises(AgentGymError, match="OPD needs 'teacher' among the models"):
        _training(OPD(), ClippedSurrogate())
    for credit, objective in OBJECTIVES.values():
        _training(credit(), objective(), models)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OPD(discount=1.5), "both must lie between 0 and 1"),
        (lambda: OPD(turn_discount=0.5), "with a discount of 0 nothing reaches the next turn"),
        (lambda: OPD(clip=-1.0), "clip is -1.0"),
        (lambda: OPD(window=0), "window is 0"),
        (lambda: TopK(0), "k is 0"),
        (lambda: JSD(1.0), "at the ends use ForwardKL or ReverseKL"),
        (lambda: Distillation(rest="none"), "rest is 'none'"),  # type: ignore[arg-type]
        (lambda: SampledKL("k1"), "choose 'k2' or 'k3'"),  # type: ignore[arg-type]
        (lambda: assigned(TopK(), episode(([0.0], 0)), teacher=Silent()), "a model 'teacher' with topk"),
    ],
)
def test_bad_settings_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(AgentGymError, match=reason):
        make()


def test_a_step_brings_the_learner_closer_to_its_teacher() -> None:
    for name in ("OPD", "reverse", "forward", "token rewards", "k2"):
        credit, objective = OBJECTIVES[name]
        run = _training(credit(), objective(), scorers())
        run.learner = a_learner()
        before = _whole_divergence(run.learner)
        for step in range(3):
            forest = random_forest(3, copy_of(run.learner))
            asyncio.run(run.credit.assign(forest, {"learner": run.learner, **run.models}))
            assert np.isfinite(list(learn(run, step, forest).values())).all()
        assert _whole_divergence(run.learner) < before, name


def _whole_divergence(learner: TorchLearner) -> float:
    forest = random_forest(3)
    assigned(TopK(None), *forest, **scorers())
    token_mean(forest)
    return loss_of(learner, pack(forest, 10**6), Distillation())


RECIPES: dict[str, dict[str, Any]] = {
    "OPD": {"credit": {"class": "agentgym.trainers.credit.opd:OPD", "clip": 5}},
    "ExOPD": {
        "credit": {
            "class": "agentgym.trainers.credit.exopd:ExOPD",
            "teacher": {"class": "agentgym.trainers.credit.teachers:Routed", "field": "domain", "models": {"None": "teacher"}},
        }
    },
    "OPSD": {"credit": {"class": "agentgym.trainers.credit.opsd:OPSD"}},
    "Distillation": {
        "credit": {"class": "agentgym.trainers.credit.topk:TopK", "k": 8},
        "objective": {
            "class": "agentgym.trainers.objectives.distillation:Distillation",
            "divergence": {"class": "agentgym.trainers.objectives.divergences:JSD", "beta": 0.5},
        },
    },
    "token rewards": {
        "credit": {"class": "agentgym.trainers.credit.topk:StudentTopK", "k": None},
        "objective": {"class": "agentgym.trainers.objectives.token_rewards:TokenRewards"},
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_the_tiny_policy_from_a_teacher_like_it(name: str) -> None:
    model, chat = load()
    policy = TransformersPolicy(model, chat)
    recipe = Recipe.model_validate(
        {"env": {"id": "Letters"}, "steps": 2, "batch": 2, "models": {"teacher": "tiny"}, "limits": {"tokens": 200, "turn_tokens": 8}}
        | {"expander": {"class": "agentgym.expand:Groups", "size": 2}, "learning_rate": 1e-4, **RECIPES[name]}
    )
    found: list[str] = []

    def find_policy(name: str) -> tuple[Any, Any]:
        found.append(name)
        other = load()
        return TransformersPolicy(*other), other[1]

    run = recipe.training(Letters, policy, model, chat, SharedWeights(policy), find_policy)
    logged: list[dict[str, float]] = []
    asyncio.run(train(run, 2, done=lambda step, metrics, trees: logged.append(metrics)))
    assert found == ["tiny"]
    assert len(logged) == 2
    assert all(np.isfinite(metrics["reward"]) and metrics["teacher_tokens"] == metrics["sampled_tokens"] > 0 for metrics in logged)
    if name in ("OPD", "ExOPD"):
        assert abs(logged[0]["reverse_kl"]) < 1e-4
    if name == "Distillation":
        assert abs(logged[0]["divergence"]) < 1e-3
