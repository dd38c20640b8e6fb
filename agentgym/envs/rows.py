"""Rows of tasks from JSON lines and datasets: every bad one is named with its file, number, field and reason."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from agentgym.errors import AgentGymError

# A file of JSON lines, perhaps ``.gz``, or rows such as those of ``datasets.load_dataset(...)``.
Rows = str | Path | Iterable[Mapping[str, Any]]
Row = TypeVar("Row", bound=BaseModel)


_SKIPPED: ContextVar[dict[str, None] | None] = ContextVar("skipped", default=None)


@contextmanager
def skipping_bad() -> Iterator[Mapping[str, None]]:
    """Within it, a bad row is left out and what is wrong with it is added to what is given; outside, it is an error."""
    skipped: dict[str, None] = {}
    before = _SKIPPED.set(skipped)
    try:
        yield skipped
    finally:
        _SKIPPED.reset(before)


def read(rows: Rows, model: type[Row], translate: Callable[[Any], Any] = lambda value: value) -> Iterator[tuple[str, Row]]:
    """Each row, and where it stands. ``translate`` brings another form into that of ``model``.

    Raises `AgentGymError` for a file that cannot be read, and for a bad row, unless bad ones are skipped.
    """
    for place, value in _values(rows):
        try:
            found = _fitted(place, value, model, translate)
        except AgentGymError as error:
            if (skipped := _SKIPPED.get()) is None:
                raise
            skipped[str(error)] = None
        else:
            yield place, found


def _fitted(place: str, value: Any, model: type[Row], translate: Callable[[Any], Any]) -> Row:
    try:
        return model.model_validate(translate(orjson.loads(value) if isinstance(value, bytes) else value))
    except orjson.JSONDecodeError as error:
        raise AgentGymError(f"{place}: not JSON ({error})") from None
    except (TypeError, AttributeError) as error:  # a field of another form's type
        raise AgentGymError(f"{place}: {error}") from None
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
        raise AgentGymError(f"{place}: {reasons}") from None


def name_of(rows: Rows) -> str:
    return str(rows) if isinstance(rows, str | Path) else "the given rows"


def _values(rows: Rows) -> Iterator[tuple[str, Any]]:
    """Each row as a value, or as a line that holds one."""
    if not isinstance(rows, str | Path):
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        return
    try:
        with gzip.open(rows) if str(rows).endswith(".gz") else open(rows, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{rows}, line {number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise AgentGymError(f"{rows} cannot be read: {getattr(error, 'strerror', None) or error}") from error

