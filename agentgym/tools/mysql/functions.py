"""Functions and the collation of MySQL, for SQLite. Each is bounded, and none draws at random or asks for the time.

What is known of MySQL 8 is from its reference manual [S2]; what recorded runs show is tested against them.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from agentgym.errors import MissingExtra, ToolError
from agentgym.tools.mysql.values import (
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    TEXT,
    TIME,
    Type,
    computed,
    from_moment,
    merged,
    to_decimal,
    to_moment,
    to_number,
    to_text,
)
from agentgym.tools.sqlite import Session

NOW = datetime(2023, 6, 1)  # statements are answered alike on every day
LONGEST = 100_000  # characters that a function makes
LONGEST_CONCATENATION = 1024  # as group_concat_max_len of MySQL
LONGEST_PATTERN = 500  # characters of a pattern, and of a regular expression also with its counted repeats written out
REGEX_SECONDS = 1.0
_TOKEN = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:[ims]*:|[ims]+\)|[=!>]|<[=!]|<\w+>)|\(\?|\{\s*(\d*)\s*,?\s*(\d*)\s*\}|.", re.DOTALL
)
TypeOf = Callable[[Sequence[Type]], Type]


class Function(NamedTuple):
    """``call`` gets no None unless ``takes_null``. The most arguments is -1 where there is no bound."""

    call: Callable[..., Any]
    type: TypeOf
    takes_null: bool = False


def folded(text: str) -> str:
    """Equal for texts that are equal to MySQL's general collation: without case, accents and blanks at the end."""
    if text.isascii():
        return text.rstrip(" ").upper()
    return _folded(text) if len(text) <= LONGEST_PATTERN else _without_accents(text)


@lru_cache(4096)
def _folded(text: str) -> str:
    return _without_accents(text)


