"""Small homes of our own with a task in each, drawn by seed, in the same engine and words as ALFWorld's games."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any

from agentgym.envs.household.pddl import Action, Atom, Formula, formula, parse_domain, problem
from agentgym.envs.household.texts import opening
from agentgym.envs.household.world import Game
from agentgym.seeds import Lineage
from agentgym.task import Task

SIZES = {"train": 4000, "validation": 200, "test": 400}
SPLIT_ENDS = {"train": 70, "validation": 80, "test": 100}  # per cent of the pairs of an object and its target, cumulative
RECEPTACLES = (4, 6)  # in a home, before second appliances of a kind are left out
OTHER_THINGS = (2, 4)  # in a home, besides what its task is about

# Kinds are capitalised, so that a tiny policy reads each as one word.
THINGS = {  # with what can be done to them
    "Apple": "clean heat cool",
    "Bowl": "clean cool",
    "Bread": "heat cool",
    "Cup": "clean heat cool",
    "Egg": "clean heat cool",
    "Mug": "clean heat cool",
    "Pan": "clean cool",
    "Plate": "clean heat cool",
    **dict.fromkeys(("Cloth", "Fork", "Knife", "Soap"), "clean"),
    **dict.fromkeys(("Book", "Disc", "Key", "Pen"), ""),
}
SURFACES = ("Bed", "Desk", "Shelf", "Sofa", "Table")
CUPBOARDS = ("Cabinet", "Drawer", "Safe")
APPLIANCES = {"clean": "Sinkbasin", "heat": "Microwave", "cool": "Fridge"}
OPENABLE = (*CUPBOARDS, "Microwave", "Fridge")
LAMPS = ("Desklamp", "Floorlamp")

PLACE, TWO, LIGHT = "pick_and_place_simple", "pick_two_obj_and_place", "look_at_obj_in_light"
PREPARED = {"pick_clean_then_place_in_recep": "clean", "pick_heat_then_place_in_recep": "heat", "pick_cool_then_place_in_recep": "cool"}
TYPES = (PLACE, TWO, LIGHT, *PREPARED)
BECOMES = {"clean": "isClean", "heat": "isHot", "cool": "isCool"}
WORDING = {
    PLACE: "put some {object} on {target}.",
    TWO: "put two {object} in {target}.",
    LIGHT: "examine the {object} with the {target}.",
    "pick_clean_then_place_in_recep": "put a clean {object} in {target}.",
    "pick_heat_then_place_in_recep": "put a hot {object} in {target}.",
    "pick_cool_then_place_in_recep": "put a cool {object} in {target}.",
}


@dataclass(frozen=True, slots=True)
class Home:
    """A task's ``data``: its type, the kinds that it is about, the receptacles, and in which of them each thing lies."""

    type: str
    object: str
    target: str  # the kind of a receptacle, or of a lamp
    receptacles: tuple[str, ...]
    things: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Home:
        things = tuple((thing, place) for thing, place in data["things"])
        return cls(data["type"], data["object"], data["target"], tuple(data["receptacles"]), things)


@cache
def home_tasks(split: str) -> tuple[Task, ...]:
    """The tasks of a split, in a fixed order, as many of each type; none for a split that does not exist."""
    return tuple(_task(split, number) for number in range(SIZES.get(split, 0)))


def split_of(thing: str, target: str) -> str:
    """The one split whose tasks may be about this pair."""
    percent = Lineage.of(0, "household", "split", thing, target).seed() % 100
    return next(split for split, end in SPLIT_ENDS.items() if percent < end)


@lru_cache(1024)
def game_of(home: Home) -> Game:
    objects = {"agent": "agent", "start": "location", **dict.fromkeys(home.receptacles, "receptacle")}
    objects |= {f"at {name}": "location" for name in home.receptacles} | {thing: "object" for thing, _ in home.things}
    names = {name: name for name, kind in objects.items() if kind in ("receptacle", "object")}
    return Game(_domain(), problem(objects, tuple(_facts(home)), _goal(home.type, home.object, home.target)), names)


