"""FlexAttention over packed forests. On processors torch has it forward, and uncompiled backward if asked; kernels need a GPU."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from forests import add_turn, random_model, random_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_block_mask

from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers import attention
from agentgym.trainers.cloning import mark_demonstrations
from agentgym.trainers.divisors import token_mean
from agentgym.trainers.learner import PackScorer, TorchLearner
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import TurnTree

CPU = torch.device("cpu")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's kernels need a GPU")


def long_tree(seed: object, turns: int = 8, sizes: tuple[int, ...] = (0, 1, 100, 128, 300)) -> TurnTree:
    """Lines that are longer than blocks, and forks at their edges."""
    rng = random.Random(str(seed))
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, [rng.randrange(32) for _ in range(rng.choice([2, 127, 128, 400]))])
    for _ in range(rng.randint(0, turns)):
        ids = [rng.randrange(32) for _ in range(rng.choice(sizes))]
        add_turn(tree, rng.choice(tree.turns), ids, len(ids) // 2, restarts=rng.random() < 0.1)
    return tree


def one_pack(*forest: TurnTree) -> Packed:
    mark_demonstrations(forest, 1.0)
    token_mean(forest)
    return pack(forest, 10**6)[0]


def a_pack(seed: int) -> Packed:
    """Two trees, over more than two blocks."""
    return one_pack(random_tree(random.Random(seed)), long_tree(seed, sizes=(60, 90)))


long_packs = st.builds(lambda seed, n: one_pack(*(long_tree((seed, i)) for i in range(n))), st.integers(0, 2**32), st.integers(1, 3))


# The blocks


@settings(max_examples=40, deadline=None)
@given(long_packs)
def test_blocks_show_exactly_what_tokens_see(packed: Packed) -> None:
    found = shown(attention.blocks(packed, CPU).mask)
    place = np.arange(len(found))
    end = np.concatenate([packed.end, place[len(packed) :] + 1])
    assert len(found) % attention.BLOCK == 0
    assert len(found) > len(packed)
    assert (found == (place[None, :] <= place[:, None]) & (place[:, None] < end[None, :])).all()


@settings(max_examples=20, deadline=None)
@given(long_packs)
def test_no_block_is_computed_or_masked_without_need(packed: Packed) -> None:
    found = attention.blocks(packed, CPU).mask
    expected = create_block_mask(found.mask_mod, 1, 1, *found.seq_lengths, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name


def test_a_long_line_has_blocks_of_each_kind() -> None:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [1] * 256)
    for _ in range(2):
        add_turn(tree, root, [2] * 128, 128)
    mask = attention.blocks(one_pack(tree), CPU).mask
    assert mask.kv_num_blocks[0, 0].tolist() == [1, 1, 1, 1, 1]  # the diagonal, where the last has what fills the pack up
    assert mask.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 2, 0]  # the last line sees nothing of the one before
    assert mask.full_kv_indices[0, 0, 3, :2].tolist() == [0, 1]


def test_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = a_pack(0)
    assert isinstance(attention.sight(packed, CPU), attention.Lines)
    monkeypatch.setattr(attention, "blocks", lambda packed, device: (packed, device))
    assert attention.sight(packed, torch.device("cuda:1")) == (packed, torch.device("cuda:1"))


# The arithmetic, uncompiled


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, packs are seen by FlexAttention as torch defines it; backward too, which torch refuses on processors."""

    def change() -> None:
        monkeypatch.setattr(attention, "sight", attention.blocks)
        monkeypatch.setattr(attention, "_compiled", lambda: flex.flex_attention)
        monkeypatch.setattr(flex, "_validate_device", lambda *inputs: None)

    return change


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_log_probabilities_are_those_of_the_lines(in_blocks: Any, kind: str, dtype: torch.dtype, most: float) -> None:
    packs = [a_pack(0), one_pack(random_tree(random.Random(1))), one_pack(long_tree(2))]
    scorer = PackScorer(random_model(kind).to(dtype))
    expected = [scorer.logprobs(packed) for packed in packs]
    in_blocks()
    for packed, before in zip(packs, expected, strict=True):
        torch.testing.assert_close(scorer.logprobs(packed), before, rtol=0, atol=most)


