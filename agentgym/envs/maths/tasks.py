"""Questions that are easy with an interpreter and hard without: remainders, divisors, primes, digits and sums."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import comb
from random import Random

from agentgym.seeds import Lineage
from agentgym.task import Task

SIZES = {"train": 2000, "validation": 250, "test": 250}


@dataclass(frozen=True, slots=True)
class Family:
    """``words`` and ``code`` hold the numbers as {a}, {b} and {c}; ``code`` is an expression in Python."""

    words: str
    code: str
    draw: Callable[[Random], tuple[int, ...]]
    answer: Callable[..., int]


FAMILIES = (
    Family(
        "What is the remainder when {a}^{b} is divided by {c}?",
        "pow({a}, {b}, {c})",
        lambda rng: (rng.randint(3, 40), rng.randint(20, 99), rng.randint(11, 97)),
        lambda a, b, c: pow(a, b, c),
    ),
    Family(
        "How many positive divisors does {a} have?",
        "sum({a} % n == 0 for n in range(1, {a} + 1))",
        lambda rng: (rng.randint(100, 4000),),
        lambda a: sum(a % n == 0 for n in range(1, a + 1)),
    ),
    Family(
        "How many primes are there from {a} to {b}?",
        "sum(n > 1 and all(n % d for d in range(2, n)) for n in range({a}, {b} + 1))",
        lambda rng: (low := rng.randint(2, 200), low + rng.randint(30, 200)),
        lambda a, b: sum(n > 1 and all(n % d for d in range(2, n)) for n in range(a, b + 1)),
    ),
    Family(
        "What is the sum of the digits of {a}^{b}?",
        "sum(map(int, str({a} ** {b})))",
        lambda rng: (rng.randint(2, 19), rng.randint(12, 60)),
        lambda a, b: sum(map(int, str(a**b))),
    ),
    Family(
        "What is the sum of all multiples of {a} or {b} that are below {c}?",
        "sum(n for n in range({c}) if n % {a} == 0 or n % {b} == 0)",
        lambda rng: (rng.randint(3, 9), rng.randint(10, 17), rng.randint(150, 900)),
        lambda a, b, c: sum(n for n in range(c) if n % a == 0 or n % b == 0),
    ),
    Family(
        "In how many ways can {b} of {a} people be chosen so that a given one of them is among them?",
        "__import__('math').comb({a} - 1, {b} - 1)",
        lambda rng: (rng.randint(9, 20), rng.randint(3, 7)),
        lambda a, b: comb(a - 1, b - 1),
    ),
)


def code_of(problem: str) -> str | None:
    """The expression that answers one of these questions."""
    for family in FAMILIES:
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(family.words))
        if (found := re.fullmatch(pattern, problem)) is not None:
            return family.code.format(**found.groupdict())
    return None


@cache
def maths_tasks(split: str) -> tuple[Task, ...]:
    """No question is in two splits."""
    found: dict[str, dict[str, Task]] = {name: {} for name in SIZES}
    number = 0
    while any(len(found[name]) < size for name, size in SIZES.items()):
        rng = Lineage.of(0, "maths", number).rng()
        family = rng.choice(FAMILIES)
        numbers = family.draw(rng)
        named = dict(zip("abc", numbers, strict=False))
        problem = family.words.format(**named)
        own = Lineage.of(0, "maths", problem).rng().choices(list(SIZES), [0.7, 0.15, 0.15])[0]
        if len(found[own]) < SIZES[own]:
            found[own][problem] = Task(f"maths: {problem}", problem, str(family.answer(*numbers)), own)
        number += 1
    return tuple(found[split].values()) if split in found else ()
