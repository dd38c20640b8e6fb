"""A query of MySQL made into one of SQLite that answers alike: sources, names, grouping, and the order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlglot import exp

from agentgym.errors import ToolError
from agentgym.tools.mysql.expressions import Expressions, Place, is_aggregate, loose_columns
from agentgym.tools.mysql.names import Alias, Bound, Column, Scope, Source, determined
from agentgym.tools.mysql.values import merged

Node = Any  # of sqlglot, whose classes tell little to a type checker
SCHEMA = "information_schema"


class Translator:
    """``tables``: by name in lower case. Raises `ToolError` in MySQL's words for what MySQL would refuse."""

    def __init__(self, database: str, tables: Mapping[str, Source]) -> None:
        self.database, self.tables = database, tables
        self.expressions = Expressions(self.query)

    def query(self, node: Node, outer: Scope | None = None) -> tuple[Column, ...]:
        """Rewrites a query in place, below its parent, and gives its columns."""
        match node:
            case exp.Subquery():
                return self.query(node.this, outer)
            case exp.SetOperation():
                return self._set_operation(node, outer)
            case exp.Select():
                return self._select(node, outer)
        raise ToolError(f"{node.key.upper()} is not supported here")

    def check_tables(self, tree: Node) -> None:
        """Raises `ToolError` for the first table that does not exist; those of WITH come last."""
        for place in tree.find_all(exp.In, exp.Any, exp.All):
            query = _bare(place.args.get("query") if isinstance(place, exp.In) else place.this)
            if isinstance(query, exp.Query) and query.args.get("limit"):
                raise ToolError("This version of MySQL doesn't yet support 'LIMIT & IN/ALL/ANY/SOME subquery'")
        named = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
        tables = [table for table in tree.find_all(exp.Table) if isinstance(table.this, exp.Identifier)]
        for table in sorted(tables, key=lambda table: (table.find_ancestor(exp.CTE) is not None, table.this.meta.get("start", 0))):
            if table.db or table.name.lower() not in named:
                self.table(table)

    def table(self, node: Node) -> Source:
        schema, name = (node.db or self.database).lower(), node.name.lower()
        full = f"{SCHEMA}.{name}" if schema == SCHEMA else name
        if full not in self.tables or schema not in (SCHEMA, self.database.lower()):
            raise ToolError(f"Unknown table '{name.upper()}' in {SCHEMA}" if schema == SCHEMA else f"Table '{schema}.{name}' doesn't exist")
        return self.tables[full]

    # Unions and the like.

    def _set_operation(self, node: Node, outer: Scope | None) -> tuple[Column, ...]:
        scope = Scope(self.database, outer)
        self._with(node, scope)
        left, right = self.query(node.left, scope), self.query(node.right, scope)
        if len(left) != len(right):
            raise ToolError("The used SELECT statements have a different number of columns")
        columns = tuple(Column(a.name, merged(a.type, b.type)) for a, b in zip(left, right, strict=True))
        for ordered in _ordered(node):
            if isinstance(ordered.this, exp.Column):
                ordered.set("this", exp.Literal.number(_position(ordered.this.name, columns)))
        if not _is_recursive(node):
            self._keep_order(node, [column.name for column in columns])
        return columns

    def _keep_order(self, node: Node, titles: list[str]) -> None:
        """SQLite sorts what a union makes distinct, MySQL leaves it in the order of its coming."""
        names = [f"c{number}" for number in range(len(titles))]
        listed, alike = ", ".join(names), " AND ".join(f"mysql_l.{name} IS mysql_r.{name}" for name in names)
        if isinstance(node, exp.Union):
            once = "DISTINCT " if node.args["distinct"] else ""
            text = f"SELECT {once}{listed} FROM (SELECT * FROM mysql_l UNION ALL SELECT * FROM mysql_r) AS u"
        else:
            negated = "NOT " if isinstance(node, exp.Except) else ""
            text = f"SELECT DISTINCT {listed} FROM mysql_l WHERE {negated}EXISTS (SELECT 1 FROM mysql_r WHERE {alike})"
        core: Node = exp.maybe_parse(text, dialect="sqlite")
        given = node.args.get("with_")
        sides = [_named(_bare(side), name, names) for side, name in ((node.left, "mysql_l"), (node.right, "mysql_r"))]
        ctes = [*(given.expressions if given else ()), *sides]
        core.set("with_", exp.With(expressions=ctes, recursive=given and given.args.get("recursive")))
        for part in ("order", "limit", "offset"):
            core.set(part, node.args.get(part))
        core.set("expressions", [exp.alias_(exp.column(name), title, quoted=True) for name, title in zip(names, titles, strict=True)])
        node.replace(exp.select("*").from_(exp.Subquery(this=core, alias=exp.TableAlias(this=exp.to_identifier("s")))))

    def _with(self, node: Node, scope: Scope) -> None:
        given = node.args.get("with_")
        for cte in given.expressions if given else ():
            names = [column.name for column in cte.args["alias"].args.get("columns") or ()]
            if given.args.get("recursive") and isinstance(cte.this, exp.Union):
                first = exp.Subquery(this=cte.this.left.copy())
                scope.queries[cte.alias.lower()] = _renamed(Source(cte.alias, self.query(first, scope)), names)
            scope.queries[cte.alias.lower()] = _renamed(Source(cte.alias, self.query(cte.this, scope)), names)

    # SELECT.

    def _select(self, node: Node, outer: Scope | None) -> tuple[Column, ...]:
        scope = Scope(self.database, outer)
        self._with(node, scope)
        self._sources(node, scope)
        self._expand_stars(node, scope)
        scope.group_texts = _group_texts(node)
        columns = tuple(self._item(item, scope) for item in list(node.expressions))
        if where := node.args.get("where"):
            self.expressions.truth(where.this, Place(scope, "where clause"))
        for join in reversed(node.args.get("joins") or ()):  # MySQL resolves the last one first
            if join.args.get("on"):
                self.expressions.truth(join.args["on"], Place(scope, "on clause"))
        self._group(node, scope)
        self._having(node, scope)
        for ordered in _ordered(node):
            self._order(ordered, scope, columns)
        _check_grouping(node, scope)
        if node.args.get("group") and not isinstance(node.parent, exp.SetOperation):
            _keep_first_seen(node, scope)
        return columns

    def _sources(self, node: Node, scope: Scope) -> None:
        begin = node.args.get("from_")
        if begin is not None:
            scope.add(self._source(begin.this, scope))
        for join in node.args.get("joins") or ():
            before = {column.name.lower() for source in scope.sources for column in source.columns}
            source = self._source(join.this, scope)
            if join.side == "FULL":
                raise ToolError("FULL JOIN is not supported by MySQL")
            if join.args.get("method") == "NATURAL":
                scope.joined |= before & {column.name.lower() for column in source.columns}
            for name in join.args.get("using") or ():
                if name.name.lower() not in before or source.find(name.name) is None:
                    raise ToolError(f"Unknown column '{name.name}' in 'from clause'")
                scope.joined.add(name.name.lower())
            scope.add(source)

    def _source(self, node: Node, scope: Scope) -> Source:
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier) and not node.args.get("joins"):
            known = None if node.db else scope.query(node.name)
            source = known or self.table(node)
            alias = node.alias or node.name
            node.set("this", exp.to_identifier(source.name, quoted=True))
            node.set("db", None)
            node.set("alias", exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
            return replace(source, name=alias)
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query):
            if not node.alias:
                raise ToolError("Every derived table must have its own alias")
            inside = Scope(self.database, scope.outer, queries=scope.queries)
            names = [name.name for name in node.args["alias"].args.get("columns") or ()]
            return _renamed(Source(node.alias, self.query(node.this, inside)), names)
        raise ToolError("this form of FROM is not supported here: name tables and joins one after another")

    def _expand_stars(self, node: Node, scope: Scope) -> None:
        items = []
        for item in node.expressions:
            if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
                table = item.table if isinstance(item, exp.Column) else ""
                items += [exp.column(column.name, table=source.name, quoted=True) for source, column in scope.star(table)]
            else:
                items.append(item)
        node.set("expressions", items)

    def _item(self, item: Node, scope: Scope) -> Column:
        inner = item.this if isinstance(item, exp.Alias) else item
        name, is_alias = item.alias_or_name or inner.sql("mysql"), isinstance(item, exp.Alias)
        select, number = item.parent, item.index
        kind = self.expressions.type_of(inner, Place(scope, "field list"))
        inner = select.expressions[number].unalias()
        if isinstance(inner, exp.Column) and "bound" in inner.meta:
            scope.listed.add(inner.meta["bound"][1])
        if is_alias:
            scope.aliases[name.lower()] = Alias(kind, is_aggregate(inner))
        return Column(name, kind)

    def _group(self, node: Node, scope: Scope) -> None:
        group = node.args.get("group")
        for part in list(group.expressions) if group else ():
            if isinstance(part, exp.Literal) and not part.is_string:
                part = _item_at(node, int(part.this), "group statement")
            else:
                part.meta.pop("grouped", None)
                self.expressions.type_of(part, Place(scope, "group statement"))
            if "bound" in part.meta and part.meta["bound"][0] != id(scope):
                part.replace(exp.Literal.string(""))  # one value for all rows; SQLite would not find it
            scope.groups |= set(_bound(part, node))

    def _having(self, node: Node, scope: Scope) -> None:
        having = node.args.get("having")
        if having is None:
            return
        self.expressions.truth(having.this, Place(scope, "having clause"))
        if not node.args.get("group") and not scope.aggregates:  # SQLite would refuse it
            where = node.args.get("where")
            node.set("where", exp.Where(this=exp.and_(where.this, having.this) if where else having.this))
            node.set("having", None)

    def _order(self, ordered: Node, scope: Scope, columns: tuple[Column, ...]) -> None:
        if isinstance(ordered.this, exp.Literal) and not ordered.this.is_string:
            if not 1 <= int(ordered.this.this) <= len(columns):
                raise ToolError(f"Unknown column '{ordered.this.this}' in 'order clause'")
            return
        self.expressions.type_of(ordered.this, Place(scope, "order clause"))