def _task(split: str, number: int) -> Task:
    rng = Lineage.of(0, "household", split, number).rng()
    type = TYPES[number % len(TYPES)]
    pairs = _pairs(split, type)
    home = _furnish(type, *rng.choice(pairs), rng)
    goal = WORDING[type].format(object=home.object, target=home.target)
    return Task(f"{split}-{number}", opening(home.receptacles, goal), split=split, data=asdict(home))


@cache
def _pairs(split: str, type: str) -> Sequence[tuple[str, str]]:
    verb = PREPARED.get(type, "")
    targets = LAMPS if type == LIGHT else (*SURFACES, *CUPBOARDS)
    return [(one, target) for one, can in THINGS.items() if verb in can for target in targets if split_of(one, target) == split]


def _furnish(type: str, thing: str, target: str, rng: Random) -> Home:
    """A home in which the task can be done: its things do not lie where they belong yet."""
    needed = [] if type == LIGHT else [target]
    needed += [APPLIANCES[PREPARED[type]]] if type in PREPARED else []
    kinds = [*needed, rng.choice(SURFACES), rng.choice(CUPBOARDS)]
    kinds += rng.choices((*SURFACES, *CUPBOARDS, *APPLIANCES.values()), k=rng.randint(*RECEPTACLES) - len(kinds))
    kinds = [kind for number, kind in enumerate(kinds) if kind not in APPLIANCES.values() or kind not in kinds[:number]]
    receptacles = sorted(_named(kinds))
    elsewhere = [place for place in receptacles if place.split()[0] != target and place.split()[0] not in APPLIANCES.values()]
    others = rng.choices([kind for kind in THINGS if kind != thing], k=rng.randint(*OTHER_THINGS))
    own = [thing] * (2 if type == TWO else 1)
    places = [rng.choice(elsewhere) for _ in own] + [rng.choice(receptacles) for _ in others]
    lamps = [target] if type == LIGHT else []
    places += [rng.choice([place for place in receptacles if place.split()[0] in SURFACES]) for _ in lamps]
    things = zip(_named([*own, *others, *lamps]), places, strict=True)
    return Home(type, thing, target, tuple(receptacles), tuple(sorted(things)))


def _named(kinds: Sequence[str]) -> list[str]:
    """``Shelf``, then ``Shelf 2``: numbers are rarely needed, and cost tokens."""
    return [f"{kind} {number}" if (number := kinds[: place + 1].count(kind)) > 1 else kind for place, kind in enumerate(kinds)]


def _facts(home: Home) -> Iterator[Atom]:
    yield "atLocation", "agent", "start"
    for name in home.receptacles:
        kind = name.split()[0]
        yield "receptacleAtLocation", name, f"at {name}"
        yield "receptacleType", name, kind
        if kind in OPENABLE:
            yield "openable", name
        yield from ((f"{verb}s", name) for verb, appliance in APPLIANCES.items() if appliance == kind)
    for name, place in home.things:
        kind = name.split()[0]
        yield "inReceptacle", name, place
        yield "objectType", name, kind
        yield from ((f"{verb}able", name) for verb in THINGS.get(kind, "").split())
        yield ("toggleable" if kind in LAMPS else "pickupable"), name


@cache
def _goal(type: str, thing: str, target: str) -> Formula:
    """In the form of ALFWorld's goals."""
    if type == LIGHT:
        return formula(
            f"(and (exists (?t - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?t {target}) (isToggled ?t)"
            f" (inReceptacle ?t ?r) (receptacleAtLocation ?r ?l) (atLocation ?a ?l)))"
            f" (exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o))))"
        )
    placed = f"(objectType ?o {thing}) (receptacleType ?r {target}) (inReceptacle ?o ?r)"
    if type in PREPARED:
        placed += f" ({BECOMES[PREPARED[type]]} ?o)"
    if type == TWO:
        placed += f" (objectType ?o2 {thing}) (inReceptacle ?o2 ?r) (not (= ?o ?o2))"
        return formula(f"(exists (?o ?o2 - object ?r - receptacle) (and {placed}))")
    return formula(f"(exists (?o - object ?r - receptacle) (and {placed}))")


@cache
def _domain() -> Mapping[str, Action]:
    return parse_domain((Path(__file__).parent / "domain.pddl").read_text())
