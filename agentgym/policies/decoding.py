"""Ragged decoding with a key-value cache of slots, for any unpatched Hugging Face causal model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False, slots=True)
class Slot:
    """One row of the cache. It holds the first ``length`` tokens of some context until its ``epoch`` changes."""

    row: int
    length: int = 0
    epoch: int = 0
    busy: bool = False
    used: int = 0  # when it was last released, for eviction


@dataclass(frozen=True, slots=True)
class Handle:
    """The first ``length`` tokens in a slot; ``logits`` (V,) after them where they are known."""

    slot: Slot
    length: int
    epoch: int
    logits: Tensor | None = None

    @property
    def holds(self) -> bool:
        return self.slot.epoch == self.epoch


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
        self._rows = slice(0, 0)
        self._positions = torch.empty(0)
        self._visible = 0

    def point(self, first: int, positions: Tensor, visible: int) -> None:
        """The next pass writes rows ``first, first + 1, …`` at ``positions`` (rows, new) and sees ``visible`` columns."""
        self._rows = slice(first, first + positions.shape[0])
        self._positions = positions
        self._visible = visible
        while self._capacity < visible:
            self._capacity *= 2
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                if old.shape[2] < self._capacity:
                    store[layer] = _grown(old, self._capacity)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer == len(self._keys):
            shape = (len(self.slots), keys.shape[1], self._capacity, keys.shape[3])
            self._keys.append(keys.new_zeros(shape))
            self._values.append(values.new_zeros(shape))
        seen = []
        for store, new in ((self._keys, keys), (self._values, values)):
            rows = store[layer][self._rows]
            index = self._positions[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            rows.scatter_(2, index, new)
            seen.append(rows[:, :, : self._visible])
        return seen[0], seen[1]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._visible

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        for tensor in (*self._keys, *self._values):
            tensor[target.row, :, :length] = tensor[source.row, :, :length]
        target.length = length

    def swap(self, slot: Slot, row: int) -> None:
        """Move a slot to another row, and the slot that is there to its place."""
        if slot.row == row:
            return
        other = self._by_row[row]
        longest = max(slot.length, other.length)
        for tensor in (*self._keys, *self._values):
            kept = tensor[row, :, :longest].clone()
            tensor[row, :, :longest] = tensor[slot.row, :, :longest]
            tensor[slot.row, :, :longest] = kept
        slot.row, other.row = row, slot.row
        self._by_row[slot.row], self._by_row[other.row] = slot, other


def _grown(old: Tensor, capacity: int) -> Tensor:
    grown = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
    grown[:, :, : old.shape[2]] = old
    return grown


def forward(model: Any, cache: SlotCache, first: int, starts: list[int], tokens: list[list[int]]) -> Tensor:
    """Feed each row's new tokens after its ``starts``. Returns the logits after each row's last token, (rows, V)."""
    width = max(map(len, tokens))
    device = model.device
    ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=device)
    positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
    visible = max(start + len(row) for start, row in zip(starts, tokens, strict=True))
    visible = max(visible, max(starts) + width)
    cache.point(first, positions, visible)
    hidden = torch.arange(visible, device=device) > positions[..., None]
    mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device).masked_fill_(hidden, torch.finfo(model.dtype).min)
    out = model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(sorted({len(row) - 1 for row in tokens}), device=device),
    )
    kept = sorted({len(row) - 1 for row in tokens})
    where = torch.tensor([kept.index(len(row) - 1) for row in tokens], device=device)
    logits: Tensor = out.logits[torch.arange(len(tokens), device=device), where]
    return logits
