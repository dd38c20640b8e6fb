"""Small databases of our own, and questions about them, drawn by seed."""

from __future__ import annotations

from functools import cache
from random import Random

from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.tools.mysql import MySQL
from agentgym.tools.mysql.tables import ColumnInfo, TableInfo
from agentgym.tools.sqlite import Database

SIZES = {"train": 2000, "validation": 100, "test": 200}
MARKETS = {"train": 40, "validation": 4, "test": 8}  # databases
TOWNS = ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Pine", "Rowan", "Willow")
REGIONS = ("north", "south", "east", "west")
KINDS = ("bakery", "bookshop", "florist", "grocer", "tailor")
OWNERS = ("Abe", "Bea", "Cal", "Dot", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kay", "Lee", "Mia", "Ned", "Ola", "Pat")
TABLES = (
    TableInfo(
        "town",
        (
            *(ColumnInfo("id", "int", False), ColumnInfo("name", "varchar(20)")),
            *(ColumnInfo("region", "varchar(10)"), ColumnInfo("people", "int")),
        ),
        ("id",),
    ),
    TableInfo(
        "shop",
        (
            *(ColumnInfo("id", "int", False), ColumnInfo("owner", "varchar(20)"), ColumnInfo("kind", "varchar(20)")),
            *(ColumnInfo("town_id", "int", key="MUL"), ColumnInfo("opened", "date"), ColumnInfo("rent", "decimal(8,2)")),
        ),
        ("id",),
        indexes=(("town_id",),),
    ),
)
# A question and its query; {town}, {region}, {kind} and {year} are drawn.
QUESTIONS = (
    ("How many people live in {town}?", "SELECT people FROM town WHERE name = '{town}'"),
    ("Which towns are in the {region}?", "SELECT name FROM town WHERE region = '{region}'"),
    ("How many shops of each kind are there?", "SELECT kind, COUNT(*) FROM shop GROUP BY kind"),
    ("Who owns a {kind}?", "SELECT owner FROM shop WHERE kind = '{kind}'"),
    ("What is the average rent of a {kind}?", "SELECT AVG(rent) FROM shop WHERE kind = '{kind}'"),
    ("Who owns a shop in {town}?", "SELECT owner FROM shop JOIN town ON town_id = town.id WHERE name = '{town}'"),
    ("How many shops in the {region} opened after {year}?",
     "SELECT COUNT(*) FROM shop JOIN town ON town_id = town.id WHERE region = '{region}' AND YEAR(opened) > {year}"),
    ("Which towns have no {kind}?", "SELECT name FROM town WHERE id NOT IN (SELECT town_id FROM shop WHERE kind = '{kind}')"),
    ("What does the dearest shop of {town} pay in rent?",
     "SELECT MAX(rent) FROM shop JOIN town ON town_id = town.id WHERE name = '{town}'"),
)  # fmt: skip


@cache
def market_tasks(split: str) -> tuple[Task, ...]:
    """The questions of a split, in a fixed order; none for a split that does not exist."""
    return tuple(_task(split, number) for number in range(SIZES.get(split, 0)))


def market(engine: MySQL, name: str) -> Database:
    """The database of that name, always with the same rows."""
    draw = Lineage.of(0, "market", name).rng()
    towns = _towns(draw)
    shops = [_shop(draw, number, len(towns)) for number in range(1, draw.randint(8, 14))]
    return engine.create(name, zip(TABLES, (towns, shops), strict=True))


def _task(split: str, number: int) -> Task:
    draw = Lineage.of(0, "market question", split, number).rng()
    name = f"market_{split}_{draw.randrange(MARKETS[split])}"
    town = draw.choice(_towns(Lineage.of(0, "market", name).rng()))[1]
    words = {"town": town, "region": draw.choice(REGIONS), "kind": draw.choice(KINDS), "year": draw.randint(1990, 2019)}
    question, query = draw.choice(QUESTIONS)
    return Task(f"{split}-{number}", question.format(**words), query.format(**words), split, {"db": name, "hardness": ""})


def _towns(draw: Random) -> list[tuple[int, str, str, int]]:
    names = draw.sample(TOWNS, draw.randint(4, 7))
    return [(number, name, draw.choice(REGIONS), draw.randint(2, 90) * 100) for number, name in enumerate(names, start=1)]


def _shop(draw: Random, number: int, towns: int) -> tuple[int, str, str, int, str, float]:
    opened = f"{draw.randint(1985, 2022)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    return (number, draw.choice(OWNERS), draw.choice(KINDS), draw.randint(1, towns), opened, draw.randint(200, 2000) / 2)
