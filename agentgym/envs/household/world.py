"""A household that is played by text commands: what can be done in it, and what that changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter

from agentgym.envs.household.pddl import Action, Atom, Binding, Problem, ground, solutions

AGENT = "agent"

# By action: the words of its command, in which ?x is the name of what the action calls ?x.
COMMANDS = {
    "GotoLocation": "go to ?r",
    "OpenObject": "open ?r",
    "CloseObject": "close ?r",
    "PickupObject": "take ?o from ?r",
    "PutObject": "put ?o in/on ?r",
    "ToggleObject": "use ?o",
    "HeatObject": "heat ?o with ?r",
    "CleanObject": "clean ?o with ?r",
    "CoolObject": "cool ?o with ?r",
    "SliceObject": "slice ?co with ?ko",
    "examineReceptacle": "examine ?r",
    "examineObject": "examine ?o",
    "look": "look",
    "inventory": "inventory",
}
_PATTERNS = [(name, re.compile(re.sub(r"\\\?(\w+)", r"(?P<\1>.+)", re.escape(words)))) for name, words in COMMANDS.items()]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The facts that can change, by predicate. ``mark``: the exclusive or of the facts' hashes, whatever way led here."""

    facts: Mapping[str, frozenset[Atom]]
    mark: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, World) and self.facts == other.facts

    def __hash__(self) -> int:
        return self.mark

    def __state_digest__(self) -> str:
        return f"{self.mark:016x}"

    def changed(self, adds: Iterable[Atom], removes: Iterable[Atom]) -> World:
        """The world after an effect: what it removes goes first."""
        facts, mark = dict(self.facts), self.mark
        for atom in removes:
            if atom in facts[atom[0]]:
                facts[atom[0]] -= {atom}
                mark ^= _hash(atom)
        for atom in adds:
            if atom not in facts[atom[0]]:
                facts[atom[0]] |= {atom}
                mark ^= _hash(atom)
        return World(facts, mark)


@lru_cache(2**16)
def _hash(atom: Atom) -> int:
    return int.from_bytes(blake2b("\0".join(atom).encode(), digest_size=8).digest(), "big")


class Game:
    """One household and its goal: all that never changes. ``names`` are what the texts call its receptacles and objects.

    A fact is kept in the `World` if some action changes it and a condition, the goal or a text reads it.
    """

    def __init__(self, actions: Mapping[str, Action], problem: Problem, names: Mapping[str, str]) -> None:
        self.goal = problem.goal
        self.actions = {name: action for name, action in actions.items() if name in COMMANDS}
        self.names = names
        self.ids = {name: id for id, name in names.items()}
        self.receptacles = sorted(name for name, kind in problem.objects.items() if kind == "receptacle")
        self.agent = next(name for name, kind in problem.objects.items() if kind == AGENT)
        changing = _changing(self.actions.values(), problem)
        self._static: dict[Atom, list[Atom]] = {}  # by predicate, and by predicate, place and value
        self._facts = {atom for atom in problem.initial if atom[0] not in changing}
        for atom in sorted(self._facts):
            self._static.setdefault(atom[:1], []).append(atom)
            for place, word in enumerate(atom[1:], start=1):
                self._static.setdefault((atom[0], str(place), word), []).append(atom)
        self.start = World({name: frozenset() for name in sorted(changing)}, 0).changed(
            [atom for atom in problem.initial if atom[0] in changing], []
        )

    def do(self, world: World, command: str) -> tuple[World, Action, Binding] | None:
        """The world after a command, with the action it was; None if it is not possible."""
        scene = Scene(self, world)
        for action, given in self._readings(command):
            binding = next(solutions(action.condition, given, scene), None)
            if binding is not None:
                return self._after(world, action, binding, scene), action, binding
        return None

    def done(self, world: World) -> bool:
        return self.goal.holds(Scene(self, world))

    def commands(self, world: World) -> list[str]:
        """All that are possible, sorted."""
        scene = Scene(self, world)
        found: set[str] = set()
        for name, action in self.actions.items():
            for binding in solutions(action.condition, {}, scene):
                said = {variable: self.names[id] for variable, id in binding.items() if id in self.names}
                found.add(" ".join(said.get(word, word) for word in COMMANDS[name].split(" ")))
        return sorted(found)

    def static(self, atom: Atom) -> Iterable[Atom]:
        """The facts that never change and may agree with ``atom``: those of its rarest word."""
        known: list[Atom] = [(atom[0], str(place), word) for place, word in enumerate(atom) if place and not word.startswith("?")]
        return min((self._static.get(key, []) for key in [atom[:1], *known]), key=len)

    def is_static(self, atom: Atom) -> bool:
        return atom in self._facts

    def _readings(self, command: str) -> Iterator[tuple[Action, Binding]]:
        for name, pattern in _PATTERNS:
            match = pattern.fullmatch(command)
            if match is not None and name in self.actions:
                ids = {f"?{variable}": self.ids.get(said) for variable, said in match.groupdict().items()}
                given = {variable: id for variable, id in ids.items() if id is not None}
                if len(given) == len(ids):
                    yield self.actions[name], given

    def _after(self, world: World, action: Action, binding: Binding, scene: Scene) -> World:
        made = [
            (effect.adds, ground(effect.atom, binding))
            for effect in action.effects
            if effect.atom[0] in world.facts
            and (effect.condition is None or next(solutions(effect.condition, binding, scene), None) is not None)
        ]
        return world.changed([atom for adds, atom in made if adds], [atom for adds, atom in made if not adds])


@dataclass(frozen=True, slots=True)
class Scene:
    """All that is true in a household at one moment."""

    game: Game
    world: World

    def __contains__(self, atom: Atom) -> bool:
        changing = self.world.facts.get(atom[0])
        return atom in changing if changing is not None else self.game.is_static(atom)

    def matching(self, atom: Atom) -> Iterator[Atom]:
        changing = self.world.facts.get(atom[0])
        known = [place for place, word in enumerate(atom) if not word.startswith("?")]
        wanted = itemgetter(*known)
        value = wanted(atom)
        return (fact for fact in (self.game.static(atom) if changing is None else changing) if wanted(fact) == value)

    def true(self, predicate: str, *words: str) -> bool:
        return (predicate, *words) in self

    def find(self, predicate: str, *words: str) -> list[Atom]:
        """The true atoms that agree with the words, ``?`` for any, sorted."""
        return sorted(self.matching((predicate, *words)))

    def objects_in(self, receptacle: str) -> list[str]:
        return [self.game.names[fact[1]] for fact in self.find("inReceptacle", "?", receptacle)]


def _changing(actions: Iterable[Action], problem: Problem) -> set[str]:
    """Predicates that an action changes and something reads."""
    actions = list(actions)
    changed = {effect.atom[0] for action in actions for effect in action.effects}
    conditions = [problem.goal, *(action.condition for action in actions)]
    conditions += [effect.condition for action in actions for effect in action.effects if effect.condition is not None]
    read = {atom[0] for condition in conditions for atom in condition.atoms()}
    return changed & (read | {"isClean", "isHot", "isCool", "isToggled", "isSliced"})
