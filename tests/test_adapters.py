"""Low-rank adapters: they alone train and are saved, the actor answers with them, and a saved policy has them merged."""

from __future__ import annotations

import asyncio
import io
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forests import random_model, random_tree

from agentgym.chat import Chat
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.pack import Packed, pack
from agentgym.policies.adapters import adapt, merged
from agentgym.policies.sync import CopiedWeights, SharedWeights
from agentgym.policies.tiny import TinyTokenizer, load, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policies.vllm.export import served_weights
from agentgym.trainers.cloning import mark_demonstrations
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import Frozen, TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy

IDS = torch.arange(1, 9)[None]


def _adapted(seed: int = 0, rank: int = 4, dtype: torch.dtype = torch.float64) -> Any:
    model = random_model("Qwen3", seed).to(dtype).eval()
    adapt(model, rank, 8)
    return model


def _pack() -> Packed:
    rng = random.Random(0)
    forest = [random_tree(rng) for _ in range(3)]
    mark_demonstrations(forest, 1.0)
    token_mean(forest)
    return pack(forest, 10**6)[0]


def _step(learner: TorchLearner) -> None:
    learner.accumulate(_pack(), CrossEntropy())
    learner.step()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.Tensor(model(input_ids=IDS).logits)


def _policy() -> TransformersPolicy:
    tokenizer = TinyTokenizer.train(["Which country is it? Say something."] * 50)
    model = new_model(len(tokenizer), seed=0).eval()
    adapt(model, 4, 8)
    return TransformersPolicy(model, tiny_chat(tokenizer))


def test_new_adapters_change_no_answer_and_are_drawn_by_their_seed() -> None:
    assert torch.equal(_logits(_adapted()), _logits(random_model("Qwen3").double().eval()))
    one, other, model = _adapted().state_dict(), _adapted().state_dict(), random_model("Qwen3")
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    state = torch.get_rng_state()
    adapt(model, 4, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_alone_train() -> None:
    model = _adapted()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    learner = TorchLearner(model, 1e-2, weight_decay=0.1)
    _step(learner)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".lora_" in name}
    held = {id(weight) for group in learner.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for name, weight in model.named_parameters() if ".lora_" in name}
    layers = {name.split(".lora_")[0].split(".")[-1] for name in moved}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_checkpoint_holds_adapters_alone_and_goes_on_to_the_last_bit() -> None:
    learner = TorchLearner(_adapted(), 1e-2)
    _step(learner)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    assert all(".lora_" in name for name in learner.state_dict()["model"])
    _step(learner)
    other = TorchLearner(_adapted(), 1e-2)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    _step(other)
    assert torch.equal(_logits(other.model), _logits(learner.model))


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (8, r"28 tensors of 2,240 weights, this model trains 28 tensors of 4,480 weights; .* is \(4, 24\) there and \(8, 24\) here"),
        (0, r"28 tensors of 2,240 weights, this model trains 25 tensors of 6,512 weights; .* is missing there and \(32, 16\) here"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_with_the_figures(rank: int, said: str) -> None:
    state = TorchLearner(_adapted(), 1e-2).state_dict()
    model = _adapted(rank=rank) if rank else random_model("Qwen3").double()
    before = _logits(model)
    with pytest.raises(AgentGymError, match=said):
        TorchLearner(model, 1e-2).load_state_dict(state)
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("sync", [SharedWeights, CopiedWeights])
def test_the_actor_answers_with_the_adapters(sync: Any) -> None:
    policy = _policy()
    base = new_model(policy.model.config.vocab_size, seed=0).eval()
    made = sync(policy)
    learner = TorchLearner(made.model, 1e-1)
    weight = _pack()
    learner.accumulate(weight, CrossEntropy())
    learner.step()
    assert made.model.model.embed_tokens.weight is policy.model.model.embed_tokens.weight
    asyncio.run(made.push(learner))  # a canary: the actor says what the learner says
    assert (_logits(policy.model) - _logits(base)).abs().max() > 0.1
    reference = TransformersPolicy(base, policy.chat)
    with pytest.raises(AgentGymError, match="does not answer with the weights of learner step 1"):
        asyncio.run(SharedWeights(reference).push(learner))


def test_the_reference_is_the_base_and_has_no_second_copy_of_it() -> None:
    model = _adapted()
    learner, reference = TorchLearner(model, 1e-1), Frozen(model)
    expected = Frozen(random_model("Qwen3").double()).logprobs(_pack())
    _step(learner)
    assert torch.equal(reference.logprobs(_pack()), expected)
    assert not torch.equal(learner.logprobs(_pack()), expected)
    own = {id(weight) for weight in model.parameters()}
    assert {name for name, weight in reference.model.named_parameters() if id(weight) not in own} == set(learner.state_dict()["model"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merged_weights_are_the_same_policy(dtype: torch.dtype) -> None:
    model = _adapted(dtype=dtype)
    _step(TorchLearner(model, 1e-1))
    plain = random_model("Qwen3", seed=1).to(dtype).eval()
    plain.load_state_dict(merged(model))
    scale = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    assert (_logits(plain) - _logits(model)).abs().max() < scale
    assert (_logits(plain) - _logits(random_model("Qwen3").to(dtype).eval())).abs().max() > 1
    assert {name: weight.dtype for name, weight in merged(model).items()} == {name: w.dtype for name, w in plain.state_dict().items()}
    assert served_weights(random_model("Qwen3")).keys() == served_weights(random_model_with_adapters()).keys()


def random_model_with_adapters() -> Any:
    model = random_model("Qwen3")
    adapt(model, 2, 4)
    return model


def test_a_saved_policy_loads_without_its_adapters(tmp_path: Path) -> None:
    policy = _policy()
    learner = TorchLearner(policy.model, 1e-1)
    learner.accumulate(_pack(), CrossEntropy())
    learner.step()
    policy.save(tmp_path)
    model, chat = load(tmp_path)
    assert isinstance(chat, Chat)
    assert not any("lora" in name for name in model.state_dict())
    torch.testing.assert_close(_logits(model.eval()), _logits(policy.model), rtol=0, atol=1e-4)
    assert (_logits(model) - _logits(new_model(model.config.vocab_size, seed=0).eval())).abs().max() > 0.1


def test_checkpointed_gradients_of_adapters_are_the_same() -> None:
    plain, again = (TorchLearner(_adapted(), 1e-2, checkpointing=on) for on in (False, True))
    for learner in (plain, again):
        _step(learner)
    one, other = (learner.gradient([_pack()], CrossEntropy()) for learner in (plain, again))
    assert torch.equal(one, other)
    assert one.abs().max() > 0


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"agentgym\[lora\]"):
        adapt(random_model("Qwen3"), 4, 8)