def test_a_model_keeps_its_own_scale(in_blocks: Any) -> None:
    model = random_model("Qwen3").double()
    usual = PackScorer(model).logprobs(a_pack(0))
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.2
    scaled = PackScorer(model).logprobs(a_pack(0))
    assert (scaled - usual).abs().max() > 1e-3
    in_blocks()
    torch.testing.assert_close(PackScorer(model).logprobs(a_pack(0)), scaled, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_lines(in_blocks: Any, kind: str, checkpointing: bool) -> None:
    expected = gradient(random_model(kind).double(), a_pack(0))
    in_blocks()
    assert error(gradient(random_model(kind).double(), a_pack(0), checkpointing=checkpointing), expected) < 1e-13


def test_a_wrong_mask_is_seen(in_blocks: Any) -> None:
    packed, model = a_pack(0), random_model("Qwen3").double()
    scorer, expected = PackScorer(model), gradient(random_model("Qwen3").double(), packed)
    logprobs = scorer.logprobs(packed)
    in_blocks()
    late = packed.end + (packed.end < len(packed))  # one token too many
    for end in (np.full(len(packed), len(packed)), late):
        wrong = replace(packed, end=end)
        assert (scorer.logprobs(wrong) - logprobs).abs().max() > 1e-3
        assert error(gradient(random_model("Qwen3").double(), wrong), expected) > 1e-3


def test_in_bfloat16_it_is_as_near_to_float32_as_the_lines_are(in_blocks: Any) -> None:
    packed = a_pack(0)
    exact = PackScorer(random_model("Llama")).logprobs(packed)
    with accelerated(cpu=True, mixed_precision="bf16") as accelerator:
        learner = TorchLearner(random_model("Llama"), 1e-3, accelerator=accelerator)
    by_lines = (learner.logprobs(packed) - exact).abs()
    in_blocks()
    by_blocks = (learner.logprobs(packed) - exact).abs()
    assert 1e-4 < by_blocks.mean() < 1.5 * by_lines.mean()
    assert by_blocks.max() < 2 * by_lines.max()


# Compiling


@pytest.fixture
def nothing_compiled() -> Iterator[Callable[[], Any]]:
    compiled = attention._compiled
    compiled.cache_clear()
    torch._dynamo.reset()
    yield compiled
    compiled.cache_clear()
    torch._dynamo.reset()


def test_packs_of_all_lengths_share_one_compilation(nothing_compiled: Any, in_blocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, make = CompileCounter(), torch.compile
    in_blocks()
    monkeypatch.setattr(attention, "_compiled", nothing_compiled)
    monkeypatch.setattr(torch, "compile", lambda function, **options: make(function, backend=counter, **options))
    scorer = PackScorer(random_model("Qwen3"))
    for length in (300, 1, 40, 128, 256, 257, 700, 3):  # first more blocks than heads of keys, or torch takes the two for one number
        scorer.logprobs(one_line(length))
    assert counter.frame_count == 1
    for length in (300, 200, 128):
        gradient(random_model("Qwen3"), one_line(length))
    assert counter.frame_count == 2  # one more for what has a backward pass


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++") or not torch.cpu._is_avx2_supported(), reason="torch compiles on processors by g++, for AVX2")
def test_the_kernel_compiled_for_processors_skips_only_what_is_not_seen(nothing_compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = [one_pack(*(long_tree(seed) for seed in range(3))), a_pack(0), one_pack(long_tree(2)), one_line(5)]
    scorer = PackScorer(random_model("Qwen3", head_size=16))
    expected = [scorer.logprobs(packed) for packed in packs]
    monkeypatch.setattr(attention, "sight", attention.blocks)
    for packed, before in zip(packs, expected, strict=True):
        torch.testing.assert_close(scorer.logprobs(packed), before, rtol=0, atol=1e-5)


# On a GPU


@on_a_gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_on_a_gpu_the_gradient_is_that_of_the_lines(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    packs = [a_pack(0), one_line(5), one_pack(long_tree(2, sizes=(60, 300)))]
    found = [gradient(random_model("Qwen3", head_size=16), packed, checkpointing, cpu=False) for packed in packs]
    monkeypatch.setattr(attention, "sight", attention.lines)
    for packed, by_blocks in zip(packs, found, strict=True):
        assert error(by_blocks, gradient(random_model("Qwen3", head_size=16), packed, cpu=False)) < 1e-4


@on_a_gpu
def test_on_a_gpu_bfloat16_is_as_near_to_float32_as_the_lines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = a_pack(0)
    exact = PackScorer(random_model("Llama", head_size=16)).logprobs(packed)
    with accelerated(mixed_precision="bf16") as accelerator:
        learner = TorchLearner(random_model("Llama", head_size=16), 1e-3, accelerator=accelerator)
        by_blocks = (learner.logprobs(packed).cpu() - exact).abs()
        assert learner.gradient([packed], CrossEntropy()).isfinite().all()
        monkeypatch.setattr(attention, "sight", attention.lines)
        by_lines = (learner.logprobs(packed).cpu() - exact).abs()
    assert by_blocks.mean() < 1.5 * by_lines.mean()
    assert by_blocks.max() < 2 * by_lines.max()


def shown(mask: Any) -> np.ndarray:
    """What the kernels look at, shape (T, T): the blocks that are listed, masked or whole."""
    size, side = mask.seq_lengths[0], attention.BLOCK
    place = torch.arange(size)
    masked = mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None, :]).numpy()
    found = np.zeros((size, size), dtype=bool)
    for row in range(size // side):
        listed = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist()
        whole = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()
        assert len({*listed, *whole}) == len(listed) + len(whole)
        for column in listed + whole:
            block = np.ix_(range(row * side, (row + 1) * side), range(column * side, (column + 1) * side))
            found[block] = masked[block] if column in listed else True
    return found


def one_line(length: int) -> Packed:
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, add_turn(tree, None, [0]), [place % 32 for place in range(1, length)], length - 1)
    return one_pack(tree)


@contextmanager
def accelerated(**settings: Any) -> Iterator[Any]:
    """Device and precision are chosen once in a process: what was chosen before comes back."""
    states = AcceleratorState._shared_state, PartialState._shared_state
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    yield Accelerator(**settings)
    for state, chosen in zip(states, before, strict=True):
        state.clear()
        state.update(chosen)


def gradient(model: Any, packed: Packed, checkpointing: bool = False, cpu: bool = True) -> torch.Tensor:
    with accelerated(cpu=cpu) as accelerator:
        return TorchLearner(model, 1e-3, checkpointing=checkpointing, accelerator=accelerator).gradient([packed], CrossEntropy())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
