"""The types of MySQL that a result shows, and the Python values that its connector makes of them."""

from __future__ import annotations

import re
import sys
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext
from typing import Any, Literal, NamedTuple

Kind = Literal["int", "decimal", "double", "float", "text", "date", "datetime", "time", "null"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "integer", "bigint", "year", "bool", "boolean", "bit"), "int"),
    **dict.fromkeys(("decimal", "numeric", "dec"), "decimal"),
    **dict.fromkeys(("double", "real"), "double"),
    "float": "float",
    "date": "date",
    **dict.fromkeys(("datetime", "timestamp"), "datetime"),
    "time": "time",
}
MOST_DIGITS = 30  # after the point
_MOST = sys.float_info.max
_DECLARED = re.compile(r"(\w+)\s*(?:\(\s*\d+\s*(?:,\s*(\d+)\s*)?\))?")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_DATE = re.compile(r"\s*(\d{4})-(\d{1,2})-(\d{1,2})(?:[ T](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,6}))?)?)?\s*")


class Type(NamedTuple):
    """``scale``: digits after the point, of a decimal, and of a double where it is known."""

    kind: Kind
    scale: int | None = None

    @property
    def is_number(self) -> bool:
        return self.kind in ("int", "decimal", "double", "float")

    @property
    def is_moment(self) -> bool:
        return self.kind in ("date", "datetime")


INT, TEXT, NULL, DOUBLE = Type("int"), Type("text"), Type("null"), Type("double")
DATE, DATETIME, TIME = Type("date"), Type("datetime"), Type("time")


def declared(text: str) -> Type:
    """The type that a column is declared with: ``varchar(255)``, ``float(10,2)``, ``int unsigned``."""
    match = _DECLARED.match(text.lower())
    kind = _KINDS.get(match[1], "text") if match else "text"
    scale = min(int(match[2]), MOST_DIGITS) if match and match[2] else None
    return Type(kind, 0 if kind == "decimal" and scale is None else scale)


def merged(*types: Type) -> Type:
    """The type of what is one or the other, as in CASE and UNION."""
    known = [type for type in types if type.kind != "null"]
    if not known:
        return NULL
    if all(type == known[0] for type in known):
        return known[0]
    if all(type.is_number for type in known):
        return computed(*known)
    return DATETIME if all(type.is_moment for type in known) else TEXT


def computed(*types: Type, more: int = 0) -> Type:
    """The type of a sum of numbers. ``more``: digits after the point that an average or a quotient adds."""
    scales = [type.scale or 0 for type in types]
    if any(type.kind not in ("int", "decimal", "null") for type in types):
        exact = all(type.scale is not None or type.kind == "int" for type in types)
        return Type("double", max(scales) + more if exact else None)
    return INT if not more and all(type.kind == "int" for type in types) else Type("decimal", max(scales, default=0) + more)


def to_python(value: Any, type: Type) -> Any:
    """What SQLite holds, as MySQL's connector gives it."""
    if value is None:
        return None
    match type.kind:
        case "int":
            return int(to_number(value))
        case "decimal":
            return to_decimal(value, type.scale or 0)
        case "double":
            number = float(to_number(value))
            return number if type.scale is None else round(number, type.scale)
        case "float":
            return float(f"{to_number(value):.6g}" if type.scale is None else f"{to_number(value):.{type.scale}f}")
        case "date":
            moment = to_moment(value)
            return moment.date() if moment else None
        case "datetime":
            return to_moment(value)
        case "time":
            return to_duration(value)
    return value if isinstance(value, str | bytes) else to_text(value)


def written(value: Any, type: Type) -> str | None:
    """What SQLite holds, as MySQL writes it."""
    return None if value is None else to_text(to_python(value, type) if type.is_number else value)


def to_number(value: Any) -> float | int:
    """A number, or the one that a text begins with, or 0; never infinite, as MySQL has none such."""
    if isinstance(value, int | float):
        return max(-_MOST, min(value, _MOST)) if isinstance(value, float) else value
    match = _NUMBER.match(value if isinstance(value, str) else bytes(value).decode("utf-8", "replace"))
    if match is None:
        return 0
    return int(match[1]) if match[1].lstrip("+-").isdigit() and len(match[1]) < 19 else to_number(float(match[1]))


def to_decimal(value: Any, scale: int) -> Decimal:
    with localcontext() as context:
        context.prec = 65
        try:
            return Decimal(str(to_number(value))).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
        except InvalidOperation:  # not finite, or wider than MySQL's widest
            return Decimal("9" * (65 - scale)).scaleb(-scale)


def to_text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace("e+", "e")
    if isinstance(value, Decimal):
        return f"{value:f}"
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def to_moment(value: Any) -> datetime | None:
    """A date, perhaps with a time of day; None where there is no such day."""
    if isinstance(value, datetime | date):
        return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    if (match := _DATE.match(to_text(value))) is None:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        return datetime(year, month, day, hour, minute, second, int((match[7] or "").ljust(6, "0")))
    except ValueError:
        return None


def to_duration(value: Any) -> timedelta | None:
    parts = re.fullmatch(r"(-?)(\d{1,3}):(\d{1,2})(?::(\d{1,2}))?", to_text(value))
    if parts is None:
        return None
    duration = timedelta(hours=int(parts[2]), minutes=int(parts[3]), seconds=int(parts[4] or 0))
    return -duration if parts[1] else duration


def from_moment(moment: datetime | None, kind: Kind = "datetime") -> str | None:
    """As a column of that kind holds it."""
    if moment is None:
        return None
    if kind == "date":
        return f"{moment:%Y-%m-%d}"
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{moment.microsecond:06}" if moment.microsecond else "")
