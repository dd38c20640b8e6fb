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

from agentgym.envs.syntax import module_of
from agentgym.errors import AgentGymError

_EQUALITIES = {"assertEqual", "assertAlmostEqual", "assertCountEqual", "assertIs"} | {
    f"assert{kind}Equal" for kind in ("Dict", "List", "MultiLine", "Sequence", "Set", "Tuple")
}
_OPPOSITES = {"assertTrue": "assertFalse", "assertFalse": "assertTrue"}
_SKIPS = {"skip", "skipIf", "skipUnless", "skipTest", "SkipTest"}
_FIXTURES = {"setUp", "setUpClass", "asyncSetUp"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
Method = ast.FunctionDef | ast.AsyncFunctionDef
Case = tuple[str, str]  # class and method


@dataclass(frozen=True, slots=True)
class Pair:
    """Places in the order in which cases run. ``twin``: None where there is none. ``may_skip``: the suite itself may skip the test."""

    test: int
    twin: int | None
    may_skip: bool


@dataclass(frozen=True, slots=True)
class Suite:
    """``cases``: in the order in which they run."""

    source: str
    cases: tuple[Case, ...]
    pairs: tuple[Pair, ...]


def with_decoys(source: str, rng: Random) -> Suite:
    """Raises `AgentGymError` for a text that is no suite, or whose tests cannot all be found in it.

    What the suite shows of ``rng`` are the changed literals alone; a coin that is never shown says which of two is the true one.
    """
    tree, shown = _parsed(source), Random(rng.getrandbits(256))
    lineages = _lineages(tree)
    tests = {owner: _inherited(lineage) for owner, lineage in lineages.items()}
    homes = {test: home for lineage in lineages.values() for home in lineage for test in _tests(home)}
    names = iter([f"test_{number}" for number in shown.sample(range(10**6), 2 * len(homes))])
    twins = {test: _decoy(test, home, tree, rng) for test, home in homes.items()}
    for (test, twin), home in zip(twins.items(), homes.values(), strict=True):
        home.body.remove(test)
        for version in rng.sample([test, twin], 2) if twin else [test]:
            version.name = next(names)
            home.body.append(version)
    played = [(owner, test, twins[test]) for owner, methods in tests.items() for test in methods]
    cases = sorted((owner.name, version.name) for owner, *both in played for version in both if version)
    shown.shuffle(cases)
    places = {case: place for place, case in enumerate(cases)}
    pairs = [
        Pair(places[owner.name, test.name], places[owner.name, twin.name] if twin else None, _may_skip(test, lineages[owner]))
        for owner, test, twin in played
    ]
    if all(pair.may_skip for pair in pairs):
        raise AgentGymError("a suite of tests may skip every one of them, so that no program need pass any: leave out what skips")
    return Suite(ast.unparse(tree), tuple(cases), tuple(pairs))


def _parsed(source: str) -> ast.Module:
    try:
        return module_of(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise AgentGymError(f"a suite of tests is no Python: {error}") from None


def _lineages(tree: ast.Module) -> dict[ast.ClassDef, list[ast.ClassDef]]:
    """The classes of unittest, each with itself and those above it in this suite, the nearest first."""
    classes = [one for one in tree.body if isinstance(one, ast.ClassDef)]
    lineages = {owner: _lineage(owner, {one.name: one for one in classes}) for owner in classes}
    run = {owner: found for owner, found in lineages.items() if any(map(_is_case, found))}
    lost = {one for one in classes if _tests(one)}.difference(*run.values())
    outside = [one.name for one in tree.body if isinstance(one, Method) and one.name.startswith("test")]
    for name in sorted([*outside, *(one.name for one in lost)]):
        raise AgentGymError(f"a suite of tests holds {name}, which is in no class of unittest.TestCase: put it there")
    if not any(_tests(one) for found in run.values() for one in found):
        raise AgentGymError("a suite of tests holds no test: give classes of unittest.TestCase with methods that begin with test")
    return run


def _is_case(owner: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith("TestCase") for base in owner.bases)


def _lineage(owner: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    found = [owner]
    for one in found:  # which grows meanwhile
        above = [classes.get(base.id) for base in one.bases if isinstance(base, ast.Name)]
        found += [base for base in above if base and base not in found]
    return found


def _tests(owner: ast.ClassDef) -> list[Method]:
    return [part for part in owner.body if isinstance(part, Method) and part.name.startswith("test")]


def _inherited(lineage: Sequence[ast.ClassDef]) -> list[Method]:
    return list({test.name: test for one in reversed(lineage) for test in _tests(one)}.values())


def _may_skip(test: Method, lineage: Sequence[ast.ClassDef]) -> bool:
    fixtures = [part for one in lineage for part in one.body if isinstance(part, Method) and part.name in _FIXTURES]
    said = [test, *fixtures, *(decorator for one in lineage for decorator in one.decorator_list)]
    return any(getattr(node, "attr", getattr(node, "id", "")) in _SKIPS for part in said for node in ast.walk(part))


def _decoy(test: Method, home: ast.ClassDef, tree: ast.Module, rng: Random) -> Method | None:
    """The test with one assertion changed so that it fails wherever the test passes; None where none is known to."""
    if any("patch" not in ast.unparse(one) for one in [*test.decorator_list, *home.decorator_list]):
        return None  # it may be skipped, or expected to fail
    own = {node.name for node in ast.walk(tree) if isinstance(node, Method)}  # assertions that may mean something else here
    twin = copy.deepcopy(test)
    places = [place for name, place in _places(twin) if name not in own]
    if not places:
        return None
    place = rng.choice(places)
    if isinstance(place, ast.Attribute):
        place.attr = _OPPOSITES[place.attr]
    else:
        _change(place, rng)
    return twin


def _places(test: Method) -> Iterator[tuple[str, ast.expr]]:
    """What may be changed, by the assertion: the literal that something is compared with, or the assertion's own name."""
    for statement in _always_run(test.body):
        called = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(called, ast.Call) or not isinstance(called.func, ast.Attribute):
            continue
        name, given = called.func.attr, called.args
        if any(keyword.arg != "msg" for keyword in called.keywords) or (name == "assertAlmostEqual" and len(given) > 2):
            continue  # how far two numbers may be apart
        if name in _OPPOSITES and given:
            yield name, called.func
        if name in _EQUALITIES and len(given) >= 2:
            literals = [literal for one in given[:2] if (literal := _literal(one, test)) is not None]
            if len(literals) == 1 and _suits(name, literals[0]):
                yield name, literals[0]


def _always_run(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run whenever the test passes, and fail it if they fail: up to a return, and within ``with`` of known kinds."""
    for statement in statements:
        if not isinstance(statement, Method) and any(isinstance(node, ast.Return) for node in ast.walk(statement)):
            return
        yield statement
        if isinstance(statement, ast.With) and all(_is_harmless(ast.unparse(item.context_expr)) for item in statement.items):
            yield from _always_run(statement.body)


def _is_harmless(context: str) -> bool:
    return context.startswith("self.subTest(") or "patch" in context


def _literal(value: ast.expr, test: Method) -> ast.expr | None:
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


def _suits(name: str, literal: ast.expr) -> bool:
    if name == "assertIs":
        return isinstance(literal, ast.Constant) and isinstance(literal.value, bool)
    return name != "assertCountEqual" or not isinstance(literal, ast.Dict)


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
        far = rng.choice((2, 3)) + abs(value) // 10**6  # a large float would not notice a small step
        return value + (rng.choice((-far, far)) if value >= far else far)
    text = str(value)
    at = rng.randrange(len(text) or 1)
    letter = rng.choice([letter for letter in _LETTERS if letter != text[at : at + 1].lower()])
    return text[:at] + letter + text[at + 1 :]
