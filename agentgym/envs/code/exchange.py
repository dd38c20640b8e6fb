"""Plain Python values as JSON and back, for programs that must not share a process. Needs the standard library alone.

Its text is put before the programs that run in a sandbox. Reading runs nothing: what is no plain value becomes an `Opaque`.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any


class Opaque:
    """A value that cannot be exchanged. It equals nothing."""

    def __init__(self, type: str) -> None:
        self.type = type

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<a {self.type}>"


def dumps(value: Any) -> str:
    """Subclasses of the plain types are written as these."""
    return json.dumps(_written(value))


def loads(text: str) -> Any:
    """Raises ValueError for text that `dumps` does not write."""
    try:
        return _read(json.loads(text))
    except (TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an exchanged value: {error}") from None


def is_opaque(value: Any) -> bool:
    """Whether any part of it is `Opaque`."""
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    nested = isinstance(value, dict | list | tuple | set | frozenset)
    return isinstance(value, Opaque) or (nested and any(map(is_opaque, parts)))


def _written(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return {"int": str(int(value))}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {"dict": [[_written(key), _written(part)] for key, part in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [_written(part) for part in value]}
    name = getattr(value, "__name__", "")
    return {"type": name} if isinstance(value, type) and hasattr(builtins, name) else {"other": type(value).__name__}


def _read(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    ((kind, content),) = value.items()
    return _READERS[kind](content)


def _type(name: str) -> Any:
    found = getattr(builtins, name, None)
    return found if isinstance(found, type) else Opaque(name)


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "dict": lambda pairs: {_read(key): _read(part) for key, part in pairs},
    "list": lambda parts: [_read(part) for part in parts],
    "tuple": lambda parts: tuple(map(_read, parts)),
    "set": lambda parts: set(map(_read, parts)),
    "frozenset": lambda parts: frozenset(map(_read, parts)),
    "type": _type,
    "other": Opaque,
}
