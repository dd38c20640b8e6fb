"""Attention over a packed forest, by FlexAttention on CUDA and line by line elsewhere: what a token does not see costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentgym.errors import AgentGymError
from agentgym.pack import Packed

NAME = "agentgym_packed"
BLOCK = 128  # tokens along each side of a block of FlexAttention's


class Sight(Protocol):
    """What the tokens of one pack see of each other: made once for a pack, read by every layer."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Shapes (1, heads, T, head size) in and out; there may be fewer heads of keys and values than of queries."""


def sight(packed: Packed, device: torch.device) -> Sight:
    return blocks(packed, device) if device.type == "cuda" else lines(packed, device)


@dataclass(frozen=True, slots=True)
class Lines:
    """A pack in lines: tokens that stand in a row, each the child of the one before.

    ``lengths`` are those of the lines. Keys are cut finer, after every fork too, into ``parts`` of these lengths, so that a line
    sees whole parts: ``seen`` has their numbers, its own last. ``masks``: shape (line, seen), true where a query sees a key.
    """

    lengths: list[int]
    parts: list[int]
    seen: list[list[int]]
    masks: list[Tensor]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # Split once: a slice for each line would cost a whole pack of zeros in the backward pass.
        queries, (keys, values) = torch.split(query, self.lengths, 2), (torch.split(each, self.parts, 2) for each in (key, value))
        pieces = [
            scaled_dot_product_attention(
                rows,
                torch.cat([keys[part] for part in seen], 2),
                torch.cat([values[part] for part in seen], 2),
                attn_mask=mask,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            for rows, seen, mask in zip(queries, self.seen, self.masks, strict=True)
        ]
        return torch.cat(pieces, 2)


def lines(packed: Packed, device: torch.device) -> Lines:
    size = len(packed)
    starts = np.flatnonzero((packed.parent != np.arange(-1, size - 1)) | (np.arange(size) == 0))
    cuts = np.union1d(starts, packed.parent[starts] + 1)
    parts = np.diff([*cuts, size])
    seen, masks = [], []
    for first, last in pairwise([*starts.tolist(), size]):
        parent = packed.parent[first]
        above = np.flatnonzero((cuts <= parent) & (packed.end[cuts] > parent))
        own = np.flatnonzero((cuts >= first) & (cuts < last))
        seen.append([*above.tolist(), *own.tolist()])
        masks.append(torch.ones(last - first, parts[seen[-1]].sum(), dtype=torch.bool, device=device).tril(parts[above].sum()))
    return Lines(np.diff([*starts, size]).tolist(), parts.tolist(), seen, masks)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A pack in square blocks: those that hold nothing to see are skipped, and those that are seen whole need no mask.

    It is longer than the pack, which is filled up by tokens that see themselves alone: to whole blocks, at least two, and by one token
    at least, so that layouts are always the same. So one compiled kernel serves every length, and never meets those for which torch
    has others, or none.
    """

    mask: BlockMask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        size, usual = query.shape[2], query.shape[3] ** -0.5
        query = query * (scale / usual)  # for compiled with dynamic lengths, the kernel would take its scale for one more variable
        filled = [pad(each, (0, 0, 0, self.mask.seq_lengths[0] - size)) for each in (query, key, value)]
        found: Tensor = _compiled()(*filled, block_mask=self.mask, enable_gqa=query.shape[1] != key.shape[1])
        return found[:, :, :size]


def blocks(packed: Packed, device: torch.device) -> Blocks:
    size = BLOCK * max(2, len(packed) // BLOCK + 1)
    end = torch.arange(1, size + 1, dtype=torch.int32)
    end[: len(packed)] = torch.from_numpy(packed.end)
    ends, first = end.view(-1, BLOCK), torch.arange(0, size, BLOCK)
    rows = first[:, None]  # the first query of each block; the first keys lie along the other axis
    whole = (first < rows) & (ends.amin(1) >= rows + BLOCK)
    part = (first <= rows) & (ends.amax(1) > rows) & ~whole
    end = end.to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    mask = BlockMask.from_kv_blocks(*_listed(part), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(size, size))
    return Blocks(mask.to(device))


def _listed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys are marked for each block of queries, and their places before those of the others."""
    places = mask.int().argsort(dim=1, descending=True, stable=True)
    return mask.sum(1, dtype=torch.int32)[None, None], places.int()[None, None]


@cache
def _compiled() -> Any:
    """Whole or not at all: uncompiled, it would make the matrix of all scores, and say nothing."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@contextmanager
def seeing(model: Any, packed: Packed) -> Iterator[dict[str, Any]]:
    """Within it, in a forward pass with the yielded arguments, a token sees what it sees in its own path."""
    with _attending(model.config.get_text_config(), NAME):
        yield {"sight": sight(packed, next(model.parameters()).device)}


@contextmanager
def _attending(config: Any, kernel: str) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = kernel
    try:
        yield
    finally:
        config._attn_implementation = before


def keep_layer_inputs(model: Any) -> None:
    """Activation checkpointing: in training mode, the backward pass computes each layer again, from its inputs alone.

    It may run after `seeing` has ended, so the layer is computed again by the kernel that computed it first.
    """
    config = model.config.get_text_config()

    def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _attending(config, config._attn_implementation)

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": again})


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, sight: Sight, **settings: Any
) -> tuple[Tensor, None]:
    """Shapes (1, heads, T, head size) in, (1, T, heads, head size) out."""
    if strange := [name for name in ("softcap", "s_aux") if settings.get(name) is not None]:
        raise AgentGymError(f"the model's attention uses {strange[0]}, which packed training does not know")
    scale = settings.get("scaling")
    return sight.attend(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *arguments, **settings: None)
