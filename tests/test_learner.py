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
from agentgym.trainers.cloning import clone, cosine, weigh_demonstrations
from agentgym.trainers.learner import PackedHeads, TorchLearner, warm_up
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import TurnTree


def _forest(seed: int = 0) -> list[TurnTree]:
    rng = random.Random(seed)
    forest = [random_tree(rng) for _ in range(3)]
    for tree in forest:
        for turn in tree.turns:
            sampled = np.array(turn.sampled, dtype=np.float64)
            turn.streams = {"advantage": sampled * rng.uniform(-1, 1), "weight": sampled / 30}
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
    weigh_demonstrations(forest, observations=0.1)
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


def test_metrics_are_plain_numbers() -> None:
    found: dict[str, Any] = _steps(TorchLearner(random_model("Llama"), 1e-3), range(1))[0]
    assert set(found) == {"loss", "clip_fraction", "kl", "gradient_norm", "learning_rate"}
    assert all(type(value) is float for value in found.values())
