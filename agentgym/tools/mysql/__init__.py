"""MySQL as an agent sees it, on SQLite: its statements, its answers in the values of its connector, and its words for errors.

Compared with the recorded answers of a MySQL 8 server in ``tests/test_sql_env.py``; what those do not show follows MySQL's
reference manual [S2], or is refused.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from agentgym.errors import MissingExtra, ToolError
from agentgym.tools.mysql.functions import dress, like
from agentgym.tools.mysql.tables import (
    SCHEMA,
    TableInfo,
    add_table,
    catalogue,
    check_writable,
    create,
    described,
    form,
    quoted,
    schema_sources,
    source,
    tell,
)
from agentgym.tools.mysql.values import Type, to_python, written
from agentgym.tools.sqlite import Database, Engine, Row, Session, SqlLimits, Value

# Words that MySQL 8 reserves and that parsers of many dialects take for names. After the first ones it goes on to expect a bracket.
_CALLED = {
    "CUME_DIST", "DENSE_RANK", "FIRST_VALUE", "LAG", "LAST_VALUE", "LEAD", "NTH_VALUE", "NTILE", "PERCENT_RANK", "RANK",
    "ROW_NUMBER",
}  # fmt: skip
_RESERVED = {
    "CHANGE", "CHARACTER", "CONDITION", "CUBE", "DATABASE", "DATABASES", "EACH", "EMPTY", "EXPLAIN", "FUNCTION", "GROUPING",
    "GROUPS", "INDEX", "KEY", "KEYS", "LATERAL", "LIMIT", "LINES", "LOAD", "LOCK", "LONG", "LOOP", "MATCH", "OF", "OPTION", "OUT",
    "OVER", "PRIMARY", "PROCEDURE", "RANGE", "READ", "RECURSIVE", "REFERENCES", "RELEASE", "RENAME", "REPLACE", "REQUIRE", "ROW",
    "ROWS", "SCHEMA", "SCHEMAS", "SHOW", "SIGNAL", "SPATIAL", "SPECIFIC", "SQL", "STARTING", "STORED", "SYSTEM", "TRIGGER",
    "UNIQUE", "USAGE", "USE", "VARYING", "VIRTUAL", "WHILE", "WINDOW", "WRITE",
}  # fmt: skip
_SYNTAX = (
    "You have an error in your SQL syntax; check the manual that corresponds to your MySQL server version "
    "for the right syntax to use near '{}' at line {}"
)
_SYSTEM = {SCHEMA, "mysql", "performance_schema", "sys"}
NOT_UNDERSTOOD = "the statement is not understood"
KEPT_CATALOGUES = 64
_NEAR = 80  # characters of a statement that an error quotes
_DEEPEST = 60  # brackets within brackets
Node = Any  # of sqlglot, whose classes tell little to a type checker


class Query(NamedTuple):
    """For SQLite, and the types of MySQL that its columns have."""

    statement: str
    types: tuple[Type, ...]


class MySQL:
    """Runs statements of MySQL on values of `Database`. ``databases``: what SHOW DATABASES tells of, set by ``load``.

    Raises `ToolError` in MySQL's words, without their number, for what the statement is to blame for; `MissingExtra` without sqlglot.
    """

    def __init__(self, limits: SqlLimits | None = None) -> None:
        try:
            import sqlglot  # noqa: F401
        except ImportError:
            raise MissingExtra("sqlglot", "sql") from None
        logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of each statement that it does not know, which is then refused
        self.engine = Engine(dress, limits)
        self.databases: tuple[str, ...] = ()
        self._known: OrderedDict[str, tuple[TableInfo, ...]] = OrderedDict()  # by digest, as a key that holds no database
        self._prepared = lru_cache(512)(self._prepare)

    def load(self, path: Path) -> dict[str, Database]:
        """The databases of a file of mysqldump, by name."""
        from agentgym.tools.mysql.dump import read_dump

        found = read_dump(self.engine, path)
        self.databases = tuple(found)
        return found

    def create(self, name: str, tables: Iterable[tuple[TableInfo, Iterable[Sequence[Value]]]]) -> Database:
        return create(self.engine, name, tables)

    def tables(self, database: Database) -> Mapping[str, TableInfo]:
        """By name in lower case."""
        return {table.name: table for table in self._catalogue(database)}

    def content(self, database: Database, table: str) -> tuple[tuple[str | None, ...], ...]:
        """All rows of a table, each value as MySQL writes it."""
        known = self._table(database, table)
        rows = self.engine.read(database, f"SELECT * FROM {quoted(known.name)}").rows
        return tuple(tuple(written(value, column.type) for value, column in zip(row, known.columns, strict=True)) for row in rows)

    def run(self, database: Database, statement: str) -> tuple[tuple[Row, ...] | None, Database]:
        """The rows of the answer, None where it has none, and what the database has become."""
        from sqlglot import exp

        try:
            tree = self._prepared(database.name, self._catalogue(database), statement)
            match tree:
                case Query():
                    return self._rows(database, tree), database
                case exp.Show():
                    return self._show(database, tree), database
                case exp.Describe() if isinstance(tree.this, exp.Table):
                    return self._columns(database, tree.this), database
                case exp.Use():
                    self._check_use(database, tree)
                    return None, database
            return None, self._write(database, tree.copy())
        except RecursionError:
            raise ToolError("the statement is nested too deeply") from None
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):  # a tree that lacks a part: its writer's fault
            raise ToolError(NOT_UNDERSTOOD) from None

    # Parsing.

    def _parsed(self, statement: str) -> Node:
        import sqlglot
        from sqlglot.errors import SqlglotError

        if len(statement) > self.engine.limits.text or _depth(statement) > _DEEPEST:
            raise ToolError("the statement is too long, or nested too deeply")
        try:
            trees = [tree for tree in sqlglot.parse(statement, dialect="mysql") if tree is not None]
        except RecursionError:
            raise ToolError("the statement is nested too deeply") from None
        except (SqlglotError, ValueError, AttributeError, TypeError, LookupError) as error:
            raise ToolError(_syntax_error(statement, _failed_at(statement, error))) from None
        if not trees:
            raise ToolError("Query was empty")
        if len(trees) > 1:
            raise ToolError("Use multi=True when executing multiple statements")
        if any(not select.expressions for select in trees[0].find_all(sqlglot.exp.Select)):
            raise ToolError(_syntax_error(statement, max(0, statement.upper().find("FROM"))))
        _check_words(trees[0], statement)
        return trees[0]

    # Reading.

    def _prepare(self, name: str, tables: tuple[TableInfo, ...], statement: str) -> Any:
        """A query made ready for SQLite, or any other statement as it was parsed."""
        from sqlglot import exp

        tree = self._parsed(statement)
        if not isinstance(tree, exp.Select | exp.SetOperation | exp.Subquery):
            return tree
        translator, holder = _translator(name, tables), exp.Subquery(this=tree)
        translator.check_tables(tree)
        columns = translator.query(holder)
        return Query(_sql(holder.this), tuple(column.type for column in columns))

    def _rows(self, database: Database, query: Query) -> tuple[Row, ...]:
        result = self.engine.read(database, query.statement)
        return tuple(tuple(map(to_python, row, query.types)) for row in result.rows)

    def _catalogue(self, database: Database) -> tuple[TableInfo, ...]:
        if (found := self._known.get(database.digest)) is None:
            found = self._known[database.digest] = catalogue(self.engine, database)
            if len(self._known) > KEPT_CATALOGUES:
                self._known.popitem(last=False)
        return found

    def _show(self, database: Database, tree: Node) -> tuple[Row, ...]:
        what = str(tree.this).upper()
        known = {name.lower() for name in (*self.databases, database.name)}
        names = {"TABLES": sorted(self.tables(database)), "DATABASES": sorted(known | _SYSTEM)}
        pattern = tree.args["like"].name if tree.args.get("like") else "%"
        if what in names:
            return tuple((name,) for name in names[what] if like(pattern, name))
        if what == "COLUMNS" and tree.args.get("target"):
            rows = self._columns(database, tree.args["target"])
            return tuple(row for row in rows if like(pattern, row[0]))
        raise ToolError(f"SHOW {what} is not supported here")

    def _columns(self, database: Database, named: Node) -> tuple[Row, ...]:
        table = self._table(database, named.name)
        return tuple(
            (
                column.name,
                column.declared.encode(),
                "YES" if column.nullable else "NO",
                column.key,
                None if column.default is None else column.default.encode(),
                column.extra,
            )
            for column in table.columns
        )

    def _table(self, database: Database, name: str) -> TableInfo:
        found = self.tables(database).get(name.lower())
        if found is None:
            raise ToolError(f"Table '{database.name.lower()}.{name.lower()}' doesn't exist")
        return found

    def _check_use(self, database: Database, tree: Node) -> None:
        if tree.this.name.lower() != database.name.lower():
            raise ToolError(f"Unknown database '{tree.this.name.lower()}'")

    # Writing.

    def _write(self, database: Database, tree: Node) -> Database:
        from sqlglot import exp

        with self.engine.writing(database) as session:
            match tree:
                case exp.Insert() | exp.Update() | exp.Delete():
                    session.run(self._change(database, tree))
                case exp.Create() if str(tree.kind).upper() == "TABLE":
                    self._create(database, tree, session)
                case exp.Alter() if str(tree.args.get("kind")).upper() == "TABLE":
                    self._alter(database, tree, session)
                case exp.Drop() if str(tree.args.get("kind")).upper() == "TABLE":
                    self._drop(database, tree, session)
                case _:
                    raise ToolError(f"this kind of statement is not supported here: {tree.key.upper()}")
            return Database(session.database.image, database.name)

    def _change(self, database: Database, tree: Node) -> str:
        from agentgym.tools.mysql.changes import changed

        return _sql(changed(_translator(database.name, self._catalogue(database)), tree))

    def _create(self, database: Database, tree: Node, session: Session) -> None:
        from agentgym.tools.mysql.dump import table_of

        table = table_of(tree)
        check_writable(table.name)
        if table.name.lower() not in self.tables(database):
            add_table(session, database.name, table)
        elif not tree.args.get("exists"):
            raise ToolError(f"Table '{table.name}' already exists")

    def _alter(self, database: Database, tree: Node, session: Session) -> None:
        from sqlglot import exp

        from agentgym.tools.mysql.dump import column_of

        table = self._table(database, tree.this.name)
        for number, action in enumerate(tree.args["actions"], start=len(table.columns) + 1):
            if not isinstance(action, exp.ColumnDef):
                raise ToolError("ALTER TABLE can only add columns here")
            column = column_of(action)
            if any(known.name.lower() == column.name.lower() for known in table.columns):
                raise ToolError(f"Duplicate column name '{column.name}'")
            session.run(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {quoted(column.name)} {form(column)}")
            tell(session, "columns", described(database.name, table.name, number, column, ""))

    def _drop(self, database: Database, tree: Node, session: Session) -> None:
        for named in tree.args.get("tables") or [tree.this]:
            if named.name.lower() not in self.tables(database):
                if tree.args.get("exists"):
                    continue
                raise ToolError(f"Unknown table '{database.name.lower()}.{named.name.lower()}'")
            session.run(f"DROP TABLE {quoted(named.name)}")
            for part in ("columns", "tables"):
                session.run(f'DELETE FROM "{SCHEMA}.{part}" WHERE TABLE_NAME = ?', [named.name.lower()])


def _translator(name: str, tables: Iterable[TableInfo]) -> Any:
    from agentgym.tools.mysql.translate import Translator

    return Translator(name, {table.name: source(table) for table in tables} | schema_sources())


def _sql(tree: Node) -> str:
    from sqlglot.errors import ErrorLevel, SqlglotError

    try:
        statement: str = tree.sql("sqlite", identify=True, normalize_functions=False, unsupported_level=ErrorLevel.IGNORE)
    except SqlglotError as error:
        raise ToolError(f"not supported here: {error}") from None
    return statement


def _depth(statement: str) -> int:
    deepest = depth = 0
    for char in statement:
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    return deepest


def _check_words(tree: Node, statement: str) -> None:
    """Names that MySQL reserves must be quoted, unless a point stands before them."""
    from sqlglot import exp

    for identifier in tree.find_all(exp.Identifier):
        word = identifier.name.upper()
        end = identifier.meta.get("end")
        within = identifier.parent
        qualified = isinstance(within, exp.Column | exp.Table) and (within.args.get("table") or within.args.get("db"))
        after_point = qualified and identifier.arg_key == "this"
        if identifier.args.get("quoted") or after_point or end is None or word not in _CALLED | _RESERVED:
            continue
        raise ToolError(_syntax_error(statement, end + 1 if word in _CALLED else identifier.meta["start"]))


def _failed_at(statement: str, error: Exception) -> int:
    """Where in the statement the parser gave up."""
    told = getattr(error, "errors", None)
    if not told or not told[0].get("line"):
        return 0
    lines = statement.split("\n")
    return sum(len(line) + 1 for line in lines[: told[0]["line"] - 1]) + int(told[0]["col"]) - len(told[0].get("highlight") or "")


def _syntax_error(statement: str, place: int) -> str:
    rest = statement[place:].lstrip()
    return _SYNTAX.format(rest[:_NEAR], statement.count("\n", 0, len(statement) - len(rest)) + 1)
