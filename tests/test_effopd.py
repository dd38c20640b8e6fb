"""EffOPD: candidates on one line, kept only where a fixed set of tasks goes strictly better."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forests import random_model
from hypothesis import given
from hypothesis import strategies as st
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.evaluation import evaluate
from agentgym.expand import Groups
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.rollout import Limits
from agentgym.store import RunStore
from agentgym.trainers.credit.grpo import GRPO
from agentgym.trainers.hooks.effopd import EffOPD, is_trigger
from agentgym.trainers.hooks.extrapolation import extrapolate
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training


class Scores:
    """Answers with given scores, the last one for ever, and keeps what it was asked about."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.asked = list(scores), []

    async def __call__(self, weights: Any) -> float:
        self.asked.append(weights["w"].clone())
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]


class Rises(Scores):
    async def __call__(self, weights: Any) -> float:
        await super().__call__(weights)
        return float(len(self.asked))


def _found(weights: torch.Tensor, base: torch.Tensor, score: Any, iterations: int = 5) -> Any:
    return asyncio.run(extrapolate({"w": weights}, {"w": base}, score, iterations))


# The rule


def test_the_candidates_lie_3_5_7_9_and_11_times_as_far() -> None:
    score = Rises(0)
    found = _found(torch.tensor(1.5), torch.tensor(1.0), score)
    assert [float(asked) for asked in score.asked] == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    assert (float(found.weights["w"]), found.multiple, found.score) == (6.5, 11, 6.0)


def test_the_codes_own_steps_lead_to_the_same_points() -> None:
    score = Rises(0)
    _found(torch.tensor(1.5), torch.tensor(1.0), score)
    present, factor, points, factors = 1.5, 2.0, [], []
    for _ in range(5):
        present += factor * (present - 1.0)
        points.append(present)
        factors.append(factor)
        factor /= 1 + factor
    assert factors == pytest.approx([2, 0.666667, 0.4, 0.285714, 0.222222], abs=1e-6)
    assert [float(asked) for asked in score.asked[1:]] == pytest.approx(points)


def test_a_tie_ends_the_walk_at_the_last_that_was_better() -> None:
    score = Scores(0.40, 0.44, 0.46, 0.46)
    found = _found(torch.tensor([1.5, 2.0]), torch.tensor([1.0, 2.2]), score)
    assert found.weights["w"].tolist() == pytest.approx([3.5, 1.2])
    assert (found.multiple, found.score, len(score.asked)) == (5, 0.46, 4)


def test_it_is_tried_at_powers_of_two() -> None:
    assert [step for step in range(1, 41) if is_trigger(step)] == [1, 2, 4, 8, 16, 32]


every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


@every_dtype
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5), st.integers(1, 7))
def test_a_constant_score_returns_the_weights_to_the_last_bit(dtype: Any, pairs: Any, iterations: int) -> None:
    weights, base = torch.tensor(pairs, dtype=dtype).T
    found = _found(weights, base, Scores(0.3), iterations)
    assert torch.equal(found.weights["w"], weights)
    assert (found.multiple, found.score) == (1, 0.3)


