"""Small tables of our own with a question or a change each, drawn by seed."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

from agentgym.envs.database.tasks import fingerprint
from agentgym.seeds import Lineage
from agentgym.task import Task

SIZES = {"train": 2000, "validation": 100, "test": 200}
COLUMNS = ("Item", "Colour", "Shelf", "Count")
ITEMS = ("bolt", "cable", "hinge", "lamp", "nail", "pipe", "rope", "screw", "tile", "valve")
COLOURS = ("black", "blue", "green", "red", "white")
KINDS = ("other", "counting", "ranking", "INSERT", "UPDATE")


@cache
def stock_tasks(split: str) -> tuple[Task, ...]:
    """The tasks of a split, in a fixed order; none for a split that does not exist."""
    return tuple(_task(split, number) for number in range(SIZES.get(split, 0)))


def _task(split: str, number: int) -> Task:
    draw = Lineage.of(0, "stock", split, number).rng()
    items = draw.sample(ITEMS, draw.randint(4, 8))
    counts = draw.sample(range(2, 100), len(items))
    pairs = zip(items, counts, strict=True)
    rows = [(item, draw.choice(COLOURS), f"{draw.choice('ABC')}{draw.randint(1, 9)}", str(count)) for item, count in pairs]
    kind = KINDS[number % len(KINDS)]
    words, answer = _asked(kind, rows, draw)
    prompt = f"{words}\nThe name of this table is stock, and the headers of this table are {','.join(COLUMNS)}."
    return Task(f"{split}-{number}", prompt, answer, split, {"type": kind, "table": "stock", "columns": COLUMNS, "rows": tuple(rows)})


def _asked(kind: str, rows: list[tuple[str, str, str, str]], draw: Random) -> tuple[str, dict[str, Any]]:
    item, colour, shelf, count = draw.choice(rows)
    more = str(draw.randint(100, 200))
    match kind:
        case "other":
            return f"On which shelf is the {item}?", {"labels": [shelf]}
        case "counting":
            return f"How many kinds of things are {colour}?", {"labels": [str(sum(row[1] == colour for row in rows))]}
        case "ranking":
            return "Of which thing are there most?", {"labels": [max(rows, key=lambda row: int(row[3]))[0]]}
        case "INSERT":
            new = ("wrench", colour, shelf, more)
            statement = f"INSERT INTO stock VALUES {new}"
            return f"Note that {more} {colour} wrenches were put on shelf {shelf}: Item is wrench.", _changed([*rows, new], statement)
    counted = [(*row[:3], more) if row[0] == item else row for row in rows]
    statement = f"UPDATE stock SET Count = '{more}' WHERE Item = '{item}'"
    return f"Change the count of {item} from {count} to {more}.", _changed(counted, statement)


def _changed(rows: list[tuple[str, str, str, str]], statement: str) -> dict[str, Any]:
    return {"md5": fingerprint(rows), "statement": statement}
