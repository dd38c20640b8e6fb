"""Nested tables as values: changing one row gives a new version that shares all else, and its state hash costs only the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self, overload

from agentgym.errors import AgentGymError

Key = str | int
Place = Key | Sequence[Key]
_MARKS = {type(None): b"n", bool: b"b", int: b"i", float: b"f", str: b"s"}


def freeze(value: Any, where: str = "") -> Any:
    """Dicts, lists and tuples as `FrozenDict` and `FrozenList`, at every depth. Scalars and frozen parts stay as they are.

    Raises `AgentGymError` with the place of anything that JSON does not have.
    """
    if type(value) in _MARKS or isinstance(value, Frozen):
        return value
    if isinstance(value, Mapping):
        if odd := [key for key in value if type(key) is not str]:
            raise AgentGymError(f"the keys of a table are texts: write {odd[0]!r} as text in {where or 'the outermost dict'}")
        return FrozenDict({key: freeze(part, f"{where}[{key!r}]") for key, part in value.items()})
    if isinstance(value, list | tuple):
        return FrozenList([freeze(part, f"{where}[{number}]") for number, part in enumerate(value)])
    raise AgentGymError(f"a table holds only what JSON has, but {where or 'this'} is a {type(value).__name__}: convert it")


class Frozen:
    """What `FrozenDict` and `FrozenList` share. Nothing changes: every change gives a new version. Made by `freeze`.

    A version copies the level that changed and those above it, and shares the rest. Two are equal iff their digests are,
    that is, iff their contents are, types included: 1, 1.0 and True differ, as do 0.0 and -0.0, and NaN equals itself. The
    order of the keys of a dict does not count, that of a list does. A frozen value equals no plain one: compare with
    ``freeze(plain)``.

    The digest of a level hashes the sum of its entries' hashes, so that a change takes one entry out and adds
    one (AdHash: Bellare and Micciancio, A New Paradigm for Collision-free Hashing, 1997). It guards against error, not forgery.
    """

    __slots__ = ("_digest", "_items", "_sum")

    def __init__(self, items: Any, total: int | None = None) -> None:
        self._items: Any = items  # a dict or a list, which nobody changes
        self._sum = total  # None: nobody has asked for the digest of this version or of one before it
        self._digest: bytes | None = None

    def set(self, place: Place, value: Any) -> Self:
        """A version with ``value`` at a key, an index, or a path of them. All of the path but its last must exist."""
        value = freeze(value)
        return self._changed(_path(place), lambda level, key: level._with(level._position(key), value))

    def delete(self, place: Place) -> Self:
        """A version without what is at ``place``. In a list, what follows moves up."""
        return self._changed(_path(place), lambda level, key: level._without(level._position(key)))

    def append(self, place: Place, value: Any) -> Self:
        """A version with ``value`` at the end of the list at ``place``; ``()`` is this list itself."""
        value = freeze(value)
        return self._changed([*_path(place), -1], lambda level, _: level._with(level._end(), value))

    @property
    def digest(self) -> str:
        """32 hex digits, equal for equal contents in every process."""
        return self._hash().hex()

    def to_plain(self) -> Any:
        """A copy in dicts and lists, which may be changed."""
        plain = [(key, part.to_plain() if isinstance(part, Frozen) else part) for key, part in self._entries()]
        return dict(plain) if isinstance(self._items, dict) else [part for _, part in plain]

    def __state_digest__(self) -> str:
        return self.digest

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frozen) and self._hash() == other._hash())

    def __hash__(self) -> int:
        return hash(self._hash())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"freeze({self.to_plain()!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def _entries(self) -> Iterable[tuple[Any, Any]]:
        return self._items.items() if isinstance(self._items, dict) else enumerate(self._items)

    def _position(self, key: Key) -> Any:
        """The key or the index as it is stored."""
        if isinstance(self._items, dict) is not isinstance(key, str):
            raise TypeError(f"{key!r} cannot be a place in a {'dict' if isinstance(self._items, dict) else 'list'}")
        if isinstance(key, int) and not -len(self) <= key < len(self):
            raise IndexError(f"index {key} of a list of {len(self)}")
        return key % len(self) if isinstance(key, int) else key

    def _end(self) -> int:
        if isinstance(self._items, dict):
            raise TypeError("a dict has no end to append to")
        return len(self)

    def _changed(self, path: Sequence[Key], change: Callable[[Frozen, Key], Any]) -> Self:
        if not path:
            raise TypeError("the path is empty: name what is to change")
        if len(path) == 1:
            return change(self, path[0])  # type: ignore[no-any-return]  # a level changes into one of its class
        inner = self._items[self._position(path[0])]
        if not isinstance(inner, Frozen):
            raise TypeError(f"{path[0]!r} is {inner!r}, which has no parts")
        return self._with(self._position(path[0]), inner._changed(path[1:], change))

    def _with(self, key: Any, value: Any) -> Self:
        items, total = self._items.copy(), self._sum
        is_new = key not in items if isinstance(items, dict) else key == len(items)
        if total is not None:
            total += _entry(key, value) - (0 if is_new else _entry(key, items[key]))
        if is_new and isinstance(items, list):
            items.append(value)
        else:
            items[key] = value
        return type(self)(items, total)

    def _without(self, key: Any) -> Self:
        items = self._items.copy()
        value = items.pop(key)
        countable = self._sum is not None and isinstance(items, dict)  # in a list, all that follows has a new index
        return type(self)(items, self._sum - _entry(key, value) if countable else None)  # type: ignore[operator]

    def _hash(self) -> bytes:
        if self._digest is None:
            if self._sum is None:
                self._sum = sum(_entry(key, value) for key, value in self._entries())
            mark = b"{" if isinstance(self._items, dict) else b"["
            self._digest = blake2b(b"%b%d:%d" % (mark, len(self), self._sum), digest_size=16).digest()
        return self._digest


class FrozenDict(Frozen, Mapping[str, Any]):
    """An immutable dict with texts as keys, read like a dict. See `Frozen`."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)


class FrozenList(Frozen, Sequence[Any]):
    """An immutable list, read like a list. See `Frozen`."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> FrozenList: ...
    def __getitem__(self, index: int | slice) -> Any:
        part = self._items[index]
        return FrozenList(part) if isinstance(index, slice) else part

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def _path(place: Place) -> Sequence[Key]:
    return (place,) if isinstance(place, str | int) else place


def _entry(key: Key, value: Any) -> int:
    name = b"%d" % key if isinstance(key, int) else _text(key)
    if isinstance(value, Frozen):
        content = b"t" + value._hash()
    else:
        content = _MARKS[type(value)] + (_text(value) if isinstance(value, str) else repr(value).encode())
    return int.from_bytes(blake2b(b"%d:%b%b" % (len(name), name, content), digest_size=16).digest(), "big")


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")
