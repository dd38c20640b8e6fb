"""What a credit writes beside advantages: which tokens train, and values of any width."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import torch
from credits import group
from forests import add_turn, random_model, random_tree
from hypothesis import given as for_all
from hypothesis import strategies as st

from agentgym.errors import AgentGymError
from agentgym.expand import Groups, Stateless
from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.credit.streams import check_streams, teaches
from agentgym.trainers.divisors import sequence_mean, token_mean, turn_mean
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.trainers.seams import asked, given
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.turn import TurnTree


def _labelled() -> TurnTree:
    """An episode of one sampled action, its label beside it, and an episode that was given up."""
    tree = TurnTree("tree", Task("zebra", ""))
    root = add_turn(tree, None, [1, 2])
    add_turn(tree, root, [3, 4, 5], 2, end="done", reward=1.0)
    add_turn(tree, root, [6, 7, 8], 0, executed=False)
    add_turn(tree, root, [9, 9], 2, end="truncated", reward=None)
    for turn in tree.turns:
        turn.streams["trained"] = np.zeros(len(turn.ids))
    return tree


# Which tokens train


def test_weight_falls_on_what_a_credit_says_trains_labels_and_given_up_episodes_too() -> None:
    tree = _labelled()
    tree.turns[2].streams["trained"][:] = [1, 1, 0]
    tree.turns[3].streams["trained"][:] = [0, 2]
    for divisor, expected in (
        (token_mean, [0.25, 0.25, 0, 0, 0.5]),
        (turn_mean, [0.25, 0.25, 0, 0, 0.5]),
        (sequence_mean, [0.25, 0.25, 0, 0, 0.5]),
    ):
        divisor([tree])
        assert np.concatenate([tree.turns[n].streams["weight"] for n in (2, 3)]) == pytest.approx(expected)
        assert not any(turn.streams["weight"].any() for turn in tree.turns[:2])


def test_without_it_the_sampled_tokens_of_judged_episodes_do() -> None:
    tree = _labelled()
    for turn in tree.turns:
        del turn.streams["trained"]
    token_mean([tree])
    assert [turn.streams["weight"].tolist() for turn in tree.turns] == [[0, 0], [0.5, 0.5, 0], [0, 0, 0], [0, 0]]


@pytest.mark.parametrize("divisor", [token_mean, turn_mean, sequence_mean])
@for_all(st.integers(0, 10**6))
def test_weights_sum_to_one_whatever_trains(divisor: Any, seed: int) -> None:
    rng = random.Random(seed)
    forest = [random_tree(rng) for _ in range(3)]
    for tree in forest:
        for turn in tree.turns:
            turn.streams["trained"] = np.array([rng.choice([0.0, 0.5, 1.0]) for _ in turn.ids])
    divisor(forest)
    total = sum(turn.streams["weight"].sum() for tree in forest for turn in tree.turns)
    assert total == pytest.approx(float(any(turn.streams["trained"].any() for tree in forest for turn in tree.turns)))


def test_a_tree_teaches_by_its_advantages_or_where_there_are_none_by_what_trains() -> None:
    tree = _labelled()
    assert not teaches(tree)
    tree.turns[1].streams["trained"][0] = 1.0
    assert teaches(tree)
    for turn in tree.turns:
        turn.streams["advantage"] = np.zeros(len(turn.ids))
    assert not teaches(tree)


def test_streams_that_cannot_be_learnt_from_are_refused_by_task_and_turn() -> None:
    tree = _labelled()
    check_streams([tree])
    tree.turns[2].streams["trained"][0] = 1.0
    check_streams([tree])
    for turn in tree.turns:
        turn.streams["advantage"] = np.zeros(len(turn.ids))
    with pytest.raises(AgentGymError, match="task zebra, turn 2 of tree tree: the credit wrote trained on a token that nobody sampled"):
        check_streams([tree])
    tree.turns[2].streams["trained"][0] = 0.0
    tree.turns[1].streams["trained"][0] = -1.0
    with pytest.raises(AgentGymError, match=r"turn 1 .* trained below 0"):
        check_streams([tree])
    tree.turns[1].streams["trained"] = np.zeros(9)
    with pytest.raises(AgentGymError, match=r"turn 1 .* shape \(9,\) as trained of its 3 tokens"):
        check_streams([tree])


class Says(Stateless):
    """A credit that writes only which tokens train."""

    writes = frozenset({"trained"})
    models = {"teacher": given("teacher")}  # noqa: RUF012

    async def assign(self, trees: Any, models: Any) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


def _training(credit: Any, objective: Any, **others: Any) -> Training:
    nothing: Any = None
    learner = TorchLearner(random_model("Llama"), 1e-3)
    return Training(nothing, nothing, nothing, Uniform([Task("t", "")]), Groups(1), credit, objective, learner, nothing, **others)


def test_labels_and_ratios_do_not_go_together() -> None:
    teachers = {"teacher": object()}
    _training(Says(), CrossEntropy(), models=teachers)
    with pytest.raises(AgentGymError, match="ClippedSurrogate needs advantage, which neither Says writes"):
        _training(Says(), ClippedSurrogate(), models=teachers)
    with pytest.raises(AgentGymError, match="CrossEntropy needs trained, which neither GRPO writes"):
        _training(GRPO(), CrossEntropy())


def test_a_model_that_only_its_author_has_must_be_given() -> None:
    with pytest.raises(AgentGymError, match="Says needs 'teacher' among the models"):
        _training(Says(), CrossEntropy())
    with pytest.raises(AgentGymError, match="a model 'teacher' is needed: give it among the models"):
        asked(Groups(1), Says())["teacher"](None)


# Values of any width


def test_a_stream_may_have_several_values_for_each_token() -> None:
    tree = group(1, 0)
    tree.turns[1].streams["ids"] = np.arange(6.0).reshape(3, 2)
    (packed,) = pack([tree], 100)
    assert packed.streams["ids"].shape == (len(packed), 2)
    assert packed.streams["ids"][1:4].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert not packed.streams["ids"][4:].any()


def _packed() -> Packed:
    return pack([random_tree(random.Random(7), empty=0)], 10**6)[0]


def test_a_scorer_gives_the_likeliest_tokens_and_any_others_in_place_of_each() -> None:
    packed = _packed()
    scorer = PackScorer(random_model("Qwen3").double())
    every_id, every_logprob = scorer.topk(packed, None)
    inner = torch.from_numpy(packed.parent >= 0)
    assert every_logprob[inner].exp().sum(-1).numpy() == pytest.approx(1.0)
    ids, logprobs = scorer.topk(packed, 3)
    assert torch.equal(ids, every_id[:, :3])
    assert torch.equal(logprobs, every_logprob[:, :3])
    assert not logprobs[~inner].any()
    own = torch.from_numpy(packed.token)[:, None]
    assert torch.equal(scorer.at(packed, own)[:, 0], scorer.logprobs(packed))
    assert torch.equal(scorer.at(packed, ids), logprobs)


@pytest.mark.parametrize("cut", [10**6, 12])
def test_the_gradient_to_look_at_is_the_one_that_a_step_would_take(cut: int) -> None:
    tree = random_tree(random.Random(3))
    for turn in tree.turns:
        turn.streams["trained"] = np.ones(len(turn.ids))
    token_mean([tree])
    learner = TorchLearner(random_model("Llama").double(), 0.1)
    packs = pack([tree], cut)
    found = learner.gradient(packs, CrossEntropy())
    assert all(weight.grad is None for weight in learner.model.parameters())
    for packed in packs:
        learner.accumulate(packed, CrossEntropy())
    expected = torch.cat([weight.grad.flatten() for weight in learner.model.parameters()])
    assert torch.equal(found, expected)


# In the loop


def test_a_credit_hears_of_the_learner_and_the_chat_format_and_a_hook_of_every_step() -> None:
    """Played on the environment of the resumable run, with its policy."""
    from resumable_run import Letters

    from agentgym.policies.sync import SharedWeights
    from agentgym.policies.tiny import load
    from agentgym.policies.transformers import TransformersPolicy
    from agentgym.rollout import Limits
    from agentgym.trainers.loop import train

    class Listens(GRPO):
        async def assign(self, trees: Any, models: Any) -> None:
            heard.append((sorted(models), models["learner"] is run.learner, models["chat"] is run.chat))
            await super().assign(trees, models)

    class Counts(Stateless):
        async def begin(self, run: Training) -> None: ...

        async def after_step(self, run: Training, step: int) -> dict[str, float]:
            return {"heard_step": step, "heard_version": run.learner.version}

        def metrics(self) -> dict[str, float]:
            return {}

    model, chat = load()
    policy = TransformersPolicy(model, chat)
    heard: list[Any] = []
    logged: list[dict[str, float]] = []
    run = Training(
        Letters, policy, chat, Uniform(Letters().tasks("train")), Groups(2), Listens(), ClippedSurrogate(), TorchLearner(model, 1e-4),
        SharedWeights(policy), limits=Limits(tokens=200, turn_tokens=8), batch=2, models={"mine": 1}, hook=Counts(),
    )  # fmt: skip
    asyncio.run(train(run, 2, done=lambda step, metrics, trees: logged.append(metrics)))
    assert heard == [(["chat", "learner", "mine"], True, True)] * 2
    assert [metrics["heard_step"] for metrics in logged] == [1, 2]
    assert logged[1]["heard_version"] > 0
    assert all(metrics["rollout_turns"] == 8 and metrics["loop_steps"] == 1 for metrics in logged)


def test_what_another_actor_sampled_has_no_advantage() -> None:
    tree = group(1, 0)
    for turn in tree.turns:
        turn.streams["advantage"] = turn.sampled.astype(np.float64)
    check_streams([tree])
    tree.turns[2].author = "teacher"
    with pytest.raises(AgentGymError, match="turn 2 of tree tree: the credit wrote advantage on what 'teacher' sampled, not the policy"):
        check_streams([tree])


def test_a_forest_without_tokens_makes_no_pack() -> None:
    lost = TurnTree("lost", Task("t", ""))
    add_turn(lost, None, [], end="error", reward=None)
    assert pack([lost], 100) == []
    assert [len(packed) for packed in pack([lost, group(1, 0), lost], 100)] == [7]


def test_a_model_cannot_take_the_place_of_the_policy_or_the_learner() -> None:
    with pytest.raises(AgentGymError, match="models: learner, policy is the training's own"):
        _training(GRPO(), ClippedSurrogate(), models={"policy": 1, "learner": 2})
