"""Attention over a packed forest, line by line: what a token does not see is never computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
class Line:
    """Tokens ``first`` to ``last`` (exclusive), each the child of the one before; ``above`` are the places that they all see."""

    first: int
    last: int
    above: Tensor  # (A,)
    mask: Tensor  # (last - first, A + last - first), true where a query sees a key


def lines(packed: Packed, device: torch.device) -> list[Line]:
    """The pack, cut where a token does not follow the one that stands before it."""
    size = len(packed)
    starts = np.flatnonzero((packed.parent != np.arange(-1, size - 1)) | (np.arange(size) == 0)).tolist()
    found = []
    for first, last in pairwise([*starts, size]):
        parent = int(packed.parent[first])
        above = torch.from_numpy(np.flatnonzero(packed.end[: parent + 1] > parent)).to(device)
        mask = torch.ones(last - first, len(above) + last - first, dtype=torch.bool, device=device).tril(len(above))
        found.append(Line(first, last, above, mask))
    return found


@contextmanager
def by_lines(model: Any, packed: Packed) -> Iterator[dict[str, Any]]:
    """Within it, a forward pass with the yielded arguments attends line by line."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield {"lines": lines(packed, next(model.parameters()).device)}
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, lines: Sequence[Line], **settings: Any
) -> tuple[Tensor, None]:
    """Shapes (1, heads, T, head size) in, (1, T, heads, head size) out."""
    if strange := [name for name in ("softcap", "s_aux") if settings.get(name) is not None]:
        raise AgentGymError(f"the model's attention uses {strange[0]}, which packed training does not know")
    grouped = query.shape[1] != key.shape[1]
    pieces = []
    for line in lines:
        here = slice(line.first, line.last)
        keys = torch.cat([key.index_select(2, line.above), key[:, :, here]], 2)
        values = torch.cat([value.index_select(2, line.above), value[:, :, here]], 2)
        scale = settings.get("scaling")
        pieces.append(
            scaled_dot_product_attention(
                query[:, :, here], keys, values, attn_mask=line.mask, scale=scale, enable_gqa=grouped
            )
        )
    return torch.cat(pieces, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *arguments, **settings: None)