def _check_grouping(node: Node, scope: Scope) -> None:
    """A grouped query may ask only for what has one value in each group (ONLY_FULL_GROUP_BY)."""
    group = node.args.get("group")
    if group is None and not scope.aggregates:
        return
    known = determined(scope.groups, scope.sources, list(_equations(node, scope)))
    for clause, items in (("SELECT list", node.expressions), ("ORDER BY clause", [ordered.this for ordered in _ordered(node)])):
        for number, item in enumerate(items, start=1):
            for bound, told in loose_columns(item, scope):
                if bound not in known and group is None:
                    raise ToolError(
                        f"In aggregated query without GROUP BY, expression #{number} of {clause} contains nonaggregated column '{told}'; "
                        "this is incompatible with sql_mode=only_full_group_by"
                    )
                if bound not in known:
                    raise ToolError(
                        f"Expression #{number} of {clause} is not in GROUP BY clause and contains nonaggregated column '{told}' "
                        "which is not functionally dependent on columns in GROUP BY clause; "
                        "this is incompatible with sql_mode=only_full_group_by"
                    )


def _keep_first_seen(node: Node, scope: Scope) -> None:
    """SQLite sorts groups by their columns, MySQL gives those that no index sorts in the order in which it meets them."""
    named = {name for name, _ in scope.groups}
    source = next((source for source in scope.sources if source.name.lower() in named and source.place), None)
    if source is None or any(column in source.indexed for name, column in scope.groups if name == source.name.lower()):
        return
    first = [exp.Ordered(this=exp.Min(this=exp.column(column, table=source.name, quoted=True))) for column in source.place]
    node.set("order", exp.Order(expressions=[*_ordered(node), *first]))


