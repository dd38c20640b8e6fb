"""Attention over a packed forest, line by line: what a token does not see is never computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentgym.errors import AgentGymError
from agentgym.pack import Packed

NAME = "agentgym_lines"


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


@contextmanager
def by_lines(model: Any, packed: Packed) -> Iterator[dict[str, Any]]:
    """Within it, a forward pass with the yielded arguments attends line by line."""
    with _attending(model.config.get_text_config(), NAME):
        yield {"lines": lines(packed, next(model.parameters()).device)}


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

    It may run after `by_lines` has ended, so the layer is computed again by the kernel that computed it first.
    """
    config = model.config.get_text_config()

    def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _attending(config, config._attn_implementation)

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": again})


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, lines: Lines, **settings: Any
) -> tuple[Tensor, None]:
    """Shapes (1, heads, T, head size) in, (1, T, heads, head size) out."""
    if strange := [name for name in ("softcap", "s_aux") if settings.get(name) is not None]:
        raise AgentGymError(f"the model's attention uses {strange[0]}, which packed training does not know")
    grouped = query.shape[1] != key.shape[1]
    # Split once: a slice for each line would cost a whole pack of zeros in the backward pass.
    queries, (keys, values) = torch.split(query, lines.lengths, 2), (torch.split(each, lines.parts, 2) for each in (key, value))
    pieces = [
        scaled_dot_product_attention(
            rows,
            torch.cat([keys[part] for part in seen], 2),
            torch.cat([values[part] for part in seen], 2),
            attn_mask=mask,
            scale=settings.get("scaling"),
            enable_gqa=grouped,
        )
        for rows, seen, mask in zip(queries, lines.seen, lines.masks, strict=True)
    ]
    return torch.cat(pieces, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *arguments, **settings: None)
