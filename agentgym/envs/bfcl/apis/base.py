"""What all backends share: fields that a task's configuration sets, and random draws that are a value."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, get_type_hints

Json = dict[str, Any]


class Api:
    """A backend during one call. Its annotated fields are its state; those that begin with an underscore are compared with nothing.

    A method without an underscore is a function of the benchmark: it answers what the benchmark answers, also where it refuses,
    and may raise anything.
    """

    _seed: int
    _draws: list[list[float]]

    def __init__(self, tables: Mapping[str, Any], fields: Json) -> None:
        """``tables``: what is the same for all tasks, by the names of ``backend_tables.json``."""
        self._tables = tables
        vars(self).update(fields)

    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        """The fields at the start of a task: the benchmark's own, and what the task says otherwise."""
        given = {**tables.get(cls.__name__, {}), **config}
        fields = {name: given[name] for name in get_type_hints(cls) if name in given}
        return {**fields, "_seed": given.get("random_seed", 0), "_draws": []}

    @classmethod
    def public(cls, fields: Json) -> Json:
        """What is compared of the fields, as the benchmark holds it."""
        return {name: value for name, value in fields.items() if not name.startswith("_")}

    def _draw(self, *bounds: float) -> Any:
        """The next number within ``bounds``, whole if they are. The benchmark's generators are seeded by the task, not by the episode."""
        self._draws.append(list(bounds))
        generator = random.Random(self._seed)
        drawn = [generator.randint(*pair) if isinstance(pair[0], int) else generator.uniform(*pair) for pair in self._draws]  # type: ignore[arg-type]
        return drawn[-1]


def by_number(table: Json, number: object) -> Any:
    """What a table holds under a number. Its keys are texts, but the benchmark's are numbers: a text finds nothing."""
    return table.get(str(number)) if isinstance(number, int) else None


def as_key(name: str) -> int | str:
    """A table's key as the benchmark shows it."""
    return int(name) if name.isdigit() else name
