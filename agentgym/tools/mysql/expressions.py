"""Expressions of MySQL made into those of SQLite that have the same value, each with its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlglot import exp

from agentgym.errors import ToolError
from agentgym.tools.mysql.calls import call_of
from agentgym.tools.mysql.functions import FUNCTIONS
from agentgym.tools.mysql.names import Bound, Column, Scope
from agentgym.tools.mysql.values import (
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    MOST_DIGITS,
    NULL,
    TEXT,
    Type,
    computed,
    declared,
    from_moment,
    merged,
    to_moment,
    to_number,
)

Node = Any  # of sqlglot, whose classes tell little to a type checker
COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ)
CONDITIONS = (exp.And, exp.Or, exp.Not, exp.Xor)
TESTS = (exp.Between, exp.In, exp.Is, exp.Like, exp.RegexpLike, exp.Escape)
SUMS = (exp.Add, exp.Sub, exp.Mul)
BITS = (exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseXor, exp.BitwiseNot, exp.BitwiseLeftShift, exp.BitwiseRightShift)
VARIANCES = (exp.StddevPop, exp.Stddev, exp.VariancePop)
RANKS = (exp.RowNumber, exp.Rank, exp.DenseRank, exp.Ntile)
NEIGHBOURS = (exp.Lag, exp.Lead, exp.FirstValue, exp.LastValue)


@dataclass(frozen=True)
class Place:
    """Where an expression stands. ``within``: in the arguments of an aggregate function."""

    scope: Scope
    clause: str
    within: bool = False


class Expressions:
    """``query`` translates a subquery. Raises `ToolError` in MySQL's words for what MySQL would refuse."""

    def __init__(self, query: Callable[[Node, Scope], tuple[Column, ...]]) -> None:
        self._query = query

    def type_of(self, node: Node, place: Place) -> Type:
        """Rewrites an expression in place, below its parent, and gives its type."""
        if place.within or not place.scope.group_texts or node.sql("mysql").lower() not in place.scope.group_texts:
            return self._typed(node, place)
        spot = _spot(node)
        kind = self._typed(node, place)
        spot().meta["grouped"] = True
        return kind

    def _typed(self, node: Node, place: Place) -> Type:
        match node:
            case exp.Column():
                return self._column(node, place)
            case exp.Literal():
                return _literal(node)
            case exp.Null():
                return NULL
            case exp.Boolean():
                return INT
            case exp.Paren() | exp.Alias() | exp.Collate():
                return self._inside(node, place)
            case exp.Neg():
                return self._number(node.this, place)
            case exp.Exists():
                self._query(node.this, place.scope)
                return INT
            case exp.Subquery() | exp.Select() | exp.SetOperation():
                return self._scalar(node, place)
            case exp.Tuple():
                return merged(*[self.type_of(part, place) for part in list(node.expressions)])
            case exp.Window():
                return self._window(node, place)
            case exp.Case() | exp.If() | exp.Coalesce() | exp.Nullif():
                return self._choice(node, place)
            case exp.Cast() | exp.TryCast():
                return self._cast(node, place)
            case exp.CurrentSchema():
                return _becomes(node, exp.Literal.string(place.scope.database.lower()), TEXT)
            case exp.CurrentVersion():
                return _becomes(node, exp.Literal.string("8.0.33"), TEXT)
        if isinstance(node, CONDITIONS):
            return self._condition(node, place)
        if isinstance(node, (*COMPARISONS, *TESTS)):
            return self._test(node, place)
        if isinstance(node, SUMS + BITS + (exp.Div, exp.IntDiv)):
            return self._arithmetic(node, place)
        if isinstance(node, exp.AggFunc):
            return self._aggregate(node, place)
        return self._call(node, place)

    def truth(self, node: Node, place: Place) -> None:
        """A condition: a text is true where the number that it begins with is not 0."""
        spot = _spot(node)
        if self.type_of(node, place).kind == "text":
            _wrap(spot(), "M_NUMBER")

    # Names.

    def _column(self, node: Node, place: Place) -> Type:
        scope, name, table = place.scope, node.name, node.table
        if isinstance(node.this, exp.Star):
            raise ToolError(f"Unknown column '{table}.*' in '{place.clause}'")
        if node.args.get("db"):
            node.set("db", None)
        if not table and (alias := self._alias(name, place)) is not None:
            return alias
        found_in, source, column = scope.find(name, table, place.clause)
        bound = (source.name.lower(), column.name.lower())
        hidden = found_in is scope and bound not in scope.groups | scope.listed
        if place.clause == "having clause" and not place.within and hidden:
            raise ToolError(f"Unknown column '{f'{table}.' if table else ''}{name}' in 'having clause'")
        node.meta["bound"] = (id(found_in), bound, f"{scope.database.lower()}.{source.name}.{column.name}")
        node.set("this", exp.to_identifier(column.name, quoted=True))
        node.set("table", exp.to_identifier(source.name, quoted=True) if source.name else None)
        return column.type

    def _alias(self, name: str, place: Place) -> Type | None:
        """What the query itself names so, in those clauses where MySQL looks there first."""
        known = place.scope.aliases.get(name.lower())
        if known is None or place.clause not in ("having clause", "order clause", "group statement"):
            return None
        if place.clause == "group statement" and any(source.find(name) for source in place.scope.sources):
            return None
        if place.within and known.aggregates:
            raise ToolError("Invalid use of group function")
        if place.within and any(source.find(name) for source in place.scope.sources):
            return None
        return known.type

    # Parts.

    def _inside(self, node: Node, place: Place) -> Type:
        if isinstance(node, exp.Collate):
            node.set("expression", exp.Var(this="BINARY" if "bin" in str(node.expression).lower() else "mysql"))
        return self.type_of(node.this, place)

    def _scalar(self, node: Node, place: Place) -> Type:
        columns = self._query(node, place.scope)
        if len(columns) != 1:
            raise ToolError("Operand should contain 1 column(s)")
        inner = node.this if isinstance(node, exp.Subquery) else node
        limit = inner.args.get("limit")
        single = isinstance(inner, exp.Select) and not inner.args.get("group") and any(is_aggregate(part) for part in inner.expressions)
        if not single and not (limit and limit.expression.sql() in ("0", "1")) and inner.args.get("from_"):
            inner.replace(_from_values(inner.copy(), exp.Anonymous(this="mysql_one_row", expressions=[exp.column("v", table="mysql_m")])))
        return columns[0].type

    def _window(self, node: Node, place: Place) -> Type:
        inside = node.this
        for part in (*(node.args.get("partition_by") or ()), *(ordered.this for ordered in _ordered(node))):
            self.type_of(part, place)
        if isinstance(inside, RANKS):
            return INT
        if isinstance(inside, NEIGHBOURS):
            return self.type_of(inside.this, place)
        if not isinstance(inside, exp.AggFunc):
            return DOUBLE
        kind = self._aggregate(inside, place, window=True)
        node.this.meta.pop("aggregate", None)
        return kind

    def _choice(self, node: Node, place: Place) -> Type:
        match node:
            case exp.Case():
                subject = node.args.get("this")
                tested = self.type_of(subject, place) if subject is not None else None
                results = []
                for branch in node.args["ifs"]:
                    if tested is None or subject is None:
                        self.truth(branch.this, place)
                    else:
                        other_kind = self.type_of(branch.this, place)  # which may put another node in its place
                        _alike(node.args["this"], tested, branch.this, other_kind)
                    results.append(self.type_of(branch.args["true"], place))
                default = node.args.get("default")
                return merged(*results, self.type_of(default, place) if default is not None else NULL)
            case exp.If():
                self.truth(node.this, place)
                other = node.args.get("false")
                return merged(self.type_of(node.args["true"], place), self.type_of(other, place) if other is not None else NULL)
            case exp.Nullif():
                kind = self.type_of(node.this, place)
                self.type_of(node.expression, place)
                return kind
        return merged(*[self.type_of(part, place) for part in (node.this, *list(node.expressions))])

    def _cast(self, node: Node, place: Place) -> Type:
        kind = self.type_of(node.this, place)
        to = declared(node.to.sql("mysql").lower().replace("unsigned", "bigint").replace("signed", "bigint"))
        if to.kind == "text" and "binary" in node.to.sql("mysql").lower():
            return _becomes(node, exp.Collate(this=_call("M_TEXT", node.this), expression=exp.Var(this="BINARY")), TEXT)
        match to.kind:
            case "int":
                return _becomes(node, _call("M_INTEGER", node.this), INT)
            case "decimal":
                scale = min(to.scale or 0, MOST_DIGITS)
                return _becomes(node, _call("M_DECIMAL", node.this, exp.Literal.number(scale)), Type("decimal", scale))
            case "double" | "float":
                return _becomes(node, _call("M_NUMBER", node.this), DOUBLE)
            case "date" | "datetime" | "time":
                return _becomes(node, _call(to.kind.upper(), node.this), Type(to.kind))
        return _becomes(node, _call("M_TEXT", node.this), TEXT) if kind.kind != "text" else _becomes(node, node.this, TEXT)

    def _condition(self, node: Node, place: Place) -> Type:
        self.truth(node.this, place)
        if node.args.get("expression") is not None:
            self.truth(node.expression, place)
        if isinstance(node, exp.Xor):
            return _becomes(node, exp.Paren(this=exp.NEQ(this=_is_true(node.this), expression=_is_true(node.expression))), INT)
        return INT

    def _test(self, node: Node, place: Place) -> Type:
        match node:
            case exp.Escape():
                return self._test(node.this, place)
            case exp.Is():
                self.type_of(node.this, place)
            case exp.Like() | exp.RegexpLike():
                self.type_of(node.this, place)
                self.type_of(node.expression, place)
            case exp.Between():
                kind = self.type_of(node.this, place)
                for end in ("low", "high"):
                    other = self.type_of(node.args[end], place)
                    _alike(node.this, kind, node.args[end], other)
            case exp.In():
                self._in(node, place)
            case _ if isinstance(node.expression, exp.Any | exp.All):
                self._quantified(node, place)
            case _:
                types = [self.type_of(side, place) for side in (node.this, node.expression)]
                _alike(node.this, types[0], node.expression, types[1])
        return INT

    def _in(self, node: Node, place: Place) -> None:
        if (query := node.args.get("query")) is not None:
            kind = self.type_of(node.this, replace(place, clause="IN/ALL/ANY subquery"))
            width = len(node.this.expressions) if isinstance(node.this, exp.Tuple) else 1
            columns = self._query(query, place.scope)
            if len(columns) != width:
                raise ToolError(f"Operand should contain {width} column(s)")
            if width == 1 and kind.kind == "text" and columns[0].type.is_number:
                _wrap(node.this, "M_NUMBER")
            return
        if not node.expressions:
            raise ToolError("IN needs a list or a subquery")
        kind = self.type_of(node.this, place)
        types = [self.type_of(item, place) for item in list(node.expressions)]
        for item, type in zip(list(node.expressions), types, strict=True):
            _alike(node.this, kind, item, type)

    def _quantified(self, node: Node, place: Place) -> None:
        """``x < ALL (query)``: no row of the query is such that not ``x < row``."""
        quantified = node.expression
        query = quantified.this.this if isinstance(quantified.this, exp.Subquery | exp.Paren) else quantified.this
        kind = self.type_of(node.this, replace(place, clause="IN/ALL/ANY subquery"))
        holder = exp.Subquery(this=query.copy())
        columns = self._query(holder, place.scope)
        if len(columns) != 1:
            raise ToolError("Operand should contain 1 column(s)")
        compared = type(node)(this=node.this.copy(), expression=exp.column("v", table="mysql_m"))
        _alike(compared.this, kind, compared.expression, columns[0].type)
        every = isinstance(quantified, exp.All)
        sought = exp.Not(this=exp.Paren(this=compared)) if every else compared
        found = exp.Exists(this=_from_values(holder.this, exp.Literal.number(1), sought))
        node.replace(exp.Not(this=found) if every else found)

    def _arithmetic(self, node: Node, place: Place) -> Type:
        interval = node.args.get("expression")
        if isinstance(interval, exp.Interval) and isinstance(node, exp.Add | exp.Sub):
            made = exp.DateAdd if isinstance(node, exp.Add) else exp.DateSub
            moved = made(this=node.this, expression=interval.this, unit=interval.args["unit"])
            node.replace(moved)
            return self._call(moved, place)
        types = [self._number(part, place) for part in (node.this, node.args.get("expression")) if part is not None]
        if isinstance(node, exp.Div):
            return self._divided(node, types)
        if isinstance(node, exp.IntDiv):
            quotient = exp.Div(this=_real(node.this), expression=exp.Paren(this=node.expression))
            return _becomes(node, exp.Cast(this=quotient, to=exp.DataType.build("INTEGER", dialect="sqlite")), INT)
        if isinstance(node, BITS):
            return INT
        if isinstance(node, exp.Mul) and all(type.kind in ("int", "decimal") for type in types):
            scale = sum(type.scale or 0 for type in types)
            return Type("decimal", min(scale, MOST_DIGITS)) if scale else computed(*types)
        return computed(*types)

    def _divided(self, node: Node, types: list[Type]) -> Type:
        node.set("this", _real(node.this))
        return DOUBLE if {type.kind for type in types} & {"double", "float"} else computed(types[0], more=4)

    def _number(self, node: Node, place: Place) -> Type:
        """An operand: a text counts as the number that it begins with."""
        spot = _spot(node)
        kind = self.type_of(node, place)
        if kind.is_number or kind == NULL:
            return kind
        _wrap(spot(), "M_STAMP" if kind.is_moment else "M_NUMBER")
        return INT if kind.is_moment else DOUBLE

    # Calls.

    def _aggregate(self, node: Node, place: Place, window: bool = False) -> Type:
        if place.within or place.clause in ("where clause", "on clause", "group statement"):
            raise ToolError("Invalid use of group function")
        inside = replace(place, within=True)
        node.meta["aggregate"] = True
        if not window:
            place.scope.aggregates = True
        if isinstance(node, exp.GroupConcat):
            return self._group_concat(node, inside)
        argument = node.this
        parts = list(argument.expressions) if isinstance(argument, exp.Distinct) else [argument] if argument is not None else []
        if isinstance(node, exp.Count):
            for part in (*parts, *list(node.expressions)):
                if not isinstance(part, exp.Star):
                    self.type_of(part, inside)
            if len(parts) > 1:
                argument.set("expressions", [_call("M_TUPLE", *argument.expressions)])
            return INT
        if len(parts) != 1:
            raise ToolError(f"Incorrect parameter count in the call to native function '{node.key.upper()}'")
        if isinstance(node, exp.Max | exp.Min):
            return self.type_of(parts[0], inside)
        kind = self._number(parts[0], inside)
        if isinstance(node, exp.Sum):
            return Type("decimal", 0) if kind.kind == "int" else kind if kind.kind == "decimal" else Type("double", kind.scale)
        if isinstance(node, exp.Avg):
            return computed(kind, more=4)
        if isinstance(node, VARIANCES):
            spread = exp.Anonymous(this="mysql_variance", expressions=[node.this])
            result = spread if isinstance(node, exp.VariancePop) else exp.Anonymous(this="sqrt", expressions=[spread])
            spread.meta["aggregate"] = True
            return _becomes(node, result, DOUBLE)
        raise ToolError(f"{node.key.upper()} is not supported here")

    def _group_concat(self, node: Node, place: Place) -> Type:
        inner, order = node.this, None
        if isinstance(inner, exp.Order):
            inner, order = inner.this, inner.expressions[0]
        is_distinct = isinstance(inner, exp.Distinct)
        values = list(inner.expressions) if isinstance(inner, exp.Distinct | exp.Concat) else [inner]
        for value in values:
            self.type_of(value, place)
        value = (inner.expressions[0] if len(values) == 1 else _call("CONCAT", *inner.expressions)) if is_distinct else (
            _call("CONCAT", *inner.expressions) if isinstance(inner, exp.Concat) else inner
        )
        if order is not None:
            self.type_of(order.this, place)
        key = order.this if order is not None else exp.Literal.number(0)
        separator = node.args.get("separator") or exp.Literal.string(",")
        flags = [exp.Literal.number(int(flag)) for flag in (is_distinct, bool(order is not None and order.args.get("desc")))]
        call = exp.Anonymous(this="mysql_group_concat", expressions=[value.copy(), separator, *flags, key.copy()])
        call.meta["aggregate"] = True
        return _becomes(node, call, TEXT)

    def _call(self, node: Node, place: Place) -> Type:
        call = call_of(node)
        name = call[0].upper() if call else node.key.upper()
        if name in ("SUBDATE", "ADDDATE", "LCASE", "UCASE"):
            name = {"LCASE": "LOWER", "UCASE": "UPPER"}.get(name, "DATE_ADD")
        if call is None or name not in FUNCTIONS or name.startswith("M_"):
            raise ToolError(f"FUNCTION {place.scope.database.lower()}.{call[0] if call else node.key} does not exist")
        made = _call(name, *(part.copy() for part in call[1]))
        node.replace(made)
        types = [self.type_of(part, place) for part in list(made.expressions)]
        try:
            kind = FUNCTIONS[name].type(types)
        except IndexError:
            raise ToolError(f"Incorrect parameter count in the call to native function '{call[0]}'") from None
        if name in ("ROUND", "TRUNCATE") and kind.kind == "decimal":
            digits = made.expressions[1] if len(made.expressions) > 1 else exp.Literal.number(0)
            kind = Type("decimal", max(0, min(kind.scale or 0, int(to_number(digits.this))))) if isinstance(digits, exp.Literal) else kind
        if name == "STR_TO_DATE" and isinstance(made.expressions[1], exp.Literal):
            kind = DATETIME if any(mark in made.expressions[1].this for mark in ("%H", "%M", "%S", "%I", "%f")) else DATE
        return kind