def _equations(node: Node, scope: Scope) -> list[tuple[Bound, Bound | None]]:
    """What WHERE and the conditions of inner joins make equal: two columns, or a column and a constant."""
    conditions = [join.args["on"] for join in node.args.get("joins") or () if join.args.get("on") and not join.side]
    conditions += [node.args["where"].this] if node.args.get("where") else []
    found: list[tuple[Bound, Bound | None]] = []
    for condition in conditions:
        for part in condition.flatten() if isinstance(condition, exp.And) else [condition]:
            part = part.unnest()
            if not isinstance(part, exp.EQ):
                continue
            sides = [_side(part.this), _side(part.expression)]
            found += [(a, b) for a, b in (sides, sides[::-1]) if isinstance(a, tuple) and (b is None or isinstance(b, tuple))]
    return found


def _side(node: Node) -> Any:
    """A column as it is bound, None for a constant, else the node itself."""
    return node.meta["bound"][1] if "bound" in node.meta else None if isinstance(node, exp.Literal) else node


def _group_texts(node: Node) -> set[str]:
    """What GROUP BY names, as written; an alias also as what it stands for."""
    group = node.args.get("group")
    aliases = {item.alias.lower(): item.this for item in node.expressions if isinstance(item, exp.Alias)}
    parts = list(group.expressions) if group else []
    names = [part.name.lower() for part in parts if isinstance(part, exp.Column) and not part.table]
    stood_for = [aliases[name] for name in names if name in aliases]
    places = [int(part.this) for part in parts if isinstance(part, exp.Literal) and not part.is_string]
    stood_for += [_item_at(node, place, "group statement").unalias() for place in places]
    return {part.sql("mysql").lower() for part in (*parts, *stood_for) if not isinstance(part, exp.Column | exp.Literal)}


