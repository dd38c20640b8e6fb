"""The learner: steps that can be resumed to the last bit, and no step on a broken gradient."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from forests import add_turn, random_model, random_tree

from agentgym.errors import AgentGymError
from agentgym.pack import Packed, pack
from agentgym.trainers.cloning import clone, cosine, mark_demonstrations
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import PackedHeads, TorchLearner, warm_up
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import TurnTree


def _forest(seed: int = 0) -> list[TurnTree]:
    rng = random.Random(seed)
    forest = [random_tree(rng) for _ in range(3)]
    for tree in forest:
        for turn in tree.turns:
            sampled = turn.sampled.astype(np.float64)
            turn.streams = {"advantage": sampled * rng.uniform(-1, 1), "trained": sampled, "weight": sampled / 30}
    return forest


def _packed(seed: int = 0) -> Packed:
    return pack(_forest(seed), 10**6)[0]


def _steps(learner: TorchLearner, seeds: range) -> list[dict[str, float]]:
    found = []
    for seed in seeds:
        metrics = learner.accumulate(_packed(seed), ClippedSurrogate())
        found.append({**metrics, **learner.step()})
    return found


def _weights(learner: TorchLearner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.model.parameters()]


def test_a_loaded_state_goes_on_to_the_last_bit() -> None:
    learner = TorchLearner(random_model("Qwen3"), warm_up(1e-2, 4), weight_decay=0.1)
    _steps(learner, range(2))
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    expected = _steps(learner, range(2, 5))
    other = TorchLearner(random_model("Qwen3", seed=1), warm_up(1e-2, 4), weight_decay=0.1)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert _steps(other, range(2, 5)) == expected
    assert other.version == learner.version == 5
    assert all(torch.equal(a, b) for a, b in zip(_weights(other), _weights(learner), strict=True))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_refused(broken: float) -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2)
    before = _weights(learner)
    packed = _packed()
    packed.streams["advantage"][np.flatnonzero(packed.streams["weight"])[0]] = broken
    learner.accumulate(packed, ClippedSurrogate())
    with pytest.raises(AgentGymError, match="not finite at learner step 0"):
        learner.step()
    assert learner.version == 0
    assert all(torch.equal(a, b) for a, b in zip(_weights(learner), before, strict=True))


def test_the_rate_rises_and_then_stays() -> None:
    rates = [step["learning_rate"] for step in _steps(TorchLearner(random_model("Llama"), warm_up(0.06, 3)), range(5))]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.06, 0.06])


def test_a_cosine_ends_at_its_last_rate() -> None:
    rate = cosine(2.0, 100, warm=0.1, last=0.05)
    rates = [rate(step) for step in range(120)]
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 9
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[99:] == pytest.approx([0.1] * 21)


def test_gradients_of_packs_add_up_and_long_ones_are_cut() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2, max_grad_norm=1e-3)
    for scale in (1.0, 2.0):
        packed = _packed()
        packed.streams["weight"] *= scale
        learner.accumulate(packed, CrossEntropy())
    threefold = learner.step()["gradient_norm"]
    learner = TorchLearner(random_model("Llama"), 1e-2, max_grad_norm=1e-3)
    learner.accumulate(_packed(), CrossEntropy())
    norm = learner.accelerator.clip_grad_norm_(learner.model.parameters(), 1e-3)
    assert threefold == pytest.approx(3 * float(norm), rel=1e-5)
    cut = torch.stack([parameter.grad.norm() for parameter in learner.model.parameters()]).norm()
    assert float(cut) == pytest.approx(1e-3, rel=1e-3)


def test_a_step_applies_the_gradient_that_was_cut_and_forgets_it() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2, betas=(0.9, 0.95), max_grad_norm=1e-3)
    learner.accumulate(_packed(), CrossEntropy())
    assert learner.step()["gradient_norm"] > 0.1
    moments = torch.stack([state["exp_avg"].norm() for state in learner.optimizer.state.values()]).norm()
    assert float(moments) == pytest.approx((1 - 0.9) * 1e-3, rel=1e-3)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_only_matrices_decay() -> None:
    learner = TorchLearner(random_model("Qwen3"), 0.5, weight_decay=0.1)
    before = _weights(learner)
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.step()
    for old, new in zip(before, _weights(learner), strict=True):
        torch.testing.assert_close(new, old * (0.95 if old.dim() > 1 else 1.0))


def test_a_pack_without_weight_is_refused_and_one_of_zeros_costs_nothing() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2)
    packed = _packed()
    packed.streams["weight"][:] = 0
    assert learner.accumulate(packed, ClippedSurrogate()) == {}
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    del packed.streams["weight"]
    with pytest.raises(AgentGymError, match="weight"):
        learner.accumulate(packed, ClippedSurrogate())


def test_entropy_is_that_of_the_distribution_each_token_was_drawn_from() -> None:
    model = random_model("Llama").double()
    tree = TurnTree("one", _forest()[0].task)
    add_turn(tree, add_turn(tree, None, [1, 2, 3]), [4, 5], 2)
    packed = pack([tree], 10)[0]
    heads = PackedHeads(model, packed, packed.sampled)
    p = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits[0].softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    torch.testing.assert_close(heads.entropy, torch.cat([torch.zeros(3, dtype=torch.float64), entropy[2:4]]), rtol=1e-6, atol=1e-9)


def test_demonstrations_weigh_one_in_all_and_observations_less() -> None:
    forest = _forest()
    mark_demonstrations(forest, observations=0.1)
    token_mean(forest)
    turns = [turn for tree in forest for turn in tree.turns]
    assert sum(turn.streams["weight"].sum() for turn in turns) == pytest.approx(1.0)
    sizes = {round(float(w), 12) for turn in turns for w in turn.streams["weight"]}
    low, high = sorted(sizes - {0.0})
    assert low / high == pytest.approx(0.1)
    for turn in turns:
        if turn.parent is None or turn.restarts:
            assert not turn.streams["weight"].any()
        else:
            assert turn.streams["weight"][: turn.action_tokens] == pytest.approx(high)


def test_cloning_learns_its_demonstrations() -> None:
    learner = TorchLearner(random_model("Llama"), 3e-3)
    losses: list[float] = []
    clone(learner, [copy.deepcopy(_forest()) for _ in range(40)], 0.0, losses.append)
    assert losses[-1] < 0.5 * losses[0]


def test_the_gap_to_the_sampler_is_its_mean_over_what_was_sampled_and_trains() -> None:
    learner, packed = TorchLearner(random_model("Llama"), 1e-3), _packed()
    trained = packed.sampled & (packed.streams["weight"] != 0)
    assert 0 < trained.sum() < len(packed)
    packed.logprobs[:] = learner.logprobs(packed).numpy() + np.where(trained, 0.25, 9.0)
    packed.logprobs[np.flatnonzero(trained)[0]] -= 0.5
    assert learner.accumulate(packed, ClippedSurrogate())["sampler_gap"] == pytest.approx(0.25, abs=1e-6)


def test_metrics_are_plain_numbers() -> None:
    found: dict[str, Any] = _steps(TorchLearner(random_model("Llama"), 1e-3), range(1))[0]
    assert set(found) == {"loss", "sampler_gap", "clip_fraction", "kl", "gradient_norm", "learning_rate"}
    assert all(type(value) is float for value in found.values())


# What cannot be packed exactly is refused


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("Llama", {"attention_dropout": 0.1}, "dropout"),
        ("GPT2", {"resid_pdrop": 0.1, "attn_pdrop": 0.0, "embd_pdrop": 0.0}, "dropout"),
        ("Qwen3Next", {}, "linear_attention"),
    ],
)
def test_a_model_whose_packed_tree_is_not_its_paths_is_refused(kind: str, changes: dict[str, float], message: str) -> None:
    with pytest.raises(AgentGymError, match=message):
        TorchLearner(_model(kind, **changes), 1e-2)


def test_dropout_that_is_switched_off_is_accepted() -> None:
    assert TorchLearner(_model("Llama", attention_dropout=0.1).eval(), 1e-2).version == 0


def test_an_attention_kernel_without_a_free_mask_is_refused() -> None:
    model = random_model("Llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(AgentGymError, match="attn_implementation='sdpa'"):
        TorchLearner(model, 1e-2)


def test_a_context_beyond_a_sliding_window_is_refused_and_one_within_it_is_exact() -> None:
    learner = TorchLearner(_model("Mistral", sliding_window=5), 1e-2)
    tree = TurnTree("tree", _forest()[0].task)
    root = add_turn(tree, None, [1, 2, 3])
    for _ in range(3):  # 9 tokens in the pack, but no context of more than 5
        add_turn(tree, root, [4, 5], 2)
    found = learner.logprobs(pack([tree], 100)[0])
    plain = learner.model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found[3:].view(3, 2), plain[[2, 3], [4, 5]].detach().expand(3, 2))
    add_turn(tree, tree.turns[-1], [6], 1)
    with pytest.raises(AgentGymError, match="6 tokens is longer than the model's sliding window of 5"):
        learner.logprobs(pack([tree], 100)[0])


def test_an_objective_that_needs_what_no_forward_pass_gives_is_refused() -> None:
    with pytest.raises(AgentGymError, match=r"needs \['value'\]"):
        TorchLearner(random_model("Llama"), 1e-2).accumulate(_packed(), ClippedSurrogate(needs=frozenset({"value"})))


def test_the_entropy_is_reported_where_it_is_asked_for() -> None:
    learner = TorchLearner(random_model("Llama"), 1e-2)
    packed = _packed()
    assert "entropy" not in learner.accumulate(packed, ClippedSurrogate())
    asked = learner.accumulate(packed, ClippedSurrogate(needs=frozenset({"entropy"})))["entropy"]
    kept = torch.from_numpy(packed.sampled)
    assert asked == pytest.approx(float(PackedHeads(learner.model, packed, packed.sampled).entropy[kept].detach().mean()), rel=1e-5)


def _model(kind: str, **changes: Any) -> Any:
    import transformers

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"head_dim": 8, "intermediate_size": 24, "max_position_embeddings": 64}
    if kind == "GPT2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, **changes))
    if kind == "Qwen3Next":
        more |= {"num_experts": 0, "linear_num_value_heads": 2, "linear_num_key_heads": 1}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, **changes)
    return getattr(transformers, f"{kind}ForCausalLM")(config).train()
