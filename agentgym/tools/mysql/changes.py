"""INSERT, UPDATE and DELETE of MySQL made into those of SQLite."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from agentgym.errors import ToolError
from agentgym.tools.mysql.expressions import Place
from agentgym.tools.mysql.names import Scope
from agentgym.tools.mysql.tables import check_writable
from agentgym.tools.mysql.translate import Translator
from agentgym.tools.mysql.values import Type

Node = Any  # of sqlglot, whose classes tell little to a type checker


def changed(translator: Translator, tree: Node) -> Node:
    """The tree, rewritten in place. Raises `ToolError` in MySQL's words."""
    table = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
    if not isinstance(table, exp.Table) or table.args.get("joins") or tree.args.get("using") or tree.args.get("conflict"):
        raise ToolError("only one table can be changed here, by INSERT, UPDATE and DELETE of the plain form")
    translator.check_tables(tree)
    scope = Scope(translator.database)
    known = translator.table(table)
    check_writable(known.name)
    scope.add(known)
    table.set("db", None)
    table.set("this", exp.to_identifier(known.name, quoted=True))
    if isinstance(tree, exp.Insert):
        _insert(translator, tree, scope)
        return tree
    if isinstance(tree, exp.Update):
        for assignment in tree.expressions:
            _assign(translator, assignment, scope)
    if where := tree.args.get("where"):
        translator.expressions.truth(where.this, Place(scope, "where clause"))
    for ordered in tree.args["order"].expressions if tree.args.get("order") else ():
        translator.expressions.type_of(ordered.this, Place(scope, "order clause"))
    return tree


def _assign(translator: Translator, assignment: Node, scope: Scope) -> None:
    if not isinstance(assignment, exp.EQ) or not isinstance(assignment.this, exp.Column):
        raise ToolError("SET names a column and its value")
    target = translator.expressions.type_of(assignment.this, Place(scope, "field list"))
    assignment.this.set("table", None)
    _store(translator, assignment.expression, target, Place(scope, "field list"))


def _insert(translator: Translator, tree: Node, scope: Scope) -> None:
    table = scope.sources[0]
    named = [part.name for part in (tree.this.expressions if isinstance(tree.this, exp.Schema) else table.columns)]
    targets = [scope.find(name, "", "field list")[2].type for name in named]
    if isinstance(tree.expression, exp.Values):
        for number, row in enumerate(tree.expression.expressions, start=1):
            values = list(row.expressions) if isinstance(row, exp.Tuple) else [row]
            if len(values) != len(targets):
                raise ToolError(f"Column count doesn't match value count at row {number}")
            for value, target in zip(values, targets, strict=True):
                _store(translator, value, target, Place(Scope(translator.database), "field list"))
    elif tree.expression is not None:
        holder = exp.Subquery(this=tree.expression)
        if len(translator.query(holder)) != len(targets):
            raise ToolError("Column count doesn't match value count at row 1")
        tree.set("expression", holder.this)


def _store(translator: Translator, value: Node, target: Type, place: Place) -> None:
    """A number becomes the text that MySQL would write, where the column holds text."""
    holder = value.parent
    kind = translator.expressions.type_of(value, place)
    if target.kind != "text" or not kind.is_number:
        return
    for stored in [part for part in holder.args.values() for part in (part if isinstance(part, list) else [part]) if part is value]:
        if isinstance(stored, exp.Literal):
            stored.replace(exp.Literal.string(stored.this))
        else:
            stored.replace(exp.Anonymous(this="mysql_M_TEXT", expressions=[stored.copy()]))
