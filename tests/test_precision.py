"""Products in bfloat16 with weights in float32, and activation checkpointing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from forests import random_model, random_tree

from agentgym.errors import AgentGymError
from agentgym.pack import Packed, pack
from agentgym.policies.sync import CopiedWeights, SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.trainers.cloning import mark_demonstrations
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import Frozen, PackScorer, TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy

LARGEST, MEAN = 0.1, 0.02  # nats between bfloat16 and float32, for these models of two layers


@pytest.fixture
def bf16() -> Iterator[Any]:
    """The precision is chosen once in a process: what was chosen before comes back."""
    before = dict(AcceleratorState._shared_state)
    AcceleratorState._shared_state.clear()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._shared_state.clear()
    AcceleratorState._shared_state.update(before)


def _packs(most: int = 10**6) -> list[Packed]:
    rng = random.Random(0)
    forest = [random_tree(rng) for _ in range(4)]
    mark_demonstrations(forest, 1.0)
    token_mean(forest)
    return pack(forest, most)


def _policy(dtype: torch.dtype = torch.float32) -> TransformersPolicy:
    tokenizer = TinyTokenizer.train(["Which country is it? Say something."] * 50)
    return TransformersPolicy(new_model(len(tokenizer), seed=0).to(dtype).eval(), tiny_chat(tokenizer))


# bfloat16


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_log_probabilities_in_bfloat16_are_near_those_in_float32(bf16: Any, kind: str) -> None:
    (packed,) = _packs()
    found = TorchLearner(random_model(kind), 1e-3, accelerator=bf16).logprobs(packed)
    gap = (found - PackScorer(random_model(kind)).logprobs(packed)).abs()
    assert 1e-4 < gap.max() < LARGEST
    assert gap.mean() < MEAN


def test_the_softmax_is_in_float32(bf16: Any) -> None:
    (packed,) = _packs()
    _, logprobs = TorchLearner(random_model("Qwen3"), 1e-3, accelerator=bf16).topk(packed, None)
    assert logprobs.dtype == torch.float32
    sums = logprobs[torch.from_numpy(packed.parent >= 0)].exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


def test_small_updates_of_a_model_in_16_bits_are_kept(bf16: Any) -> None:
    model = random_model("Llama").to(torch.bfloat16)
    learner = TorchLearner(model, 1e-5, accelerator=bf16)
    before = [weight.detach().clone() for weight in learner.model.parameters()]
    for packed in _packs():
        learner.accumulate(packed, CrossEntropy())
    learner.step()
    moved = torch.cat([(new - old).flatten() for new, old in zip(learner.model.parameters(), before, strict=True)])
    assert moved.dtype == torch.float32
    assert float(moved[moved != 0].detach().abs().median()) == pytest.approx(1e-5, rel=0.05)  # the first step of AdamW is the rate
    assert all((weight.to(torch.bfloat16) == weight).all() for weight in before)  # from the weights that were loaded


@pytest.mark.parametrize(
    ("sync", "dtype"), [(SharedWeights, torch.float32), (CopiedWeights, torch.float32), (CopiedWeights, torch.bfloat16)]
)
def test_an_actor_in_bfloat16_answers_with_the_weights_of_its_learner(bf16: Any, sync: Any, dtype: torch.dtype) -> None:
    policy = _policy(dtype)
    made = sync(policy)
    learner = TorchLearner(made.model, 1e-2, accelerator=bf16)
    asyncio.run(made.push(learner))
    with torch.no_grad():
        for weight in learner.model.parameters():
            weight.mul_(1.5)
    asyncio.run(made.push(learner))
    assert {weight.dtype for weight in policy.model.parameters()} == {dtype}
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(-1)
    other = TorchLearner(_policy().model, 1e-2, accelerator=bf16)
    with pytest.raises(AgentGymError, match="does not answer with the weights"):
        asyncio.run(SharedWeights(policy).push(other))


def test_a_reference_shares_what_does_not_train() -> None:
    model = random_model("Llama")
    model.model.embed_tokens.requires_grad_(False)
    copied = Frozen(model).model
    assert copied.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert copied.lm_head.weight is not model.lm_head.weight
    assert model.lm_head.weight.requires_grad


# Activation checkpointing


def _gradient(kind: str, checkpointing: bool, most: int, eval_mode: bool = True) -> tuple[torch.Tensor, Counter[str]]:
    model = random_model(kind).double().train(not eval_mode)
    learner = TorchLearner(model, 1e-3, checkpointing=checkpointing)
    computed: Counter[str] = Counter()
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: computed.update(["layer"]))
    packs = _packs(most)
    found = learner.gradient(packs, CrossEntropy())
    assert model.training != eval_mode
    computed["packs"] = sum(bool(packed.streams["weight"].any()) for packed in packs)
    return found, computed


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral"])
@pytest.mark.parametrize("most", [10**6, 20])
def test_checkpointed_gradients_are_the_same_to_the_last_bit(kind: str, most: int) -> None:
    expected, once = _gradient(kind, False, most)
    found, twice = _gradient(kind, True, most)
    assert torch.equal(found, expected)
    assert expected.abs().max() > 1e-3
    assert (once["layer"], twice["layer"]) == (once["packs"], 2 * twice["packs"])
    assert torch.equal(_gradient(kind, True, most, eval_mode=False)[0], expected)


def test_the_model_that_was_checkpointed_still_answers_by_its_own_attention() -> None:
    model = random_model("Qwen3").double().eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    before = model(input_ids=ids).logits
    learner = TorchLearner(model, 1e-3, checkpointing=True)
    learner.gradient(_packs(), CrossEntropy())
    assert torch.equal(model(input_ids=ids).logits, before)
    plain = torch.autograd.grad(model(input_ids=ids).logits.square().sum(), list(model.parameters()))
    model.train()
    again = torch.autograd.grad(model(input_ids=ids, use_cache=False).logits.square().sum(), list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_checkpointing_brings_no_dropout_back() -> None:
    model = random_model("Llama").eval()
    model.config.attention_dropout = 0.1
    with pytest.raises(AgentGymError, match="dropout"):
        TorchLearner(model, 1e-3, checkpointing=True)
