"""Rows of tasks from JSON lines and datasets: every bad one is named with its file, number, field and reason."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from agentgym.errors import AgentGymError

# A file of JSON lines, perhaps ``.gz``, or rows such as those of ``datasets.load_dataset(...)``.
Rows = str | Path | Iterable[Mapping[str, Any]]
Row = TypeVar("Row", bound=BaseModel)


def read(rows: Rows, model: type[Row], translate: Callable[[Any], Any] = lambda value: value) -> Iterator[tuple[str, Row]]:
    """Each row, and where it stands. ``translate`` brings another form into that of ``model``."""
    for place, value in _values(rows):
        try:
            yield place, model.model_validate(translate(value))
        except (TypeError, AttributeError) as error:  # a field of another form's type
            raise AgentGymError(f"{place}: {error}") from None
        except ValidationError as error:
            reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
            raise AgentGymError(f"{place}: {reasons}") from None


def name_of(rows: Rows) -> str:
    return str(rows) if isinstance(rows, str | Path) else "the given rows"


def _values(rows: Rows) -> Iterator[tuple[str, Any]]:
    if not isinstance(rows, str | Path):
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        return
    try:
        with gzip.open(rows) if str(rows).endswith(".gz") else open(rows, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{rows}, line {number}", _json(line, f"{rows}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise AgentGymError(f"{rows} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _json(line: bytes, place: str) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise AgentGymError(f"{place}: not JSON ({error})") from None