@every_dtype
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5), st.integers(1, 7))
def test_a_score_that_always_rises_returns_the_farthest(dtype: Any, pairs: Any, iterations: int) -> None:
    weights, base = torch.tensor(pairs, dtype=dtype).T
    found = _found(weights, base, Rises(0), iterations)
    far = 2 * iterations + 1
    expected = base.double() + far * (weights.double() - base.double())
    assert found.multiple == far
    assert found.weights["w"].dtype == dtype
    assert torch.allclose(found.weights["w"].double(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-4)


def test_a_coarse_type_is_rounded_once() -> None:
    base, weights = (torch.tensor([value], dtype=torch.bfloat16) for value in (1.2734375, 1.5625))
    assert float(_found(weights, base, Rises(0)).weights["w"]) == 4.4375  # in bfloat16 throughout: 4.46875


# In training


class Pushes(SharedWeights):
    """Keeps the weights of every push."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.pushed: list[dict[str, torch.Tensor]] = []

    async def push(self, learner: Any) -> None:
        self.pushed.append(_weights(self.policy.model))
        await super().push(learner)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _run(hook: Any, make_env: Any = Letters, rate: float = 1e-3) -> Training:
    torch.set_num_threads(1)
    tokenizer = TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3)
    model = new_model(len(tokenizer), seed=0)
    policy = TransformersPolicy(model, tiny_chat(tokenizer))
    return Training(
        make_env, policy, policy.chat, Uniform(Letters().tasks("train")), Groups(4), GRPO(), ClippedSurrogate(), TorchLearner(model, rate),
        Pushes(policy), limits=Limits(tokens=200, turn_tokens=8), batch=3, hook=hook,
    )  # fmt: skip


def _judged(successes: Any) -> type[Letters]:
    """An environment in which as many of the six tasks succeed as ``successes()`` says at the moment."""

    class Judged(Letters):
        def score(self) -> float:
            return float("etaoin".index(self.task.answer) < successes())

    return Judged


async def _stepped(run: Training) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All weights before and after something like a step that moves every one of them."""
    before = _weights(run.learner.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in run.learner.model.parameters():
            weight += 0.01 * torch.randn_like(weight)
    await run.sync.push(run.learner)
    return before, _weights(run.learner.model)


def _played(successes_at: dict[int, int], **options: Any) -> Any:
    """One trigger where the success of a candidate is decided by how far the weights in the actor have come."""
    hook = EffOPD(**options)

    def successes() -> int:
        name = "model.layers.0.mlp.up_proj.weight"
        weight = run.actor.model.get_parameter(name).detach()
        multiple = ((weight - base[name]) / (stepped[name] - base[name])).median()
        return successes_at[round(float(multiple))]

    run = _run(hook, _judged(successes))
    asyncio.run(hook.begin(run))
    base, stepped = asyncio.run(_stepped(run))
    run.sync.pushed.clear()
    metrics = asyncio.run(hook.after_step(run, 1))
    return SimpleNamespace(run=run, hook=hook, base=base, stepped=stepped, after=_weights(run.learner.model), metrics=metrics)


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_attention_and_feed_forward_weights_walk_and_only_as_far_as_tasks_go_better() -> None:
    found = _played({1: 1, 3: 2, 5: 3, 7: 4, 9: 4})
    assert found.metrics["extrapolation"] == 7
    assert found.metrics["validation"] == pytest.approx(4 / 6)
    moved = _moved(found.stepped, found.after)
    assert moved == {name for name in found.after if any(part in name for part in ("self_attn", "mlp", "post_attention_layernorm"))}
    assert {"model.layers.0.input_layernorm.weight", "model.embed_tokens.weight", "model.norm.weight"} <= found.after.keys() - moved
    for name in moved:
        assert torch.allclose(found.after[name], found.base[name] + 7 * (found.stepped[name] - found.base[name]), atol=1e-5)
    assert found.hook.base.keys() == moved
    assert all(torch.equal(found.hook.base[name], found.after[name]) for name in moved)


def test_what_is_no_better_leaves_everything_as_it_was() -> None:
    found = _played({1: 3, 3: 3})
    assert found.metrics["extrapolation"] == 1
    assert not _moved(found.stepped, found.after)
    assert not found.run.learner.optimizer.state
    assert found.run.learner.version == 0
    assert all(torch.equal(weight, found.stepped[name]) for name, weight in found.hook.base.items())


def test_the_actor_answers_with_the_accepted_weights() -> None:
    found = _played({1: 1, 3: 2, 5: 2})
    pushed = found.run.sync.pushed
    assert len(pushed) == 4  # the weights, two candidates, what was accepted
    assert not _moved(pushed[-1], found.after)
    assert not _moved(pushed[1], pushed[3])
    assert not any(slot.tokens for slot in found.run.actor._cache.slots)
    fresh = TransformersPolicy(found.run.learner.model, found.run.chat)
    tasks, chat, limits = Letters().tasks("train")[:2], found.run.chat, found.run.limits
    answers = [asyncio.run(evaluate(Letters, actor, tasks, chat=chat, limits=limits)) for actor in (found.run.actor, fresh)]
    assert answers[0] == answers[1]


def test_all_candidates_play_the_same_tasks_with_the_same_seeds() -> None:
    heard: dict[str, list[str]] = {}

    class Hears(Letters):
        def begin(self, task: Any) -> None:
            super().begin(task)
            heard.setdefault(run.sync.pushed[-1]["model.layers.0.mlp.up_proj.weight"].sum().item(), []).append(str(self.lineage.path))

        def score(self) -> float:
            return float(len(heard) * 2 > "etaoin".index(self.task.answer))

    hook = EffOPD(tasks=4, episodes=2, seed=3)
    run = _run(hook, Hears)
    asyncio.run(hook.begin(run))
    asyncio.run(_stepped(run))
    asyncio.run(hook.after_step(run, 2))
    played = list(heard.values())
    assert len(played) > 2
    assert all(sorted(one) == sorted(played[0]) for one in played)
    assert len(set(played[0])) == 4  # a beginning for each task, from which its two episodes go on


class Counted:
    """A policy, and how many tokens it was asked to sample."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.model, self.tokens = policy, policy.model, 0

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        found = await self.policy.generate(prompt, sampling)
        self.tokens += len(found.ids)
        return found


def test_scoring_is_paid_for_and_nothing_happens_between_powers_of_two() -> None:
    hook = EffOPD(tasks=3, episodes=2)
    run = _run(hook)
    run.actor = Counted(run.actor)
    asyncio.run(hook.begin(run))
    asyncio.run(_stepped(run))
    metrics = asyncio.run(hook.after_step(run, 1))
    assert metrics["validation_tokens"] == run.actor.tokens > 2 * 6 * 2  # two candidates, six episodes of two turns
    pushes = len(run.sync.pushed)
    assert asyncio.run(hook.after_step(run, 3)) == {}
    assert len(run.sync.pushed) == pushes


def test_what_cannot_be_walked_along_a_line_is_refused() -> None:
    def run(*names: str) -> Any:
        model = torch.nn.Module()
        for name in names:
            model.register_parameter(name, torch.nn.Parameter(torch.zeros(2)))
        return SimpleNamespace(learner=SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model)))

    asyncio.run(EffOPD().begin(run("q_proj", "head")))
    with pytest.raises(AgentGymError, match="cannot extrapolate q_proj_lora_A, a factor of a product"):
        asyncio.run(EffOPD().begin(run("q_proj_lora_A")))
    with pytest.raises(AgentGymError, match="finds no weights to move"):
        asyncio.run(EffOPD().begin(run("head")))
    with pytest.raises(AgentGymError, match="of at least 1, not 0, 1 and 5"):
        EffOPD(tasks=0)


class Vowels(Letters):
    """Half of a random policy's episodes succeed."""

    def score(self) -> float:
        return float(self.state.count("e") % 2)


def _trained(folder: Any, steps: int) -> tuple[Any, list[dict[str, float]]]:
    hook = EffOPD(tasks=6, episodes=2, iterations=2, seed=1)
    run = _run(hook, Vowels, rate=3e-3)
    store = RunStore.open(folder) if (folder / "run.json").exists() else RunStore.create(folder, {})
    asyncio.run(train(run, steps, store, checkpoint_every=2))
    return run, list(store.read("metrics"))


@pytest.mark.long
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Any) -> None:
    whole, expected = _trained(tmp_path / "whole", 4)
    _trained(tmp_path / "cut", 3)
    resumed, found = _trained(tmp_path / "cut", 4)
    assert not _moved(_weights(whole.learner.model), _weights(resumed.learner.model))
    assert whole.hook.base.keys() == resumed.hook.base.keys()
    assert all(torch.equal(whole.hook.base[name], resumed.hook.base[name]) for name in whole.hook.base)
    assert found == expected
    tried = [line["extrapolation"] for line in expected if "extrapolation" in line]
    assert len(tried) == 3
    assert min(tried) > 1  # each was accepted, so that there was something to resume


def test_the_first_walk_starts_at_the_weights_that_training_began_with(tmp_path: Any) -> None:
    hook = EffOPD(tasks=1)
    run = _run(hook)
    before = _weights(run.learner.model)
    heard: list[Any] = []

    class Peeks(GRPO):
        async def assign(self, trees: Any, models: Any) -> None:
            heard.append({name: weight.clone() for name, weight in hook.base.items()})
            await super().assign(trees, models)

    run.credit = Peeks()
    asyncio.run(train(run, 2))
    assert all(torch.equal(weight, before[name]) for name, weight in heard[0].items())
    assert heard[0]
    assert any(not torch.equal(weight, before[name]) for name, weight in heard[1].items())


def test_embeddings_and_head_of_a_real_architecture_stay() -> None:
    found = {name for name, _ in random_model("Llama").named_parameters() if "embed" in name or "lm_head" in name}
    hook, model = EffOPD(), random_model("Llama")
    learner = SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    asyncio.run(hook.begin(SimpleNamespace(learner=learner)))
    assert found
    assert hook.base
    assert not found & hook.base.keys()
