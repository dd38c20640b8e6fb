"""A packed forest is exactly its paths: the same tokens, the same sight, and in float64 the same gradient."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from forests import add_turn, random_model, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import turn_logprobs

from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers import attention
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.packing import ByPath
from agentgym.turn import Turn, TurnTree, context_ids, path

LOW, HIGH = 0.2, 0.28
forests = st.builds(
    lambda seed, n: [random_tree(random.Random(f"{seed}/{i}"), empty=0.3, restarts=0.25) for i in range(n)],
    st.integers(0, 2**32),
    st.integers(1, 3),
)


# The arrays


@given(forests, st.integers(1, 60))
def test_every_turn_stands_behind_its_context_and_carries_its_streams_once(forest: list[TurnTree], max_tokens: int) -> None:
    for number, turn in enumerate(turn for tree in forest for turn in tree.turns):
        turn.streams["mark"] = np.full(len(turn.ids), number + 1.0)
    packs = pack(forest, max_tokens)
    for packed in packs:
        assert len(packed.turns) == len(set(packed.turns))
        tips = [turn for turn in packed.turns if not any(child in packed.turns for child in turn.children if not child.restarts)]
        assert len(packed) <= max_tokens or len(tips) == 1
        for place, turn in enumerate(packed.turns):
            assert packed.token[packed.turn == place].tolist() == turn.ids
            assert packed.sampled[packed.turn == place].tolist() == [place < turn.sampled_tokens for place in range(len(turn.ids))]
            assert packed.logprobs[(packed.turn == place) & packed.sampled].tolist() == list(turn.logprobs)
            assert set(_attended(turn)) <= set(packed.turns[: place + 1])
    marks = [mark for packed in packs for mark in packed.streams["mark"] if mark]
    assert sorted(marks) == [mark for tree in forest for turn in tree.turns for mark in turn.streams["mark"]]


@given(forests)
def test_in_one_pack_every_token_appears_once(forest: list[TurnTree]) -> None:
    (packed,) = pack(forest, 10**6)
    assert len(packed) == sum(len(turn.ids) for tree in forest for turn in tree.turns)


@given(forests)
def test_sight_parent_and_depth_are_those_of_each_path(forest: list[TurnTree]) -> None:
    (packed,) = pack(forest, 10**6)
    place = _places(packed)
    sees = visible(packed)
    for turn in packed.turns:
        line = [place[above, i] for above in _attended(turn) for i in range(len(above.ids))]
        assert [packed.token[p] for p in line] == context_ids(turn)
        for depth, here in enumerate(line):
            assert np.flatnonzero(sees[here]).tolist() == line[: depth + 1]
            assert packed.depth[here] == depth
            assert packed.parent[here] == (line[depth - 1] if depth else -1)


def test_a_long_chain_is_packed() -> None:
    tree = TurnTree("chain", Task("task", ""))
    turn = add_turn(tree, None, [1])
    for _ in range(3000):
        turn = add_turn(tree, turn, [2, 3], 1)
    (packed,) = pack([tree], 10)
    assert packed.end.tolist() == [6001] * 6001
    assert packed.depth.tolist() == list(range(6001))


def test_streams_follow_their_tokens_and_are_zero_where_a_turn_has_none() -> None:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1, 2])
    add_turn(tree, root, [3], 1, streams={"advantage": np.array([0.5])})
    add_turn(tree, root, [4, 5], 1, streams={"weight": np.array([1.0, 0.0])})
    (packed,) = pack([tree], 10)
    assert packed.streams["advantage"].tolist() == [0, 0, 0.5, 0, 0]
    assert packed.streams["weight"].tolist() == [0, 0, 0, 1, 0]


@given(forests, st.integers(1, 60))
def test_a_line_sees_what_its_last_token_sees(forest: list[TurnTree], max_tokens: int) -> None:
    for packed in pack(forest, max_tokens):
        lines = attention.lines(packed, torch.device("cpu"))
        parts = np.split(np.arange(len(packed)), np.cumsum(lines.parts)[:-1])
        found = np.zeros((len(packed), len(packed)), dtype=bool)
        for row, seen, mask in zip(np.cumsum([0, *lines.lengths]), lines.seen, lines.masks, strict=False):
            found[np.ix_(range(row, row + len(mask)), np.concatenate([parts[part] for part in seen]))] = mask.numpy()
        assert (found == visible(packed)).all()


# The gradient


@pytest.fixture(autouse=True)
def _norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models' own norms round to float32 inside, which would hide errors below 1e-7."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    for norm in (LlamaRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(
            norm, "forward", lambda self, x: self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        )


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_a_packed_forest_is_that_of_its_paths(kind: str, seed: int) -> None:
    model, forest = random_model(kind, seed).double(), _credited(seed)
    expected = _gradient_by_paths(model, forest)
    for max_tokens in (10**6, 40, 20, 1):  # one pack, a few, trees cut in pieces, each episode alone
        assert _error(_packed_gradient(model, pack(forest, max_tokens)), expected) < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_by_path_nothing_is_shared_and_the_gradient_is_the_same(seed: int) -> None:
    model, forest = random_model("Qwen3", seed).double(), _credited(seed)
    packs = ByPath()(forest)
    assert all((packed.parent == np.arange(-1, len(packed) - 1)).all() for packed in packs)
    assert {packed.turns[-1] for packed in packs} == {turn for tree in forest for turn in tree.turns if _is_tip(turn)}
    assert _error(_packed_gradient(model, packs), _gradient_by_paths(model, forest)) < 1e-12


def test_a_restarted_context_sees_nothing_of_the_one_that_it_replaces() -> None:
    tree = TurnTree("tree", Task("task", ""))
    turn = add_turn(tree, add_turn(tree, None, [1, 2, 3]), [4, 5, 6], 2)
    add_turn(tree, add_turn(tree, turn, [7, 8], restarts=True), [9, 10], 2)
    (packed,) = pack([tree], 100)
    learner = TorchLearner(random_model("Llama").double(), 0.1)
    before = learner.logprobs(packed)
    packed.token[:6] = 30
    assert torch.equal(learner.logprobs(packed)[6:], before[6:])


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_each_known_mistake_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, forest = random_model(kind).double(), _credited(1)
    expected = _gradient_by_paths(model, forest)
    (packed,) = pack(forest, 10**6)
    place = np.arange(len(packed))
    assert _error(_packed_gradient(model, [packed]), expected) < 1e-12
    mistakes = {
        "advantages summed over the paths that share a turn": replace(packed, streams=_summed(packed)),
        "place in the pack as position": replace(packed, depth=place),
        "labels shifted by one": replace(packed, parent=place - 1),
    }
    sight = attention.lines(packed, torch.device("cpu"))
    monkeypatch.setattr(attention, "lines", lambda packed, device: sight)  # each mistake alone
    for name, mistaken in mistakes.items():
        assert _error(_packed_gradient(model, [mistaken]), expected) > 1e-6, name
    causal = attention.Lines([len(packed)], [len(packed)], [[0]], [torch.from_numpy(np.tri(len(packed), dtype=bool))])
    monkeypatch.setattr(attention, "lines", lambda packed, device: causal)
    assert _error(_packed_gradient(model, [packed]), expected) > 1e-6, "plain causal mask"


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_the_learners_logprobs_are_those_of_plain_forward_passes(seed: int) -> None:
    model, forest = random_model("Qwen3").double(), [random_tree(random.Random(seed))]
    (packed,) = pack(forest, 10**6)
    found = TorchLearner(model, 0.1).logprobs(packed)
    for number, turn in enumerate(packed.turns):
        torch.testing.assert_close(found[torch.from_numpy(packed.turn == number)], turn_logprobs(model, turn), rtol=0, atol=1e-12)


def visible(packed: Packed) -> np.ndarray:
    """The attention mask, shape (T, T): row q is true at the keys that q sees."""
    place = np.arange(len(packed))
    return (place[None, :] <= place[:, None]) & (place[:, None] < packed.end[None, :])


def _is_tip(turn: Turn) -> bool:
    return all(child.restarts for child in turn.children)


def _attended(turn: Turn) -> list[Turn]:
    """The turns whose tokens a turn sees, found without `context_ids`."""
    line = path(turn)
    last = max((i for i, above in enumerate(line) if above.restarts), default=0)
    return line[last:]


def _places(packed: Packed) -> dict[tuple[Turn, int], int]:
    places: dict[tuple[Turn, int], int] = {}
    for place, number in enumerate(packed.turn):
        turn = packed.turns[number]
        places[turn, sum(above is turn for above, _ in places)] = place
    return places


def _credited(seed: int) -> list[TurnTree]:
    """A forest with shared turns, whose advantages and weights are constant on each turn."""
    rng = random.Random(seed)
    forest = [random_tree(rng, turns=10) for _ in range(4)]
    for tree in forest:
        for turn in tree.turns:
            sampled = turn.sampled.astype(np.float64)
            turn.streams = {"advantage": sampled * rng.uniform(-2, 2), "weight": sampled * rng.uniform(0.1, 1)}
    return forest


def _summed(packed: Packed) -> dict[str, np.ndarray]:
    paths = [sum(turn in path(leaf) for leaf in packed.turns if leaf.end) for turn in packed.turns]
    return {**packed.streams, "advantage": packed.streams["advantage"] * np.array(paths)[packed.turn]}


def _packed_gradient(model: torch.nn.Module, packs: Sequence[Packed]) -> torch.Tensor:
    learner = TorchLearner(model, 0.1)
    model.zero_grad()
    for packed in packs:
        learner.accumulate(packed, ClippedSurrogate(LOW, HIGH))
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _gradient_by_paths(model: torch.nn.Module, forest: Sequence[TurnTree]) -> torch.Tensor:
    """Each turn in a causal forward pass over its own context: no packing, no mask, no positions."""
    model.zero_grad()
    for turn in [turn for tree in forest for turn in tree.turns if turn.sampled_tokens]:
        n = turn.sampled_tokens
        ratio = (turn_logprobs(model, turn)[:n] - torch.tensor(turn.logprobs, dtype=torch.float64)).exp()
        advantage, weight = (torch.from_numpy(turn.streams[name])[:n] for name in ("advantage", "weight"))
        gain = torch.minimum(ratio * advantage, torch.clip(ratio, 1 - LOW, 1 + HIGH) * advantage)
        (-weight * gain).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
