"""Tables as MySQL describes them, made in SQLite so that rows come in the order in which MySQL's own storage gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agentgym.errors import ToolError
from agentgym.tools.mysql.functions import NOW
from agentgym.tools.mysql.names import Column, Source
from agentgym.tools.mysql.values import INT, TEXT, Type, declared, from_moment
from agentgym.tools.sqlite import Database, Engine, Session, Value

SCHEMA = "information_schema"
_AFFINITY = {"int": "INTEGER", "decimal": "NUMERIC", "double": "REAL", "float": "REAL"}
_SCHEMA_COLUMNS = {
    "columns": (
        *(("TABLE_SCHEMA", TEXT), ("TABLE_NAME", TEXT), ("COLUMN_NAME", TEXT), ("ORDINAL_POSITION", INT), ("COLUMN_DEFAULT", TEXT)),
        *(("IS_NULLABLE", TEXT), ("DATA_TYPE", TEXT), ("COLUMN_TYPE", TEXT), ("COLUMN_KEY", TEXT), ("EXTRA", TEXT)),
    ),
    "tables": (("TABLE_SCHEMA", TEXT), ("TABLE_NAME", TEXT), ("TABLE_TYPE", TEXT)),
}


@dataclass(frozen=True)
class ColumnInfo:
    """``declared``: as MySQL would write it, ``varchar(255)``. ``default`` None: there is none."""

    name: str
    declared: str
    nullable: bool = True
    default: str | None = None
    extra: str = ""
    key: str = ""

    @property
    def type(self) -> Type:
        return declared(self.declared)


@dataclass(frozen=True)
class TableInfo:
    """``primary``, ``unique`` and ``indexes`` hold names of columns. The kind of key of a column is told from them."""

    name: str
    columns: tuple[ColumnInfo, ...]
    primary: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()

    def key_of(self, column: str) -> str:
        if column.lower() in _lower(self.primary):
            return "PRI"
        if any(_lower(key) == [column.lower()] for key in self.unique):
            return "UNI"
        return "MUL" if any(_lower(key)[0] == column.lower() for key in (*self.unique, *self.indexes)) else ""

    def statements(self) -> list[str]:
        """How SQLite makes it. A table with a key is ordered by it, as InnoDB orders it, and its indexes too are alike."""
        numbered = len(self.primary) == 1 and self._column(self.primary[0]).type.kind == "int"
        parts = [f"{quoted(column.name)} {self._form(column, numbered)}" for column in self.columns]
        if self.primary and not numbered:
            parts.append(f"PRIMARY KEY ({', '.join(map(quoted, self.primary))})")
        made = f"CREATE TABLE {quoted(self.name)} ({', '.join(parts)})" + (" WITHOUT ROWID" if self.primary and not numbered else "")
        kinds = [("UNIQUE INDEX", key) for key in self.unique] + [("INDEX", key) for key in self.indexes]
        indexes = [
            f"CREATE {kind} {quoted(f'{self.name}.{number}')} ON {quoted(self.name)} ({', '.join(map(quoted, key))})"
            for number, (kind, key) in enumerate(kinds)
        ]
        return [made, *indexes]

    def rows(self, schema: str) -> list[tuple[Value, ...]]:
        """Its rows in information_schema.columns."""
        numbered = enumerate(self.columns, start=1)
        return [described(schema, self.name, number, column, self.key_of(column.name)) for number, column in numbered]

    def _column(self, name: str) -> ColumnInfo:
        found = next((column for column in self.columns if column.name.lower() == name.lower()), None)
        if found is None:
            raise ToolError(f"Key column '{name}' doesn't exist in table")
        return found

    def _form(self, column: ColumnInfo, numbered: bool) -> str:
        if numbered and column.name.lower() == self.primary[0].lower():
            return "INTEGER PRIMARY KEY"
        return form(column)


def form(column: ColumnInfo) -> str:
    """The declaration of a column for SQLite."""
    affinity = _AFFINITY.get(column.type.kind)
    parts = [affinity or "TEXT COLLATE mysql"]
    if not column.nullable:
        parts.append("NOT NULL")
    if column.default is not None:
        default = from_moment(NOW) or "" if column.default == "CURRENT_TIMESTAMP" else column.default
        parts.append("DEFAULT '" + default.replace("'", "''") + "'")
    return " ".join(parts)


def described(schema: str, table: str, number: int, column: ColumnInfo, key: str) -> tuple[Value, ...]:
    kind = column.declared.partition("(")[0].split()[0]
    nullable = "YES" if column.nullable else "NO"
    return (schema.lower(), table.lower(), column.name, number, column.default, nullable, kind, column.declared, key, column.extra)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def create(engine: Engine, name: str, tables: Iterable[tuple[TableInfo, Iterable[Sequence[Value]]]]) -> Database:
    """A database of tables and their rows, with the two tables of information_schema that tell of them."""
    with engine.writing() as session:
        for schema_table, columns in _SCHEMA_COLUMNS.items():
            listed = ", ".join(f"{column} {_AFFINITY.get(type.kind, 'TEXT COLLATE mysql')}" for column, type in columns)
            ordered = ", PRIMARY KEY (TABLE_NAME)) WITHOUT ROWID" if schema_table == "tables" else ")"
            session.run(f'CREATE TABLE "{SCHEMA}.{schema_table}" ({listed}{ordered}')
        for table, rows in tables:
            add_table(session, name, table)
            session.fill(f"INSERT INTO {quoted(table.name)} VALUES ({', '.join('?' * len(table.columns))})", rows)
        session.settle()
        return Database(session.database.image, name)


def add_table(session: Session, schema: str, table: TableInfo) -> None:
    for statement in table.statements():
        session.run(statement)
    for row in table.rows(schema):
        tell(session, "columns", row)
    tell(session, "tables", (schema.lower(), table.name.lower(), "BASE TABLE"))


def tell(session: Session, part: str, row: Sequence[Value]) -> None:
    """Add a row to a table of information_schema."""
    session.run(f'INSERT INTO "{SCHEMA}.{part}" VALUES ({", ".join("?" * len(row))})', row)


def check_writable(name: str) -> None:
    """Raises `ToolError` for a table of information_schema, by its name in SQLite."""
    if name.lower().startswith(f"{SCHEMA}."):
        raise ToolError(f"Access denied to database '{SCHEMA}'")


def catalogue(engine: Engine, database: Database) -> tuple[TableInfo, ...]:
    """The tables of a database, their names in lower case, with their keys as far as one column or the primary key has them."""
    wanted = "TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, COLUMN_DEFAULT, EXTRA, COLUMN_KEY"
    listed = engine.read(database, f'SELECT {wanted} FROM "{SCHEMA}.columns"')
    named = engine.read(database, f'SELECT TABLE_NAME FROM "{SCHEMA}.tables"')
    columns: dict[str, list[ColumnInfo]] = {str(table): [] for (table,) in named.rows}
    for table, name, kind, nullable, default, extra, key in listed.rows:
        columns[table].append(ColumnInfo(name, kind, nullable == "YES", default, extra, key))
    return tuple(_told(table, known) for table, known in columns.items())


def source(table: TableInfo) -> Source:
    keys = [frozenset(_lower(key)) for key in (table.primary, *table.unique) if key]
    columns = tuple(Column(column.name, column.type) for column in table.columns)
    indexed = frozenset(column.name.lower() for column in table.columns if column.key in ("MUL", "UNI"))
    return Source(table.name, columns, tuple(keys), table.primary or ("rowid",), indexed | frozenset(_lower(table.primary[:1])))


def schema_sources() -> dict[str, Source]:
    """The tables of information_schema."""
    return {
        f"{SCHEMA}.{name}": Source(f"{SCHEMA}.{name}", tuple(Column(column, type) for column, type in columns))
        for name, columns in _SCHEMA_COLUMNS.items()
    }


def _told(name: str, columns: list[ColumnInfo]) -> TableInfo:
    primary = tuple(column.name for column in columns if column.key == "PRI")
    return TableInfo(name, tuple(columns), primary, tuple((column.name,) for column in columns if column.key == "UNI"))


def _lower(names: Sequence[Any]) -> list[str]:
    return [str(name).lower() for name in names]