def _without_accents(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFD", text.rstrip(" ")) if not unicodedata.combining(char)).upper()


def collate(one: str, other: str) -> int:
    a, b = folded(one), folded(other)
    return (a > b) - (a < b)


def like(pattern: Any, text: Any, escape: str = "\\") -> int | None:
    """LIKE in a time that is linear in the text for each piece of the pattern between two ``%``."""
    if pattern is None or text is None:
        return None
    if len(to_text(pattern)) > LONGEST_PATTERN:
        raise ToolError(f"a pattern of more than {LONGEST_PATTERN} characters")
    return int(_like(to_text(pattern), escape)(_flat(to_text(text))))


@lru_cache(512)
def _like(pattern: str, escape: str) -> Callable[[str], bool]:
    pieces, piece, chars = [], "", iter(_flat(pattern))
    for char in chars:
        if char == escape:
            piece += re.escape(next(chars, escape))
        elif char == "%":
            pieces.append(piece)
            piece = ""
        else:
            piece += "." if char == "_" else re.escape(char)
    first, *middle = [re.compile(part, re.DOTALL) for part in [*pieces, piece]]
    if not middle:
        return lambda text: first.fullmatch(text) is not None
    last = re.compile(f"(?:{middle.pop().pattern})\\Z", re.DOTALL)
    return lambda text: _in_order(text, first, middle, last)


def _in_order(text: str, first: re.Pattern[str], middle: Sequence[re.Pattern[str]], last: re.Pattern[str]) -> bool:
    found = first.match(text)
    for piece in middle:
        found = piece.search(text, found.end()) if found else None
    return found is not None and last.search(text, found.end()) is not None


def _flat(text: str) -> str:
    """As `folded`, but blanks at the end count: LIKE compares character by character."""
    return folded(text + "|")[:-1]


def regexp(pattern: Any, text: Any) -> int | None:
    if pattern is None or text is None:
        return None
    return int(_search(pattern, text) is not None)


def _search(pattern: Any, text: Any) -> Any:
    return _in_time(pattern, lambda compiled, seconds: compiled.search(to_text(text), timeout=seconds))


def substituted(text: Any, pattern: Any, new: Any) -> str:
    """REGEXP_REPLACE. What it makes is measured before it is made."""
    chars, template = to_text(text), to_text(new)

    def made(compiled: Any, seconds: float) -> str:
        parts, size, end = [], len(chars), 0
        for found in compiled.finditer(chars, timeout=seconds):
            size += len(template) + template.count("\\") * len(chars) - len(found[0])
            if size > LONGEST:
                raise ToolError(f"a text of more than {LONGEST} characters")
            parts += [chars[end : found.start()], found.expand(template)]
            end = found.end()
        return "".join(parts) + chars[end:]

    return str(_in_time(pattern, made))


def _in_time(pattern: Any, use: Callable[[Any, float], Any]) -> Any:
    """The clock of `regex` is that of the whole process, so what it stops goes on until this thread has had its time."""
    try:
        import regex  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra("regex", "sql") from None
    text, seconds, end = to_text(pattern), REGEX_SECONDS, time.thread_time() + REGEX_SECONDS
    if _written_out(text) > LONGEST_PATTERN:
        raise ToolError(f"a regular expression of more than {LONGEST_PATTERN} characters, counted repeats written out")
    while True:
        try:
            return use(regex.compile(text, regex.IGNORECASE), seconds)
        except regex.error as error:
            raise ToolError(f"the regular expression is wrong: {error}") from None
        except TimeoutError:
            if time.thread_time() >= end:
                raise ToolError("Timeout exceeded in regular expression match.") from None
            seconds *= 2


def _written_out(pattern: str) -> int:
    """The length of a regular expression with its counted repeats written out. Raises `ToolError` for what MySQL's do not have."""
    if len(pattern) > LONGEST_PATTERN:
        return len(pattern)
    groups, last = [0], 0  # the lengths of what stands in each open group, and of the last part in the innermost
    for token in _TOKEN.finditer(pattern):
        if token[0] in ("(?", "{"):
            raise ToolError(f"the regular expression is wrong: {pattern[token.start() : token.end() + 1]!r} is not supported here")
        if token[0].startswith("(") and not token[0].endswith(")"):
            groups.append(0)
        elif token[0] == ")" and len(groups) > 1:
            last = groups.pop() + 2
            groups[-1] += last
        elif token[1] or token[2]:
            more = last * (max(int(token[1] or 0), int(token[2] or 0)) - 1)
            groups[-1], last = groups[-1] + max(0, more), last + max(0, more)
        else:
            last = len(token[0])
            groups[-1] += last
    return sum(groups)


def _part(take: Callable[[datetime], Any]) -> Callable[[Any], Any]:
    def part(value: Any) -> Any:
        moment = to_moment(value)
        return None if moment is None else take(moment)

    return part


def _months(moment: datetime) -> int:
    return moment.year * 12 + moment.month


def timestamp_difference(later: Any, earlier: Any, unit: str) -> int | None:
    end, start = to_moment(later), to_moment(earlier)
    if end is None or start is None:
        return None
    if end < start:
        return -(timestamp_difference(earlier, later, unit) or 0)
    if unit in ("YEAR", "QUARTER", "MONTH"):
        months = _months(end) - _months(start) - ((end.day, end.time()) < (start.day, start.time()))
        return months // {"YEAR": 12, "QUARTER": 3, "MONTH": 1}[unit]
    return int((end - start).total_seconds() // {"WEEK": 604800, "DAY": 86400, "HOUR": 3600, "MINUTE": 60}.get(unit, 1))


def date_add(value: Any, amount: Any, unit: str) -> str | None:
    moment, count = to_moment(value), int(to_number(amount))
    if moment is None:
        return None
    has_time = ":" in to_text(value) or unit in ("HOUR", "MINUTE", "SECOND")
    try:
        if unit in ("YEAR", "QUARTER", "MONTH"):
            months = _months(moment) - 1 + count * {"YEAR": 12, "QUARTER": 3, "MONTH": 1}[unit]
            first = moment.replace(year=months // 12, month=months % 12 + 1, day=1)
            following = first.replace(year=(months + 1) // 12, month=(months + 1) % 12 + 1)
            moved = first.replace(day=min(moment.day, (following - first).days))
        else:
            moved = moment + timedelta(seconds=count * {"WEEK": 604800, "DAY": 86400, "HOUR": 3600, "MINUTE": 60}.get(unit, 1))
    except (ValueError, OverflowError):
        return None
    return from_moment(moved, "datetime" if has_time else "date")


def string_to_date(text: Any, form: str) -> str | None:
    try:
        moment = datetime.strptime(to_text(text), form)
    except ValueError:
        return None
    return from_moment(moment, "datetime" if re.search("%[HMSIfTr]", form) else "date")


def substring(text: Any, start: Any, length: Any = LONGEST) -> str:
    chars, begin, count = to_text(text), int(to_number(start)), int(to_number(length))
    begin = begin - 1 if begin > 0 else len(chars) + begin
    return chars[begin : begin + count] if begin >= 0 and count > 0 and int(to_number(start)) else ""


def substring_index(text: Any, separator: Any, count: Any) -> str:
    parts, number = to_text(text).split(to_text(separator) or "\0"), int(to_number(count))
    return to_text(separator).join(parts[:number] if number > 0 else parts[number:] if number else [])


def pad(left: bool) -> Callable[..., str | None]:
    def padded(text: Any, length: Any, filling: Any = " ") -> str | None:
        chars, size, fill = to_text(text), int(to_number(length)), to_text(filling)
        if not 0 <= size <= LONGEST or (not fill and size > len(chars)):
            return None
        more = (fill * (size // max(1, len(fill)) + 1))[: max(0, size - len(chars))]
        return (more + chars if left else chars + more)[:size]

    return padded


def trim(text: Any, where: str = "BOTH", what: Any = " ") -> str:
    chars, piece, start = to_text(text), to_text(what), 0
    end = len(chars)
    while piece and where != "TRAILING" and chars.startswith(piece, start):
        start += len(piece)
    while piece and where != "LEADING" and chars.endswith(piece, start, end):
        end -= len(piece)
    return chars[start:end]


def rounded(value: Any, digits: Any = 0) -> float | int:
    number, places = to_number(value), _places(digits)
    if isinstance(number, int) and places >= 0:
        return number
    result = float(to_decimal(number, places)) if places >= 0 else float(to_decimal(number / 10**-places, 0)) * 10**-places
    return int(result) if isinstance(number, int) else result


def _places(digits: Any) -> int:
    return max(-30, min(30, int(to_number(digits))))


def truncated(value: Any, digits: Any = 0) -> float:
    power = 10.0 ** _places(digits)
    return math.trunc(float(to_number(value)) * power) / power


def modulo(value: Any, divisor: Any) -> Any:
    a, b = to_number(value), to_number(divisor)
    if b == 0:
        return None
    return int(math.fmod(a, b)) if isinstance(a, int) and isinstance(b, int) else math.fmod(a, b)


def to_integer(value: Any) -> int:
    """CAST AS SIGNED: numbers are rounded, texts give the whole number that they begin with."""
    if isinstance(value, str):
        match = re.match(r"\s*[+-]?\d{1,18}", value)
        return int(match[0]) if match else 0
    return int(to_decimal(value, 0))


def _limited(text: str) -> str:
    if len(text) > LONGEST:
        raise ToolError(f"a text of more than {LONGEST} characters")
    return text


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*values: Any) -> Any:
        return choose(values, key=to_number) if any(isinstance(value, int | float) for value in values) else choose(values, key=folded)

    return extreme


def _always(type: Type) -> TypeOf:
    return lambda types: type


def _of_first(types: Sequence[Type]) -> Type:
    return types[0] if types and types[0].is_number else DOUBLE


def _whole(types: Sequence[Type]) -> Type:
    return INT if types and types[0].kind in ("int", "decimal") else Type("double", 0)


_int, _text, _double = _always(INT), _always(TEXT), _always(DOUBLE)
FUNCTIONS: dict[str, Function] = {
    "YEAR": Function(_part(lambda moment: moment.year), _int),
    "MONTH": Function(_part(lambda moment: moment.month), _int),
    "DAY": Function(_part(lambda moment: moment.day), _int),
    "HOUR": Function(_part(lambda moment: moment.hour), _int),
    "MINUTE": Function(_part(lambda moment: moment.minute), _int),
    "SECOND": Function(_part(lambda moment: moment.second), _int),
    "QUARTER": Function(_part(lambda moment: (moment.month + 2) // 3), _int),
    "WEEKDAY": Function(_part(lambda moment: moment.weekday()), _int),
    "DAYOFWEEK": Function(_part(lambda moment: moment.isoweekday() % 7 + 1), _int),
    "DAYOFYEAR": Function(_part(lambda moment: moment.timetuple().tm_yday), _int),
    "DAYNAME": Function(_part(lambda moment: f"{moment:%A}"), _text),
    "DATE": Function(_part(lambda moment: from_moment(moment, "date")), _always(DATE)),
    "DATETIME": Function(_part(from_moment), _always(DATETIME)),
    "TIME": Function(_part(lambda moment: f"{moment:%H:%M:%S}"), _always(TIME)),
    "TIMESTAMPDIFF": Function(timestamp_difference, _int),
    "DATEDIFF": Function(lambda a, b: timestamp_difference(f"{a}"[:10], f"{b}"[:10], "DAY"), _int),
    "DATE_ADD": Function(date_add, lambda types: types[0] if types[0].is_moment else TEXT),
    "DATE_FORMAT": Function(lambda value, form: _part(lambda moment: moment.strftime(form))(value), _text),
    "STR_TO_DATE": Function(string_to_date, _always(DATETIME)),
    "CURDATE": Function(lambda: from_moment(NOW, "date"), _always(DATE)),
    "NOW": Function(lambda: from_moment(NOW), _always(DATETIME)),
    "CONCAT": Function(lambda *parts: _limited("".join(map(to_text, parts))), _text),
    "CONCAT_WS": Function(
        lambda by, *parts: None if by is None else _limited(to_text(by).join(to_text(part) for part in parts if part is not None)),
        _text,
        takes_null=True,
    ),
    "SUBSTRING": Function(substring, _text),
    "SUBSTRING_INDEX": Function(substring_index, _text),
    "LEFT": Function(lambda text, count: to_text(text)[: max(0, int(to_number(count)))], _text),
    "RIGHT": Function(lambda text, count: to_text(text)[-int(to_number(count)) :] if to_number(count) >= 1 else "", _text),
    "LENGTH": Function(lambda text: len(to_text(text).encode("utf-8", "surrogatepass")), _int),
    "CHAR_LENGTH": Function(lambda text: len(to_text(text)), _int),
    "LOWER": Function(lambda text: to_text(text).lower(), _text),
    "UPPER": Function(lambda text: to_text(text).upper(), _text),
    "TRIM": Function(trim, _text),
    "REPLACE": Function(lambda text, old, new: _replaced(to_text(text), to_text(old), to_text(new)), _text),
    "LOCATE": Function(lambda text, piece: _flat(to_text(text)).find(_flat(to_text(piece))) + 1, _int),
    "FIND_IN_SET": Function(lambda text, items: _place(text, to_text(items).split(",")), _int),
    "FIELD": Function(lambda value, *others: _place(value, others), _int),
    "REVERSE": Function(lambda text: to_text(text)[::-1], _text),
    "REPEAT": Function(lambda text, count: _repeated(to_text(text), int(to_number(count))), _text),
    "LPAD": Function(pad(left=True), _text),
    "RPAD": Function(pad(left=False), _text),
    "MD5": Function(lambda text: hashlib.md5(to_text(text).encode("utf-8", "surrogatepass")).hexdigest(), _text),
    "FORMAT": Function(lambda value, digits: f"{to_decimal(value, max(0, min(30, int(to_number(digits))))):,}", _text),
    "ROUND": Function(rounded, _of_first),
    "TRUNCATE": Function(truncated, _of_first),
    "FLOOR": Function(lambda value: math.floor(to_number(value)), _whole),
    "CEIL": Function(lambda value: math.ceil(to_number(value)), _whole),
    "ABS": Function(lambda value: abs(to_number(value)), _of_first),
    "SIGN": Function(lambda value: (to_number(value) > 0) - (to_number(value) < 0), _int),
    "MOD": Function(modulo, lambda types: computed(*types)),
    "POW": Function(lambda base, power: math.pow(to_number(base), to_number(power)), _double),
    "SQRT": Function(lambda value: math.sqrt(to_number(value)) if to_number(value) >= 0 else None, _double),
    "EXP": Function(lambda value: math.exp(to_number(value)), _double),
    "LN": Function(lambda value: math.log(to_number(value)) if to_number(value) > 0 else None, _double),
    "GREATEST": Function(_extreme(max), lambda types: merged(*types)),
    "LEAST": Function(_extreme(min), lambda types: merged(*types)),
    "REGEXP_SUBSTR": Function(lambda text, pattern: found[0] if (found := _search(pattern, text)) else None, _text),
    "REGEXP_REPLACE": Function(substituted, _text),
    # What MySQL does by itself, where SQLite would not.
    "M_NUMBER": Function(to_number, _double),
    "M_STAMP": Function(_part(lambda moment: int(f"{moment:%Y%m%d%H%M%S}")), _int),
    "M_INTEGER": Function(to_integer, _int),
    "M_DECIMAL": Function(lambda value, scale: float(to_decimal(value, scale)), _double),
    "M_TEXT": Function(to_text, _text),
    "M_TUPLE": Function(lambda *values: "\0".join(folded(to_text(value)) for value in values), _text),
}


def _place(value: Any, others: Sequence[Any]) -> int:
    """Counted from 1; 0 where the value is not among the others."""
    texts = [folded(to_text(other)) for other in others]
    return texts.index(folded(to_text(value))) + 1 if folded(to_text(value)) in texts else 0


def _replaced(text: str, old: str, new: str) -> str:
    if not old:
        return text
    if len(text) + text.count(old) * (len(new) - len(old)) > LONGEST:
        raise ToolError(f"a text of more than {LONGEST} characters")
    return text.replace(old, new)


def _repeated(text: str, count: int) -> str | None:
    if count * len(text) > LONGEST:
        return None
    return text * max(0, count)


class OneRow:
    """What a subquery gives that must give at most one row."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def step(self, value: Any) -> None:
        self.rows.append(value)
        if len(self.rows) > 1:
            raise ToolError("Subquery returns more than 1 row")

    def finalize(self) -> Any:
        return self.rows[0] if self.rows else None


class GroupConcat:
    """``step(value, separator, distinct, descending, *keys)``: the values in the order of the keys, cut as MySQL cuts them."""

    def __init__(self) -> None:
        self.values: list[tuple[Any, str]] = []
        self.seen: set[str] = set()
        self.separator, self.descending = ",", False

    def step(self, value: Any, separator: str, distinct: int, descending: int, key: Any) -> None:
        self.separator, self.descending = separator, bool(descending)
        if value is not None and len(self.values) < LONGEST and not (distinct and folded(to_text(value)) in self.seen):
            self.seen.add(folded(to_text(value)))
            self.values.append((key, to_text(value)))

    def finalize(self) -> str | None:
        if not self.values:
            return None
        ordered = sorted(self.values, key=lambda pair: _sortable(pair[0]), reverse=self.descending)
        return self.separator.join(value for _, value in ordered)[:LONGEST_CONCATENATION]


class Deviation:
    """Sums for VARIANCE and STDDEV: of the population."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def step(self, value: Any) -> None:
        if value is None:
            return
        self.count += 1
        off = float(to_number(value)) - self.mean
        self.mean += off / self.count
        self.squares += off * (float(to_number(value)) - self.mean)

    def finalize(self) -> float | None:
        return self.squares / self.count if self.count else None


def _sortable(value: Any) -> tuple[int, Any]:
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, folded(to_text(value)))


def dress(session: Session) -> None:
    """Give a connection the functions, the collation and the LIKE of MySQL."""
    session.add_collation("mysql", collate)
    for name, count, function in (("like", 2, like), ("like", 3, like), ("regexp", 2, regexp)):
        session.add_function(name, count, function, lambda pattern, text, *escape: _pattern_steps(text, pattern))
    for name, known in FUNCTIONS.items():
        has_pattern = name in ("REGEXP_SUBSTR", "REGEXP_REPLACE", "STR_TO_DATE")
        session.add_function(f"mysql_{name}", -1, _careful(known), _pattern_steps if has_pattern else lambda *values: 0)
    session.add_aggregate("mysql_one_row", 1, OneRow)
    session.add_aggregate("mysql_group_concat", 5, GroupConcat)
    session.add_aggregate("mysql_variance", 1, Deviation)


def _pattern_steps(text: Any = "", pattern: Any = "", *others: Any) -> int:
    """To make the pattern ready, and to look for it everywhere."""
    return 300 + len(str(pattern)) * (30 + len(str(text)) // 8)


def _careful(function: Function) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        if not function.takes_null and None in values:
            return None
        return function.call(*values)

    return call
