"""Calls of MySQL's functions, by the names of `agentgym.tools.mysql.functions.FUNCTIONS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlglot import exp

Call = tuple[str, list[Any]]


def _plain(node: Any) -> Any:
    """Without the conversions that the parser puts around moments."""
    while isinstance(node, exp.TsOrDsToDate | exp.TsOrDsToTimestamp | exp.TsOrDsToTime):
        node = node.this
    return node


def _given(*nodes: Any) -> list[Any]:
    return [node for node in nodes if node is not None]


def _of_this(name: str) -> Callable[[Any], Call]:
    return lambda node: (name, [_plain(node.this)])


def _of_two(name: str) -> Callable[[Any], Call]:
    return lambda node: (name, _given(_plain(node.this), _plain(node.expression)))


def _word(text: Any) -> exp.Literal:
    return exp.Literal.string(str(text).upper())


def _moved(sign: int) -> Callable[[Any], Call]:
    def call(node: Any) -> Call:
        amount = node.expression.copy() if sign > 0 else exp.Neg(this=exp.Paren(this=node.expression.copy()))
        return "DATE_ADD", [node.this, amount, _word(node.args["unit"])]

    return call


def _extract(node: Any) -> Call:
    name = str(node.this).upper()
    return name, [_plain(node.expression)]


def _trim(node: Any) -> Call:
    return "TRIM", [node.this, _word(node.args.get("position") or "BOTH"), *_given(node.args.get("expression"))]


def _round(name: str) -> Callable[[Any], Call]:
    return lambda node: (name, _given(node.this, node.args.get("decimals")))


def _list(name: str) -> Callable[[Any], Call]:
    return lambda node: (name, list(node.expressions))


_CALLS: dict[type[Any], Callable[[Any], Call]] = {
    exp.Year: _of_this("YEAR"),
    exp.Month: _of_this("MONTH"),
    exp.Day: _of_this("DAY"),
    exp.DayOfMonth: _of_this("DAY"),
    exp.DayOfWeek: _of_this("DAYOFWEEK"),
    exp.DayOfYear: _of_this("DAYOFYEAR"),
    exp.Dayname: _of_this("DAYNAME"),
    exp.Hour: _of_this("HOUR"),
    exp.Minute: _of_this("MINUTE"),
    exp.Second: _of_this("SECOND"),
    exp.Quarter: _of_this("QUARTER"),
    exp.TsOrDsToDate: _of_this("DATE"),
    exp.Date: _of_this("DATE"),
    exp.Time: _of_this("TIME"),
    exp.Extract: _extract,
    exp.TimeToStr: lambda node: ("DATE_FORMAT", [_plain(node.this), node.args["format"]]),
    exp.StrToDate: lambda node: ("STR_TO_DATE", [node.this, node.args["format"]]),
    exp.TimestampDiff: lambda node: ("TIMESTAMPDIFF", [node.this, node.expression, _word(node.args["unit"])]),
    exp.DateDiff: _of_two("DATEDIFF"),
    exp.DateAdd: _moved(1),
    exp.DateSub: _moved(-1),
    exp.CurrentDate: lambda node: ("CURDATE", []),
    exp.CurrentTimestamp: lambda node: ("NOW", []),
    exp.Concat: _list("CONCAT"),
    exp.ConcatWs: _list("CONCAT_WS"),
    exp.Substring: lambda node: ("SUBSTRING", _given(node.this, node.args.get("start"), node.args.get("length"))),
    exp.SubstringIndex: lambda node: ("SUBSTRING_INDEX", [node.this, node.args["delimiter"], node.args["count"]]),
    exp.Left: _of_two("LEFT"),
    exp.Right: _of_two("RIGHT"),
    exp.Length: lambda node: ("LENGTH" if node.args.get("binary") else "CHAR_LENGTH", [node.this]),
    exp.Lower: _of_this("LOWER"),
    exp.Upper: _of_this("UPPER"),
    exp.Trim: _trim,
    exp.Replace: lambda node: ("REPLACE", [node.this, node.expression, node.args["replacement"]]),
    exp.StrPosition: lambda node: ("LOCATE", [node.this, node.args["substr"]]),
    exp.Reverse: _of_this("REVERSE"),
    exp.Repeat: lambda node: ("REPEAT", [node.this, node.args["times"]]),
    exp.Pad: lambda node: ("LPAD" if node.args["is_left"] else "RPAD", _given(node.this, node.expression, node.args.get("fill_pattern"))),
    exp.MD5: _of_this("MD5"),
    exp.NumberToStr: lambda node: ("FORMAT", [node.this, node.args["format"]]),
    exp.Round: _round("ROUND"),
    exp.Trunc: _round("TRUNCATE"),
    exp.Floor: _of_this("FLOOR"),
    exp.Ceil: _of_this("CEIL"),
    exp.Abs: _of_this("ABS"),
    exp.Sign: _of_this("SIGN"),
    exp.Mod: _of_two("MOD"),
    exp.Pow: _of_two("POW"),
    exp.Sqrt: _of_this("SQRT"),
    exp.Exp: _of_this("EXP"),
    exp.Ln: _of_this("LN"),
    exp.Greatest: lambda node: ("GREATEST", [node.this, *node.expressions]),
    exp.Least: lambda node: ("LEAST", [node.this, *node.expressions]),
    exp.RegexpSubstr: _of_two("REGEXP_SUBSTR"),
    exp.RegexpReplace: lambda node: ("REGEXP_REPLACE", [node.this, node.expression, node.args["replacement"]]),
    exp.Anonymous: lambda node: (str(node.this), list(node.expressions)),
}


def call_of(node: Any) -> Call | None:
    """The name and the arguments of a call, in MySQL's order; None where it is none that is known."""
    make = _CALLS.get(type(node))
    return None if make is None else make(node)
