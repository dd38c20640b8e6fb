"""Names and grouping as MySQL resolves them: which column a name means, and what a grouped query may ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agentgym.errors import ToolError
from agentgym.tools.mysql.values import Type

Bound = tuple[str, str]  # a source of one query and a column of it, in lower case


class Column(NamedTuple):
    name: str
    type: Type


class Alias(NamedTuple):
    """What a query itself names. ``aggregates``: it holds an aggregate function."""

    type: Type
    aggregates: bool


@dataclass(frozen=True)
class Source:
    """A table or a subquery after FROM. ``keys``: sets of columns that tell its rows apart.

    ``place``: the columns whose order is that of its rows, where it is a table; ``indexed``: the first columns of its indexes.
    """

    name: str
    columns: tuple[Column, ...]
    keys: tuple[frozenset[str], ...] = ()
    place: tuple[str, ...] = ()
    indexed: frozenset[str] = frozenset()

    def find(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name.lower() == name.lower()), None)


@dataclass
class Scope:
    """What one SELECT can name, and what is known of its grouping. ``joined``: columns of USING, which belong to no single source."""

    database: str
    outer: Scope | None = None
    queries: dict[str, Source] = field(default_factory=dict)  # WITH
    sources: list[Source] = field(default_factory=list)
    joined: set[str] = field(default_factory=set)
    aliases: dict[str, Alias] = field(default_factory=dict)
    listed: set[Bound] = field(default_factory=set)  # columns that are items of the SELECT
    groups: set[Bound] = field(default_factory=set)
    group_texts: set[str] = field(default_factory=set)  # of what GROUP BY names, as written
    aggregates: bool = False

    def chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def query(self, name: str) -> Source | None:
        return next((scope.queries[name.lower()] for scope in self.chain() if name.lower() in scope.queries), None)

    def add(self, source: Source) -> None:
        if any(known.name.lower() == source.name.lower() for known in self.sources):
            raise ToolError(f"Not unique table/alias: '{source.name}'")
        self.sources.append(source)

    def find(self, name: str, table: str, clause: str) -> tuple[Scope, Source, Column]:
        """Where a column is. Raises `ToolError` in MySQL's words where there is none, or more than one."""
        for scope in self.chain():
            found = [(source, column) for source in scope.named(table) if (column := source.find(name)) is not None]
            if len(found) > 1 and name.lower() not in scope.joined:
                raise ToolError(f"Column '{f'{table}.' if table else ''}{name}' in {clause} is ambiguous")
            if found:
                return (scope, *found[0])
        raise ToolError(f"Unknown column '{f'{table}.' if table else ''}{name}' in '{clause}'")

    def named(self, table: str) -> list[Source]:
        return [source for source in self.sources if not table or source.name.lower() == table.lower()]

    def star(self, table: str) -> list[tuple[Source, Column]]:
        """The columns that ``*`` or ``table.*`` stands for; those of USING come once, and first."""
        if not self.named(table):
            raise ToolError(f"Unknown table '{table}'" if table else "No tables used")
        found = [(source, column) for source in self.named(table) for column in source.columns]
        if table or not self.joined:
            return found
        first = {name: next(pair for pair in found if pair[1].name.lower() == name) for name in sorted(self.joined)}
        once = sorted(first.values(), key=lambda pair: found.index(pair))
        return once + [pair for pair in found if pair[1].name.lower() not in self.joined]


def determined(known: set[Bound], sources: Sequence[Source], equal: Sequence[tuple[Bound, Bound | None]]) -> set[Bound]:
    """All columns that have one value for each combination of ``known`` ones, by keys and equations (None: equal to a constant)."""
    known = set(known) | {one for one, other in equal if other is None}
    while True:
        more = {b for a, b in equal if a in known and b is not None} | {a for a, b in equal if b in known}
        for source in sources:
            name = source.name.lower()
            if any(key and all((name, column) in known for column in key) for key in source.keys):
                more |= {(name, column.name.lower()) for column in source.columns}
        if more <= known:
            return known
        known |= more