def _literal(node: Node) -> Type:
    if node.is_string:
        return TEXT
    if node.this.isdigit():
        return INT
    return DOUBLE if "e" in node.this.lower() else Type("decimal", len(node.this.partition(".")[2]))


def _alike(one: Node, one_type: Type, other: Node, other_type: Type) -> None:
    """Compare as MySQL does: a text with a number as numbers, a moment with a text as moments, texts without regard to case."""
    if one_type.kind == other_type.kind == "text" and not any(isinstance(side, exp.Column | exp.Collate) for side in (one, other)):
        one.replace(exp.Collate(this=one.copy(), expression=exp.Var(this="mysql")))
        return
    for a, a_type, b_type in ((one, one_type, other_type), (other, other_type, one_type)):
        if a_type.kind == "text" and b_type.is_number:
            _wrap(a, "M_NUMBER")
        if a_type.kind == "text" and b_type.is_moment and isinstance(a, exp.Literal) and (moment := to_moment(a.this)) is not None:
            kind = "datetime" if b_type.kind == "datetime" or ":" in a.this else "date"
            a.set("this", from_moment(moment, kind))  # type: ignore[arg-type]  # one of the two
        if a_type.kind == "date" and b_type.kind == "datetime" and not isinstance(a, exp.Literal):
            _wrap(a, "DATETIME")


