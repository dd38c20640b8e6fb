"""Looking for flights in tau-bench's airline: on a route, on a date, with one stop or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentgym.tools.tables import FrozenDict

AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}
ARRIVES, DEPARTS = "scheduled_arrival_time_est", "scheduled_departure_time_est"


def direct(flights: FrozenDict, origin: str, destination: str, date: str) -> list[dict[str, Any]]:
    """Those that can be booked, in the order of the table."""
    route = (flight for flight in flights.values() if (flight["origin"], flight["destination"]) == (origin, destination))
    return [_on(flight, date) for flight in route if _available(flight, date)]


def one_stop(
    flights: FrozenDict, origin: str, destination: str, date: str, *, as_on_first_date: bool = True
) -> list[list[dict[str, Any]]]:
    """Pairs of flights that can be booked and meet.

    As in the benchmark: times are compared as texts, a night between the two makes the second date the next number in May, and even then
    the second flight is shown with the first date's prices and seats (in tau2-bench with its own: ``as_on_first_date`` false). Raises
    `KeyError` where it does not fly on the first date.
    """
    return [
        [{**_on(first, date), "date": date}, {**_on(second, date if as_on_first_date else second_date), "date": second_date}]
        for first, second in _meeting(flights, origin, destination)
        if _available(first, date) and _available(second, second_date := _second_date(first, date))
    ]


def _meeting(flights: FrozenDict, origin: str, destination: str) -> Iterator[tuple[Any, Any]]:
    last = [flight for flight in flights.values() if flight["destination"] == destination]
    for first in flights.values():
        if first["origin"] == origin:
            for second in last:
                if first["destination"] == second["origin"] and first[ARRIVES] <= second[DEPARTS]:
                    yield first, second


def _second_date(first: Any, date: str) -> str:
    return f"2024-05-{int(date[-2:]) + 1}" if "+1" in first[ARRIVES] else date


def _available(flight: Any, date: str) -> bool:
    return date in flight["dates"] and flight["dates"][date]["status"] == "available"


def _on(flight: Any, date: str) -> dict[str, Any]:
    """The flight's own fields, then those of the date."""
    return {**{name: value for name, value in flight.items() if name != "dates"}, **flight["dates"][date].to_plain()}