def _item_at(node: Node, place: int, clause: str) -> Node:
    if not 1 <= place <= len(node.expressions):
        raise ToolError(f"Unknown column '{place}' in '{clause}'")
    return node.expressions[place - 1]


def _bound(part: Node, node: Node) -> list[Bound]:
    """The column that is grouped by, also where it is named by its alias."""
    part = part.unalias()
    if "bound" in part.meta:
        return [part.meta["bound"][1]]
    if isinstance(part, exp.Column):
        items = [item.this for item in node.expressions if isinstance(item, exp.Alias) and item.alias.lower() == part.name.lower()]
        return [item.meta["bound"][1] for item in items if "bound" in item.meta]
    return []


def _position(name: str, columns: tuple[Column, ...]) -> int:
    for number, column in enumerate(columns, start=1):
        if column.name.lower() == name.lower():
            return number
    raise ToolError(f"Unknown column '{name}' in 'order clause'")


def _renamed(source: Source, names: list[str]) -> Source:
    if names and len(names) != len(source.columns):
        raise ToolError(f"'{source.name}' has a different number of columns than the list of its names")
    columns = tuple(Column(name, column.type) for name, column in zip(names, source.columns, strict=False))
    return replace(source, columns=columns) if names else source


def _is_recursive(node: Node) -> bool:
    given = node.parent.parent if isinstance(node.parent, exp.CTE) else None
    return given is not None and bool(given.args.get("recursive"))


def _bare(node: Node) -> Node:
    return node.this if isinstance(node, exp.Subquery) else node


def _named(query: Node, name: str, columns: list[str]) -> Node:
    alias = exp.TableAlias(this=exp.to_identifier(name), columns=[exp.to_identifier(column) for column in columns])
    return exp.CTE(this=query.copy(), alias=alias)


def _ordered(node: Node) -> list[Node]:
    order = node.args.get("order")
    return list(order.expressions) if order else []
