"""``agentgym/Tau2Airline-v0``: the airline domain of tau2-bench."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictInt

from agentgym.envs.airline import Airline, Cabin, Flights, Passengers, Payments, ledger
from agentgym.envs.airline import flights as timetable
from agentgym.envs.judging import Judge
from agentgym.envs.tau.users import chosen
from agentgym.envs.tau2 import Tau2Env
from agentgym.envs.tau2.tables import load
from agentgym.envs.tau2.users import instructed
from agentgym.envs.user.users import User
from agentgym.errors import ToolError
from agentgym.tool import tool


class Tau2Airline(Tau2Env, Airline):
    """Serve a customer of an airline. See `Tau2Env` for user, judge and reward, `agentgym.envs.tau.users` for ``url`` and what follows it.

    ``data``: tau2-bench's folder; ``tables``: tau-bench's, where it does not lie beside it.
    """

    def __init__(
        self,
        data: str | Path,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
        judge: Judge | Mapping[str, Any] | None = None,
        tables: str | Path | None = None,
    ) -> None:
        domain = load(data, tables, self.folder, self.table_names)
        self._start(domain, chosen(user, url, model, key, cache, instructed), judge)

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

    @tool(effect="read")
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Find pairs of flights with one stop between them that can be booked.

        Args:
            origin: code of the airport, such as JFK.
            destination: code of the airport, such as LAX.
            date: of the first flight, such as 2024-05-20.
        """
        return json.dumps(timetable.one_stop(self.state.tables["flights"], origin, destination, date, as_on_first_date=False))

    @tool
    def book_reservation(
        self,
        user_id: str,
        origin: str,
        destination: str,
        flight_type: Literal["one_way", "round_trip"],
        cabin: Cabin,
        flights: Flights,
        passengers: Passengers,
        payment_methods: Payments,
        total_baggages: StrictInt,
        nonfree_baggages: StrictInt,
        insurance: Literal["yes", "no"],
    ) -> str:
        """Book flights.

        Args:
            origin: code of the airport, such as JFK.
            destination: code of the airport, such as LAX.
            flights: all of them, in their order.
            payment_methods: of the user; the amounts must add up to the price.
            total_baggages: the bags.
            nonfree_baggages: those of them that are paid for.
        """
        id = ledger.new_reservation_id(self.state.tables)
        if id in self.state.tables["reservations"]:
            raise ToolError("there can be no more new reservations")
        trip = (user_id, origin, destination, flight_type, cabin, flights, passengers)
        tables = ledger.book_reservation(self.state.tables, *trip, payment_methods, total_baggages, nonfree_baggages, insurance)
        for flight in flights:
            seats = ("flights", flight["flight_number"], "dates", flight["date"], "available_seats", cabin)
            day = tables["flights"][flight["flight_number"]]["dates"][flight["date"]]
            tables = tables.set(seats, day["available_seats"][cabin] - len(passengers))
        return self._write("reservations", id, tables)

    @tool
    def update_reservation_flights(self, reservation_id: str, cabin: Cabin, flights: Flights, payment_id: str) -> str:
        """Change the flights, the cabin or both.

        Args:
            flights: all flights from now on, also those that stay.
            payment_id: of the user, to pay or to be refunded the difference: a credit card or a gift card.
        """
        tables = ledger.update_reservation_flights(self.state.tables, reservation_id, cabin, flights, payment_id)
        return self._write("reservations", reservation_id, tables.set(("reservations", reservation_id, "cabin"), cabin))
