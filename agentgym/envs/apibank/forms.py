"""How the APIs read names, days and moments, and how they refuse."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import WithJsonSchema

MOMENT, DAY = "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"
Day = Annotated[str, WithJsonSchema({"type": "string", "description": "a day, such as 2023-03-31"})]
Moment = Annotated[str, WithJsonSchema({"type": "string", "description": "such as 2023-03-31 14:30:00"})]


class Refused(ValueError):
    """A call that the benchmark's API answers with an exception."""


def folded(text: Any) -> str:
    return str(text).strip().lower()


def moment_of(text: str) -> str:
    """A moment as it is kept. Raises `Refused` for anything else."""
    return _dated(text, MOMENT)


def strict_moment(text: str) -> str:
    """A moment in the one form that the tables have. Raises `Refused` for another."""
    read_date(text, MOMENT)
    return text


def day_of(text: str) -> str:
    return _dated(text, DAY)


def month_and_day(text: str) -> str:
    """Of a day, or of ``%m-%d``."""
    try:
        return day_of(text)[5:]
    except Refused:
        return day_of(f"2000-{text.strip()}")[5:]


def refuse_empty(*texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise Refused("something is empty")


def _dated(text: str, form: str) -> str:
    year, *rest = text.strip().split("-")
    return read_date("-".join((year.zfill(4), *rest)), form).strftime(form)


def read_date(text: str, form: str) -> datetime:
    try:
        return datetime.strptime(text, form)
    except ValueError as error:
        raise Refused(str(error)) from error
