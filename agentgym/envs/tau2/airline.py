"""``agentgym/Tau2Airline-v0``: the airline domain of tau2-bench."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.envs.airline import Airline, ledger
from agentgym.envs.airline import flights as timetable
from agentgym.envs.tau2.tables import OnTables
from agentgym.errors import ToolError
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict


def _booked(
    tables: FrozenDict,
    user_id: str,
    origin: str,
    destination: str,
    flight_type: str,
    cabin: str,
    flights: Sequence[Mapping[str, Any]],
    passengers: Sequence[Mapping[str, Any]],
    *paid: Any,
) -> FrozenDict:
    """There is no room for a fourth new reservation, and seats are counted down."""
    if ledger.new_reservation_id(tables) in tables["reservations"]:
        raise ToolError("there can be no more new reservations")
    tables = ledger.book_reservation(tables, user_id, origin, destination, flight_type, cabin, flights, passengers, *paid)
    for flight in flights:
        seats = ("flights", flight["flight_number"], "dates", flight["date"], "available_seats", cabin)
        day = tables["flights"][flight["flight_number"]]["dates"][flight["date"]]
        tables = tables.set(seats, day["available_seats"][cabin] - len(passengers))
    return tables


def _rebooked(tables: FrozenDict, reservation_id: str, cabin: str, flights: Sequence[Mapping[str, Any]], payment_id: str) -> FrozenDict:
    """The cabin is noted."""
    tables = ledger.update_reservation_flights(tables, reservation_id, cabin, flights, payment_id)
    return tables.set(("reservations", reservation_id, "cabin"), cabin)


class Tau2Airline(OnTables, Airline):
    """Serve a customer of an airline. See `OnTables` for the arguments, `Tau2Env` for user, judge and reward."""

    writes = {**ledger.WRITES, "book_reservation": _booked, "update_reservation_flights": _rebooked}  # noqa: RUF012  (read alone)
    as_on_first_date = False

    @tool(effect="read")
    def list_all_airports(self) -> str:
        """Show all airports, each with its code and city."""
        return json.dumps([{"iata": code, "city": city} for code, city in timetable.AIRPORTS.items()])

    @tool(effect="read")
    def get_flight_status(self, flight_number: str, date: str) -> str:
        """Show how a flight stands on a date.

        Args:
            date: such as 2024-05-20.
        """
        flights = self.state.tables["flights"]
        if flight_number not in flights:
            raise ToolError(f"flight {flight_number} not found")
        if date not in flights[flight_number]["dates"]:
            raise ToolError(f"flight {flight_number} not found on date {date}")
        return str(flights[flight_number]["dates"][date]["status"])
