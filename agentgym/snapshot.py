"""How to continue an episode from where it was: one contract over four kinds of state.

``value``: the state is immutable and is shared.  ``copy``: the state is deep-copied.
``log``: the effects are replayed and compared.  ``sandbox``: a machine's file tree and processes.
`AgentEnv` does the first three by itself; an environment of the last overrides ``snapshot`` and ``restore``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import orjson

from agentgym.seeds import Lineage
from agentgym.task import Task

Kind = Literal["value", "copy", "log", "sandbox"]
LONGEST_EXCERPT = 120  # characters


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One episode, between two turns. ``digest`` is what `state_digest` gave when it was taken."""

    kind: Kind
    task: Task
    lineage: Lineage
    turn: int
    calls: int
    ended: str | None
    state: Any
    digest: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Effect:
    """What was done that may have changed something, and its answer; a log is its last effect, linked to those before it.

    ``turn`` and ``calls`` are the counts just before it, ``calls_before`` is that when its turn began: draws depend on them.
    """

    before: Effect | None
    turn: int
    calls_before: int
    calls: int
    action: str  # canonical text
    answer: str
    digest: str  # of the whole log

    def __state_digest__(self) -> str:
        return self.digest

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled flat: a chain of some hundreds is nested too deeply."""
        return _chained, ([(e.turn, e.calls_before, e.calls, e.action, e.answer, e.digest) for e in effects(self)],)


def _chained(fields: list[tuple[int, int, int, str, str, str]]) -> Effect | None:
    log: Effect | None = None
    for values in fields:
        log = Effect(log, *values)
    return log


def effects(log: Effect | None) -> list[Effect]:
    """The effects of a log, in the order in which they were done."""
    found: list[Effect] = []
    while log is not None:
        found.append(log)
        log = log.before
    return found[::-1]


def excerpt(text: str, other: str) -> str:
    """``text`` around the place where it leaves ``other``."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - LONGEST_EXCERPT // 3)
    return ("…" if start else "") + text[start : start + LONGEST_EXCERPT] + ("…" if len(text) > start + LONGEST_EXCERPT else "")


def culprit(value: Any, path: str, probe: Callable[[Any], object], seen: frozenset[int] = frozenset()) -> str:
    """The innermost part of ``value`` at which ``probe`` raises: ``path.to.it: its type``."""
    inside = isinstance(value, dict | list | tuple | set | frozenset)
    parts = value if isinstance(value, dict) else dict(enumerate(value)) if inside else _attributes(value)
    for name, part in parts.items():
        try:
            probe(part)
        except Exception:
            if id(part) not in seen:
                return culprit(part, f"{path}[{name!r}]" if inside else f"{path}.{name}", probe, seen | {id(part)})
    return f"{path}: {type(value).__module__}.{type(value).__qualname__}"


# orjson by itself would leave out the fields of a dataclass that begin with an underscore.
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS


def state_digest(*parts: Any) -> str:
    """16 hex digits, equal for equal states in every process. Sets and keys are ordered, generators go by their state.

    A part that has ``__state_digest__() -> str`` is not walked: that text, and the name of its class, stand for it.
    """
    try:
        data = orjson.dumps(parts, default=_plain, option=_OPTIONS)
    except TypeError:  # integers beyond 64 bits, nested keys
        data = repr(_canonical(parts)).encode()
    return blake2b(data, digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    """What orjson cannot write by itself, as something that it can."""
    if (digest := getattr(type(value), "__state_digest__", None)) is not None:
        return [type(value).__qualname__, digest(value)]
    if (fields := getattr(type(value), "__dataclass_fields__", None)) is not None:
        return [type(value).__qualname__, *(getattr(value, name, None) for name in fields)]
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda item: (type(item).__name__, repr(_canonical(item))))
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.tobytes().hex()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, complex | range):
        return repr(value)
    if hasattr(value, "__dict__") or hasattr(value, "__slots__"):
        return [type(value).__qualname__, _attributes(value)]
    raise TypeError(f"a state may not hold {type(value).__name__}")


def _attributes(value: Any) -> dict[str, Any]:
    names = getattr(value, "__dict__", None) or {n: getattr(value, n, None) for n in getattr(value, "__slots__", ())}
    return dict(names)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted(((repr(_canonical(k)), _canonical(v)) for k, v in value.items()), key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return _canonical(_plain(value))
