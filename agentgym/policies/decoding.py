"""Ragged decoding with a key-value cache of slots, for any unpatched Hugging Face model with attention over all tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import AgentGymError


@dataclass(eq=False, slots=True)
class Slot:
    """One row of the cache: the keys and values of ``tokens``, and the logits (V,) where a prompt ended, by its length."""

    row: int
    tokens: list[int] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    busy: bool = False
    used: int = 0  # when it was last needed, for eviction


@dataclass(frozen=True, slots=True)
class Handle:
    """Where the first ``length`` tokens of a context were computed. The slot may hold something else by now."""

    slot: Slot
    length: int


class SlotCache:
    """Keys and values of all slots, shape (slots, heads, capacity, head size) for each layer.

    A forward pass works on a contiguous range of rows and sees it through views: nothing is gathered. Models call
    ``update`` and ``get_seq_length`` as on any cache of ``transformers``.
    """

    is_compileable = False

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(row) for row in range(slots)]
        self._by_row = list(self.slots)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._capacity = 256
        self._first = 0
        self._places = torch.empty(0, 0)
        self._visible = 0

    def holds(self, handle: Any, context: list[int]) -> bool:
        """Whether the handle is on a slot of this cache that still begins with the context's first tokens."""
        if not isinstance(handle, Handle) or handle.slot.row >= len(self.slots):
            return False
        if self._by_row[handle.slot.row] is not handle.slot or len(handle.slot.tokens) < handle.length:
            return False
        return handle.slot.tokens[: handle.length] == context[: handle.length]

    def rows(self, first: int, count: int) -> list[Slot]:
        return self._by_row[first : first + count]

    def clear(self, slot: Slot) -> None:
        slot.tokens, slot.logits = [], {}

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        tokens, logits = source.tokens[:length], {n: row for n, row in source.logits.items() if n <= length}
        for tensor in (*self._keys, *self._values):
            tensor[target.row, :, :length] = tensor[source.row, :, :length]
        target.tokens, target.logits = tokens, logits

    def swap(self, slot: Slot, row: int) -> None:
        """Move a slot to another row, and the slot that is there to its place."""
        if slot.row == row:
            return
        other = self._by_row[row]
        longest = max(len(slot.tokens), len(other.tokens))
        for tensor in (*self._keys, *self._values):
            kept = tensor[row, :, :longest].clone()
            tensor[row, :, :longest] = tensor[slot.row, :, :longest]
            tensor[slot.row, :, :longest] = kept
        slot.row, other.row = row, slot.row
        self._by_row[slot.row], self._by_row[other.row] = slot, other

    def point(self, first: int, places: Tensor, visible: int) -> None:
        """The next pass writes rows ``first, first + 1, …`` at ``places`` (rows, new) and sees ``visible`` columns."""
        self._first, self._places, self._visible = first, places, visible
        while self._capacity < visible:
            self._capacity *= 2
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                if old.shape[2] < self._capacity:
                    store[layer] = _grown(old, self._capacity)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer == len(self._keys):
            self._keys.append(self._empty_like(keys))
            self._values.append(self._empty_like(values))
        return self._write(self._keys[layer], keys), self._write(self._values[layer], values)

    def get_seq_length(self, layer: int = 0) -> int:
        return self._visible

    def _empty_like(self, new: Tensor) -> Tensor:
        return new.new_zeros((len(self.slots), new.shape[1], self._capacity, new.shape[3]))

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        rows = store[self._first : self._first + new.shape[0]]
        rows.scatter_(2, self._places[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]), new)
        return rows[:, :, : self._visible]


def _grown(old: Tensor, capacity: int) -> Tensor:
    grown = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
    grown[:, :, : old.shape[2]] = old
    return grown


def forward(model: Any, cache: SlotCache, first: int, new: list[list[int]]) -> Tensor:
    """Append new tokens to the slots in rows ``first, first + 1, …``. Returns the logits after each last one, (rows, V).

    Shorter rows are padded on the left, so that the last column is the last token of every row. What the padding writes
    lies behind the row's end, where nothing looks before it is overwritten.
    """
    slots = cache.rows(first, len(new))
    width = max(map(len, new))
    device = model.device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in new], device=device)
    starts = [len(slot.tokens) for slot in slots]
    ends = [start + len(row) for start, row in zip(starts, new, strict=True)]
    places = torch.tensor(
        [[*range(end, start + width), *range(start, end)] for start, end in zip(starts, ends, strict=True)], device=device
    )
    visible = max(starts) + width
    cache.point(first, places, visible)
    hidden = torch.arange(visible, device=device) > places[..., None]
    mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device)
    mask.masked_fill_(hidden, torch.finfo(model.dtype).min)
    out = model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=places.clamp_max(torch.tensor(ends, device=device)[:, None] - 1),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    for slot, row in zip(slots, new, strict=True):
        slot.tokens += row
    logits: Tensor = out.logits[:, -1]
    return logits


def longest_context(config: Any) -> int | None:
    """The tokens that a model takes at most; within a sliding window its attention is over all tokens, and is exact."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise AgentGymError(
            f"{config.model_type} has layers of kind {', '.join(sorted(unknown))}, which keep no keys and values for each "
            "token: the embedded policy cannot decode it. Serve it with vLLM"
        )
    names = ["max_position_embeddings"]
    names += [] if kinds == {"full_attention"} else ["sliding_window", "attention_chunk_size"]
    return min((limit for name in names if (limit := getattr(text, name, None))), default=None)
