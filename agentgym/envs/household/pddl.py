"""The part of PDDL that text households need: typed objects, quantified conditions and conditional effects."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from agentgym.errors import AgentGymError

Tree = str | list["Tree"]
Atom = tuple[str, ...]  # a predicate and its arguments; those that begin with "?" are variables
Binding = Mapping[str, str]
_TOKEN = re.compile(r"[()]|[^\s(),]+")
LAST = 100  # the cost of what can only be tested, while a variable of it is free


class Facts(Protocol):
    """What is true: ``matching`` gives the true atoms that agree with ``atom`` wherever that has no variable."""

    def __contains__(self, atom: Atom, /) -> bool: ...
    def matching(self, atom: Atom) -> Iterable[Atom]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Formula:
    """A condition. ``operator`` is ``atom``, ``and``, ``or``, ``not``, ``=`` or ``exists``; ``free`` are its variables."""

    operator: str
    free: frozenset[str]
    parts: tuple[Formula, ...] = ()
    atom: Atom = ()

    def holds(self, facts: Facts) -> bool:
        return next(solutions(self, {}, facts), None) is not None

    def atoms(self) -> Iterator[Atom]:
        if self.operator == "atom":
            yield self.atom
        for part in self.parts:
            yield from part.atoms()


@dataclass(frozen=True, slots=True)
class Effect:
    """``adds`` or removes ``atom``, where ``condition`` was true before."""

    adds: bool
    atom: Atom
    condition: Formula | None = None


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    condition: Formula
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """``objects``: types by name. ``initial`` holds their types, too, as facts."""

    objects: Mapping[str, str]
    initial: tuple[Atom, ...]
    goal: Formula


def parse_domain(text: str) -> dict[str, Action]:
    """The actions of a domain by name. Raises `AgentGymError` for what this subset leaves out."""
    sections = _read(text)
    if any(_head(section) in (":derived", ":durative-action") for section in sections):
        raise AgentGymError("the PDDL domain has derived predicates or durative actions, which are not interpreted")
    actions = [_action(section) for section in sections if _head(section) == ":action" and isinstance(section, list)]
    return {action.name: action for action in actions}


def parse_problem(text: str) -> Problem:
    sections = {_head(section): section[1:] for section in _read(text) if isinstance(section, list)}
    missing = [name for name in (":objects", ":init", ":goal") if name not in sections]
    if missing:
        raise AgentGymError(f"the PDDL problem lacks {' and '.join(missing)}")
    objects = dict(_typed(sections[":objects"]))
    initial = tuple(_atom(fact) for fact in sections[":init"] if _head(fact) != "=")
    return problem(objects, initial, parse_formula(sections[":goal"][0]))


def problem(objects: Mapping[str, str], initial: Iterable[Atom], goal: Formula) -> Problem:
    return Problem(objects, (*initial, *(is_a(kind, name) for name, kind in objects.items())), goal)


def parse_formula(tree: Tree) -> Formula:
    operator, rest = _head(tree), tree[1:] if isinstance(tree, list) else []
    if operator == "and" or not tree:
        return conjunction([parse_formula(part) for part in rest])
    if operator in ("or", "not"):
        return _of_parts(operator, [parse_formula(part) for part in rest])
    if operator == "exists":
        variables, body = rest
        return _exists(list(_typed(variables)), parse_formula(body))
    if operator == "forall":  # not exists … not …
        variables, body = rest
        return _of_parts("not", [_exists(list(_typed(variables)), _of_parts("not", [parse_formula(body)]))])
    atom = _atom(tree)
    return Formula("=" if operator == "=" else "atom", _variables(atom), atom=atom)


def formula(text: str) -> Formula:
    return parse_formula(_tree(text))


def conjunction(parts: Sequence[Formula]) -> Formula:
    return _of_parts("and", parts)


def is_a(kind: str, name: str) -> Atom:
    """Types are facts like others."""
    return f"is {kind}", name


def solutions(formula: Formula, binding: Binding, facts: Facts) -> Iterator[Binding]:
    """All ways, possibly repeated, to bind the free variables of ``formula``, beyond ``binding``, so that it is true."""
    if formula.operator == "atom":
        yield from _bindings(formula.atom, binding, facts)
    elif formula.operator == "and":
        yield from _join(_plan(formula.parts, frozenset(binding)), binding, facts)
    elif formula.operator == "or":
        for part in formula.parts:
            yield from solutions(part, binding, facts)
    elif formula.operator == "not":
        if next(solutions(formula.parts[0], binding, facts), None) is None:
            yield binding
    elif formula.operator == "exists":
        outside = {name: value for name, value in binding.items() if name in formula.free}
        for found in solutions(formula.parts[0], outside, facts):
            yield {**binding, **{name: found[name] for name in formula.free if name in found}}
    elif len({binding.get(name, name) for name in formula.atom[1:]}) == 1:  # =
        yield binding


def ground(atom: Atom, binding: Binding) -> Atom:
    return tuple([binding.get(word, word) for word in atom])


def _join(parts: Sequence[Formula], binding: Binding, facts: Facts) -> Iterator[Binding]:
    for place, part in enumerate(parts):
        if part.operator == "atom" and part.free <= binding.keys():
            if ground(part.atom, binding) not in facts:
                return
        else:
            for found in solutions(part, binding, facts):
                yield from _join(parts[place + 1 :], found, facts)
            return
    yield binding


@lru_cache(4096)
def _plan(parts: tuple[Formula, ...], bound: frozenset[str]) -> tuple[Formula, ...]:
    """The parts in an order in which each has few choices left, and tests come when all that they test is bound."""
    left, planned = list(parts), list[Formula]()
    while left:
        planned.append(min(left, key=lambda part: _cost(part, bound)))
        left.remove(planned[-1])
        bound |= _binds(planned[-1])
    return tuple(planned)


def _cost(part: Formula, bound: Collection[str]) -> int:
    open_variables = sum(name not in bound for name in part.free)
    return open_variables if part.operator in ("atom", "exists") or not open_variables else open_variables + LAST


def _binds(formula: Formula) -> frozenset[str]:
    """The free variables that every solution binds."""
    parts = [_binds(part) for part in formula.parts]
    if formula.operator == "or":
        return frozenset.intersection(*parts)
    if formula.operator in ("and", "exists"):
        return frozenset().union(*parts) & formula.free
    return formula.free if formula.operator == "atom" else frozenset()


def _bindings(atom: Atom, binding: Binding, facts: Facts) -> Iterator[Binding]:
    asked = ground(atom, binding)
    unknown = [(place, word) for place, word in enumerate(asked) if word.startswith("?")]
    if not unknown:
        if asked in facts:
            yield binding
        return
    for fact in facts.matching(asked):
        found = dict(binding)
        if all(found.setdefault(name, fact[place]) == fact[place] for place, name in unknown):
            yield found


def _action(section: Sequence[Tree]) -> Action:
    name = str(section[1])
    parts = dict(zip(map(str, section[2::2]), section[3::2], strict=True))
    types = [Formula("atom", _variables(atom), atom=atom) for atom in (is_a(kind, name) for name, kind in _typed(parts[":parameters"]))]
    condition = conjunction([*_flat(parse_formula(parts.get(":precondition", []))), *types])
    return Action(name, condition, tuple(_effects(parts[":effect"])))


def _effects(tree: Tree, condition: Formula | None = None) -> Iterator[Effect]:
    operator, rest = _head(tree), tree[1:] if isinstance(tree, list) else []
    if operator == "and":
        for part in rest:
            yield from _effects(part, condition)
    elif operator == "when":
        yield from _effects(rest[1], parse_formula(rest[0]))
    elif operator == "not":
        yield Effect(False, _atom(rest[0]), condition)
    elif operator == "forall":
        raise AgentGymError("a PDDL effect with forall is not interpreted")
    elif operator != "increase":  # costs are not counted
        yield Effect(True, _atom(tree), condition)


def _flat(formula: Formula) -> tuple[Formula, ...]:
    return formula.parts if formula.operator == "and" else (formula,)


def _of_parts(operator: str, parts: Sequence[Formula]) -> Formula:
    return Formula(operator, frozenset().union(*(part.free for part in parts)), tuple(parts))


def _exists(variables: Sequence[tuple[str, str]], body: Formula) -> Formula:
    types = [Formula("atom", frozenset({name}), atom=is_a(kind, name)) for name, kind in variables]
    inner = conjunction([*_flat(body), *types])
    return Formula("exists", inner.free - {name for name, _ in variables}, (inner,))


def _variables(atom: Atom) -> frozenset[str]:
    return frozenset(word for word in atom if word.startswith("?"))


def _typed(tree: Tree) -> Iterator[tuple[str, str]]:
    """Names with types: ``a b - kind c - other``."""
    names: list[str] = []
    words = iter(tree)
    for word in words:
        if word == "-":
            kind = str(next(words))
            yield from ((name, kind) for name in names)
            names = []
        else:
            names.append(str(word))
    yield from ((name, "object") for name in names)


def _atom(tree: Tree) -> Atom:
    if not isinstance(tree, list) or not all(isinstance(word, str) for word in tree):
        raise AgentGymError(f"PDDL: {tree!r} is no atom")
    return tuple(map(str, tree))


def _head(tree: Tree) -> str:
    return tree[0] if isinstance(tree, list) and tree and isinstance(tree[0], str) else ""


def _read(text: str) -> list[Tree]:
    """The sections of ``(define (domain …) …)``."""
    tree = _tree(text)
    if _head(tree) != "define":
        raise AgentGymError("the PDDL text does not begin with (define")
    return list(tree[2:])


def _tree(text: str) -> Tree:
    stack: list[list[Tree]] = [[]]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text)):
        if token == "(":
            stack.append([])
        elif token != ")":
            stack[-1].append(token)
        elif len(stack) == 1:
            raise AgentGymError("the PDDL text closes a parenthesis that is not open")
        else:
            done = stack.pop()
            stack[-1].append(done)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise AgentGymError(f"the PDDL text leaves {len(stack) - 1} parentheses open")
    return stack[0][0]
