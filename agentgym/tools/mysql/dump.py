"""Databases from what mysqldump wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from agentgym.errors import AgentGymError, ToolError
from agentgym.tools.mysql.tables import ColumnInfo, TableInfo, create
from agentgym.tools.sqlite import Database, Engine, Value

_STATEMENT = re.compile(r"((?:'(?:[^'\\]|\\.|'')*'|`[^`]*`|/\*.*?\*/|--[^\n]*\n|[^;'`])*?);", re.DOTALL)
_VALUE = re.compile(
    r"""\s*(?:(?P<text>'(?:[^'\\]|\\.|'')*')|(?P<null>NULL)|(?P<number>-?[\d.]+(?:e[+-]?\d+)?)|(?P<mark>[(),]))""",
    re.DOTALL | re.IGNORECASE,
)
_ESCAPED = re.compile(r"\\(.)|''", re.DOTALL)
_MEANS = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "Z": "\x1a"}
Tables = dict[str, tuple[TableInfo, list[tuple[Value, ...]]]]


def read_dump(engine: Engine, path: Path) -> dict[str, Database]:
    """The databases of a dump, by name. Raises `AgentGymError` where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AgentGymError(f"{path} cannot be read: {error}") from error
    databases: dict[str, Tables] = {}
    tables: Tables = {}
    for statement, line in _statements(text):
        try:
            if statement.startswith("USE "):
                tables = databases.setdefault(statement[4:].strip(" `"), {})
            elif statement.startswith("CREATE TABLE"):
                table = table_of(parse_one(statement, dialect="mysql"))
                tables[table.name] = (table, [])
            elif statement.startswith("INSERT INTO"):
                name, _, values = statement.removeprefix("INSERT INTO `").partition("` VALUES ")
                tables[name][1].extend(_rows(values))
        except (SqlglotError, ToolError, KeyError, ValueError) as error:
            raise AgentGymError(f"{path}, line {line}: {str(error).splitlines()[0]}") from error
    return {name: create(engine, name, _of_width(path, tables)) for name, tables in databases.items()}


def table_of(tree: Any) -> TableInfo:
    """The table that CREATE TABLE describes. Raises `ToolError` where it describes none."""
    if not isinstance(tree, exp.Create) or not isinstance(tree.this, exp.Schema):
        raise ToolError("only CREATE TABLE with columns is supported here")
    columns: list[ColumnInfo] = []
    primary: tuple[str, ...] = ()
    unique: list[tuple[str, ...]] = []
    indexes: list[tuple[str, ...]] = []
    for part in tree.this.expressions:
        match part:
            case exp.ColumnDef():
                columns.append(column_of(part))
                if part.find(exp.PrimaryKeyColumnConstraint):
                    primary = (part.name,)
                if part.find(exp.UniqueColumnConstraint):
                    unique.append((part.name,))
            case exp.PrimaryKey():
                primary = tuple(_key_names(part))
            case exp.UniqueColumnConstraint():
                unique.append(tuple(_key_names(part.this)))
            case exp.IndexColumnConstraint():
                indexes.append(tuple(_key_names(part)))
    given = {name.lower() for name in primary}
    columns = [replace(column, nullable=False) if column.name.lower() in given else column for column in columns]
    return TableInfo(tree.this.this.name, tuple(columns), primary, tuple(unique), tuple(indexes))


def column_of(node: Any) -> ColumnInfo:
    if node.kind is None:
        raise ToolError(f"the column '{node.name}' has no type")
    default = node.find(exp.DefaultColumnConstraint)
    value = default.this if default is not None else None
    generated = "DEFAULT_GENERATED" if isinstance(value, exp.CurrentTimestamp) else ""
    extra = "auto_increment" if node.find(exp.AutoIncrementColumnConstraint) else generated
    nulls = node.find(exp.NotNullColumnConstraint)
    nullable = (nulls is None or bool(nulls.args.get("allow_null"))) and node.find(exp.PrimaryKeyColumnConstraint) is None
    declared = node.kind.sql("mysql").lower().replace(", ", ",")
    return ColumnInfo(node.name, declared, nullable, _default(value), extra)


def _default(value: Any) -> str | None:
    if value is None or isinstance(value, exp.Null):
        return None
    return "CURRENT_TIMESTAMP" if isinstance(value, exp.CurrentTimestamp) else str(value.name)


def _key_names(node: Any) -> list[str]:
    return [part.name if isinstance(part, exp.Identifier) else part.find(exp.Identifier).name for part in node.expressions]


def _statements(text: str) -> Iterator[tuple[str, int]]:
    """Each statement without the comments before it, and its line."""
    line = 1
    for match in _STATEMENT.finditer(text):
        statement = re.sub(r"\A(?:\s+|--[^\n]*\n|/\*.*?\*/)+", "", match[1], flags=re.DOTALL)
        yield statement, line + match[1].count("\n", 0, len(match[1]) - len(statement))
        line += match[0].count("\n")


def _rows(values: str) -> Iterator[tuple[Value, ...]]:
    row: list[Value] = []
    for match in _VALUE.finditer(values):
        if match["text"] is not None:
            row.append(_ESCAPED.sub(lambda found: _MEANS.get(found[1], found[1]) if found[1] else "'", match["text"][1:-1]))
        elif match["number"] is not None:
            row.append(int(match["number"]) if match["number"].lstrip("-").isdigit() else float(match["number"]))
        elif match["null"] is not None:
            row.append(None)
        elif match["mark"] == ")":
            yield tuple(row)
            row = []


def _of_width(path: Path, tables: Tables) -> Iterator[tuple[TableInfo, list[tuple[Value, ...]]]]:
    for name, (table, rows) in tables.items():
        if any(len(row) != len(table.columns) for row in rows):
            raise AgentGymError(f"{path}: a row of {name} has not its {len(table.columns)} columns")
        yield table, rows
