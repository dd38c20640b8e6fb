"""ADWIN in a training."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from resumable_run import Letters
from resumable_run import play as play_letters
from windowed import Teaches

from agentgym import Limits, Outcome
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model
from agentgym.policies.tiny import tiny_chat as chat_of
from agentgym.policies.transformers import TransformersPolicy
from agentgym.store import RunStore
from agentgym.trainers.credit import adwin
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.expanders.adwin import ADWIN
from agentgym.trainers.expanders.windows import Tokens, Turns, places
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.recipe import Recipe
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training


def test_a_recipe_names_its_parts() -> None:
    recipe = Recipe.model_validate(
        {
            "env": {"id": "agentgym/Search-v0"},
            "steps": 1,
            "expander": {
                "class": "agentgym.trainers.expanders.adwin:ADWIN",
                "windows": {"class": "agentgym.trainers.expanders.windows:Turns", "candidates": [1, 2]},
                "stale": 3,
            },
            "credit": {
                "class": "agentgym.trainers.credit.adwin:ADWIN",
                "credit": {"class": "windowed:Teaches"},
                "objective": {"class": "agentgym.trainers.objectives.clipped:ClippedSurrogate", "dual": 3},
            },
        }
    )
    expander, credit = recipe.expander.build(), recipe.credit.build()
    assert (expander.windows.candidates, expander.stale) == ((1, 2), 3)
    assert (credit.objective.dual, type(credit.credit).__name__) == (3, "Teaches")


class Longer(Letters):
    max_turns = 4


@pytest.mark.parametrize(("windows", "wrapped"), [(Turns((1, 2, 3)), OPD), (Tokens((4, 12, 20)), Teaches)])
def test_three_steps_train_on_nothing_beyond_the_window_that_the_audit_before_chose(windows: Any, wrapped: Any) -> None:
    torch.set_num_threads(1)
    tokenizer = TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)
    model = new_model(len(tokenizer), seed=0)
    policy = TransformersPolicy(model, chat_of(tokenizer))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    run = Training(
        Longer, policy, policy.chat, Uniform(Longer().tasks("train")), ADWIN(windows, size=2, probes=3, stale=2), adwin.ADWIN(wrapped()),
        ClippedSurrogate(), TorchLearner(model, 1e-3), SharedWeights(policy), limits=Limits(tokens=300, turn_tokens=8), batch=3,
        models={"teacher": PackScorer(new_model(len(tokenizer), seed=1))},
    )  # fmt: skip
    heard: list[dict[str, float]] = []

    def listen(step: int, metrics: Any, trees: Any) -> None:
        heard.append(metrics)
        for tree in trees:
            inside = [places(tree, turn) <= metrics["window"] for turn in tree.turns]
            for turn, own in zip(tree.turns, inside, strict=True):
                assert (turn.streams["weight"] > 0).tolist() == (turn.sampled & own).tolist()
        ends = [leaf.outcome is not Outcome.CANCELLED for tree in trees for leaf in tree.leaves()]
        assert (len(ends), sum(ends)) == (6, metrics["episodes"]) == (6, metrics["probes"])

    asyncio.run(train(run, 3, done=listen))
    assert [metrics["probes"] for metrics in heard] == [3, 0, 3]
    assert [metrics["audit_age"] for metrics in heard] == [2, 1, 2]
    assert heard[0]["window"] == windows.candidates[0]
    assert heard[1]["window"] == heard[2]["window"] == heard[0]["window_next"]
    assert [metrics["probe_tokens"] > 0 for metrics in heard] == [True, False, True]
    assert "window_next" not in heard[1]
    assert all(0 < metrics[f"cosine_{window}"] <= 1 + 1e-9 for metrics in (heard[0], heard[2]) for window in windows.candidates)
    assert all(metrics["gradient_norm"] > 0 for metrics in heard)
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Any) -> None:
    def trained(folder: Any, steps: int) -> tuple[str, list[dict[str, float]]]:
        asyncio.run(play_letters(folder, steps, ADWIN(Tokens((3, 6, 10)), size=2, probes=2, stale=3), adwin.ADWIN(Teaches())))
        return (folder / "weights").read_text(), list(RunStore.open(folder).read("metrics"))

    whole = trained(tmp_path / "whole", 5)
    trained(tmp_path / "cut", 2)
    assert trained(tmp_path / "cut", 5) == whole
    windows = [line["window"] for line in whole[1]]
    assert windows[0] == 3 < windows[1]  # the window that the resumed run went on with was found before
