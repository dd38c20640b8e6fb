"""Seed lineage: one root seed, and a named sub-stream for everything that draws."""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b

Name = str | int


@dataclass(frozen=True, slots=True)
class Lineage:
    """A path of names below one root seed, such as ``root / split / task / episode / turn / tool``.

    Two lineages give the same numbers iff their paths are equal. Seeds are made by hashing the whole path, never by
    adding integers, so that ``episode 1, turn 2`` and ``episode 2, turn 1`` share nothing.
    """

    path: tuple[Name, ...]

    @classmethod
    def of(cls, root: int, *names: Name) -> Lineage:
        return cls((root, *names))

    def __truediv__(self, name: Name) -> Lineage:
        return Lineage((*self.path, name))

    def seed(self) -> int:
        """A 63-bit seed, equal in every process and on every platform."""
        text = "/".join(f"{type(name).__name__}:{len(str(name))}:{name}" for name in self.path)
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def rng(self) -> random.Random:
        return random.Random(self.seed())
