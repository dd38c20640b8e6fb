"""A unittest suite in which every test that allows it has a twin that a right program must fail.

The tests must share a process with the program, which could therefore read them, or change what judges it. So that process is not told
which twin is the true one: whatever makes both pass, or writes a verdict without knowing, is found out. [R]
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from agentgym.errors import AgentGymError

_EQUALITIES = {"assertEqual", "assertAlmostEqual", "assertCountEqual", "assertIs"} | {
    f"assert{kind}Equal" for kind in ("Dict", "List", "MultiLine", "Sequence", "Set", "Tuple")
}
_OPPOSITES = {"assertTrue": "assertFalse", "assertFalse": "assertTrue"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Suite:
    """``cases``: class and method, in the order in which they run.

    ``tests``: the place of each true test in that order, and that of its twin, or None where it has none.
    """

    source: str
    cases: tuple[tuple[str, str], ...]
    tests: tuple[tuple[int, int | None], ...]


def with_decoys(source: str, rng: Random) -> Suite:
    """Raises `AgentGymError` for a text that is no suite."""
    tree = _parsed(source)
    tests = [(owner, test) for owner in tree.body if isinstance(owner, ast.ClassDef) for test in _tests(owner)]
    if not tests:
        raise AgentGymError("a suite of tests holds no test: give classes of unittest with methods that begin with test")
    names = iter([f"test_{number}" for number in rng.sample(range(10**6), 2 * len(tests))])
    pairs: list[tuple[tuple[str, str], tuple[str, str] | None]] = []
    for owner, test in tests:
        twin = _decoy(test, rng)
        owner.body.remove(test)
        owner.body += rng.sample([test, twin], 2) if twin else [test]
        test.name = next(names)
        if twin:
            twin.name = next(names)
        pairs.append(((owner.name, test.name), (owner.name, twin.name) if twin else None))
    cases = [case for pair in pairs for case in pair if case]
    rng.shuffle(cases)
    places = {case: place for place, case in enumerate(cases)}
    return Suite(ast.unparse(tree), tuple(cases), tuple((places[test], places[twin] if twin else None) for test, twin in pairs))


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise AgentGymError(f"a suite of tests is no Python: {error}") from None


def _tests(owner: ast.ClassDef) -> list[ast.FunctionDef]:
    return [part for part in owner.body if isinstance(part, ast.FunctionDef) and part.name.startswith("test")]


def _decoy(test: ast.FunctionDef, rng: Random) -> ast.FunctionDef | None:
    """The test with one assertion changed so that it fails wherever the test passes; None where none is known to."""
    if test.decorator_list and any("patch" not in ast.unparse(one) for one in test.decorator_list):
        return None  # it may be skipped, and then both would pass
    twin = copy.deepcopy(test)
    places = list(_places(twin))
    if not places:
        return None
    place = rng.choice(places)
    if isinstance(place, ast.Attribute):
        place.attr = _OPPOSITES[place.attr]
    else:
        _change(place, rng)
    return twin


def _places(test: ast.FunctionDef) -> Iterator[ast.expr]:
    """What may be changed: the literal that something is compared with, or an assertion's own name."""
    for statement in _always_run(test.body):
        called = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(called, ast.Call) or not isinstance(called.func, ast.Attribute):
            continue
        name, given = called.func.attr, called.args
        if name in _OPPOSITES and given:
            yield called.func
        if name in _EQUALITIES and len(given) >= 2:
            literals = [literal for one in given[:2] if (literal := _literal(one, test)) is not None]
            if len(literals) == 1 and (name != "assertIs" or _is_constant(literals[0])):
                yield literals[0]


def _always_run(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run whenever the test passes: of blocks, the inside of ``with``, save where an error is expected."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.With) and not any("assert" in ast.unparse(item.context_expr) for item in statement.items):
            yield from _always_run(statement.body)


def _literal(value: ast.expr, test: ast.FunctionDef) -> ast.expr | None:
    """``value`` if it is a literal, or that which its name stands for in this test alone."""
    if isinstance(value, ast.Name):
        uses = [node for node in ast.walk(test) if isinstance(node, ast.Name) and node.id == value.id]
        given = [one.value for one in test.body if isinstance(one, ast.Assign) and [*map(ast.unparse, one.targets)] == [value.id]]
        return given[0] if len(uses) == 2 and len(given) == 1 and _is_literal(given[0]) else None
    return value if _is_literal(value) else None


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError):
        return False
    return bool(_constants(value))


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, bool)


def _constants(value: ast.expr) -> list[ast.Constant]:
    """Of a dict, the values alone: changing a key may change nothing but its order."""
    if isinstance(value, ast.Dict):
        return [found for part in value.values for found in _constants(part)]
    return [node for node in ast.walk(value) if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str)]


def _change(literal: ast.expr, rng: Random) -> None:
    constant = rng.choice(_constants(literal))
    constant.value = _other(constant.value, rng)


def _other(value: object, rng: Random) -> bool | int | float | str:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice((-3, -2, 2, 3) if value > 3 else (2, 3))
    text = str(value)
    at = rng.randrange(len(text) + 1)
    letter = rng.choice([letter for letter in _LETTERS if letter != text[at : at + 1].lower()])
    return text[:at] + letter + text[at + 1 :]