def _spot(node: Node) -> Callable[[], Node]:
    """What stands later where ``node`` stands now."""
    parent, key, index = node.parent, node.arg_key, node.index
    return lambda: parent.args[key] if index is None else parent.args[key][index]


def _wrap(node: Node, name: str) -> None:
    if isinstance(node, exp.Literal) and name == "M_NUMBER":
        node.replace(exp.Literal.number(to_number(node.this)))
    else:
        node.replace(_call(name, node.copy()))


def _call(name: str, *arguments: Node) -> Node:
    return exp.Anonymous(this=f"mysql_{name}", expressions=list(arguments))


def _becomes(node: Node, other: Node, kind: Type) -> Type:
    node.replace(other)
    return kind


def _is_true(node: Node) -> Node:
    return exp.Paren(this=exp.NEQ(this=exp.Paren(this=node.copy()), expression=exp.Literal.number(0)))


def _real(node: Node) -> Node:
    return exp.Cast(this=node.copy(), to=exp.DataType.build("REAL", dialect="sqlite"))


def _from_values(query: Node, selected: Node, where: Node | None = None) -> Node:
    """Something selected from the one column of a query, which is called ``mysql_m.v``."""
    alias = exp.TableAlias(this=exp.to_identifier("mysql_m"), columns=[exp.to_identifier("v")])
    made: Node = exp.select(selected).from_("mysql_m")
    made.set("with_", exp.With(expressions=[exp.CTE(this=query, alias=alias)]))
    if where is not None:
        made.set("where", exp.Where(this=where))
    return made


def is_aggregate(node: Node) -> bool:
    return any(part.meta.get("aggregate") for part in node.walk(prune=lambda part: isinstance(part, exp.Subquery)))


def _ordered(node: Node) -> list[Node]:
    order = node.args.get("order")
    return list(order.expressions) if order else []


def loose_columns(node: Node, scope: Scope) -> list[tuple[Bound, str]]:
    """Columns of this query itself that stand in no aggregate, in no subquery and in nothing that is grouped by."""

    def closed(part: Node) -> bool:
        return bool(part.meta.get("aggregate") or part.meta.get("grouped") or isinstance(part, exp.Subquery | exp.Exists))

    parts = [part for part in node.walk(prune=closed) if isinstance(part, exp.Column) and not part.meta.get("grouped")]
    found = [part.meta["bound"] for part in parts if "bound" in part.meta]
    return [(bound, told) for of, bound, told in found if of == id(scope)]
