"""Small programs to write: one to three steps on a number, a text or a list, told in words and by examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from agentgym.seeds import Lineage
from agentgym.task import Task

SIZES = {"train": 4000, "validation": 500, "test": 500}
EXAMPLES, HIDDEN = 2, 6  # inputs that are shown, and that are not
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step. ``words`` and ``line`` hold the constant as {k}."""

    words: str
    line: str
    apply: Callable[[Any, Any], Any]


NUMBER = (
    Operation("add {k}", "x = x + {k}", lambda x, k: x + k),
    Operation("subtract {k}", "x = x - {k}", lambda x, k: x - k),
    Operation("multiply by {k}", "x = x * {k}", lambda x, k: x * k),
    Operation("divide by {k} and round down", "x = x // {k}", lambda x, k: x // k),
    Operation("take the rest modulo {k}", "x = x % {k}", lambda x, k: x % k),
    Operation("square it", "x = x * x", lambda x, k: x * x),
    Operation("change the sign", "x = -x", lambda x, k: -x),
)
TEXT = (
    Operation("reverse it", "x = x[::-1]", lambda x, k: x[::-1]),
    Operation("make it upper case", "x = x.upper()", lambda x, k: x.upper()),
    Operation("repeat it {k} times", "x = x * {k}", lambda x, k: x * k),
    Operation("drop the first {k} letters", "x = x[{k}:]", lambda x, k: x[k:]),
    Operation("keep the first {k} letters", "x = x[:{k}]", lambda x, k: x[:k]),
    Operation("append a dot", "x = x + '.'", lambda x, k: x + "."),
    Operation("write it twice with a dash", "x = x + '-' + x", lambda x, k: x + "-" + x),
)
LIST = (
    Operation("reverse it", "x = x[::-1]", lambda x, k: x[::-1]),
    Operation("sort it", "x = sorted(x)", lambda x, k: sorted(x)),
    Operation("add {k} to each", "x = [n + {k} for n in x]", lambda x, k: [n + k for n in x]),
    Operation("multiply each by {k}", "x = [n * {k} for n in x]", lambda x, k: [n * k for n in x]),
    Operation("keep those above {k}", "x = [n for n in x if n > {k}]", lambda x, k: [n for n in x if n > k]),
    Operation("drop the first {k}", "x = x[{k}:]", lambda x, k: x[k:]),
    Operation("append {k}", "x = x + [{k}]", lambda x, k: [*x, k]),
)
KINDS: dict[str, tuple[Sequence[Operation], Callable[[Random], Any]]] = {
    "number": (NUMBER, lambda rng: rng.randint(-20, 40)),
    "text": (TEXT, lambda rng: "".join(rng.choices(LETTERS, k=rng.randint(4, 8)))),
    "list": (LIST, lambda rng: [rng.randint(-9, 20) for _ in range(rng.randint(3, 6))]),
}
_PROMPT = re.compile(r"Write f\(x\) for a (\w+) x: (.*?)\. f\(")


def program_of(lines: Sequence[str]) -> str:
    return "".join(["def f(x):\n", *(f"    {line}\n" for line in lines), "    return x\n"])


def lines_of(prompt: str) -> list[str]:
    """What the words of a prompt ask for, as lines of Python."""
    asked = _PROMPT.match(prompt)
    if asked is None:
        return []
    return [_line(asked[1], words) for words in asked[2].split(", then ")]


def other_line(prompt: str, rng: Random) -> str:
    """A line that somebody might write in error."""
    asked = _PROMPT.match(prompt)
    operations = KINDS[asked[1] if asked else "number"][0]
    return rng.choice(operations).line.format(k=rng.randint(2, 9))


def computed(program: str, kind: str, x: Any) -> Any:
    """What a program that `program_of` made of known lines gives, without running it."""
    for line in program.splitlines()[1:-1]:
        x = _step(kind, line.strip(), x)
    return x


def _step(kind: str, line: str, x: Any) -> Any:
    for operation in KINDS[kind][0]:
        pattern = re.escape(operation.line).replace(r"\{k\}", r"(\d)")
        if (found := re.fullmatch(pattern, line)) is not None:
            return operation.apply(x, int(found[1]) if found.groups() else 0)
    raise ValueError(f"{line!r} is no known line")


def _line(kind: str, words: str) -> str:
    for operation in KINDS[kind][0]:
        if (found := re.fullmatch(operation.words.replace("{k}", r"(\d)"), words)) is not None:
            return operation.line.format(k=found[1]) if found.groups() else operation.line
    raise ValueError(f"no operation is called {words!r}")


@cache
def code_tasks(split: str) -> tuple[Task, ...]:
    """No two tasks of all splits together ask for the same steps."""
    found: dict[str, dict[str, Task]] = {name: {} for name in SIZES}
    number = 0
    while any(len(found[name]) < size for name, size in SIZES.items()):
        task = _drawn(Lineage.of(0, "code", number))
        number += 1
        if len(found[task.split]) < SIZES[task.split]:
            found[task.split].setdefault(task.id, task)
    return tuple(found[split].values()) if split in found else ()


def _drawn(lineage: Lineage) -> Task:
    rng = lineage.rng()
    kind = rng.choice(list(KINDS))
    operations, draw = KINDS[kind]
    steps = [(operation, rng.randint(2, 9)) for operation in rng.choices(operations, k=rng.randint(1, 3))]
    words = ", then ".join(operation.words.format(k=k) for operation, k in steps)
    # Of its words, so that equal tasks fall into the same split with the same inputs.
    own = Lineage.of(0, "code", kind, words).rng()
    split = own.choices(list(SIZES), [0.7, 0.15, 0.15])[0]
    cases = []
    for _ in range(EXAMPLES + HIDDEN):
        given = value = draw(own)
        for operation, k in steps:
            value = operation.apply(value, k)
        cases.append(([given], value))
    examples, hidden = cases[:EXAMPLES], cases[EXAMPLES:]
    shown = " ".join(f"f({given[0]!r}) is {value!r}." for given, value in examples)
    prompt = f"Write f(x) for a {kind} x: {words}. {shown}"
    return Task(f"{kind}: {words}", prompt, {"calls": hidden}, split, {"entry": "f", "examples": examples})
