"""``agentgym/Airline-v0``: the airline domain of tau-bench, on tables that are shared and never copied."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, StrictFloat, StrictInt, WrapValidator, with_config
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from agentgym.envs.airline import flights as timetable
from agentgym.envs.airline import ledger
from agentgym.envs.tau import TauEnv
from agentgym.errors import ToolError
from agentgym.tool import tool

Amount = StrictInt | StrictFloat
Cabin = Literal["basic_economy", "economy", "business"]

further_fields = with_config(ConfigDict(extra="ignore"))  # are let through; tools otherwise refuse what they do not know


@further_fields
class Flight(TypedDict):
    flight_number: str
    date: str


@further_fields
class Passenger(TypedDict):
    first_name: str
    last_name: str
    dob: str


@further_fields
class Payment(TypedDict):
    payment_id: str
    amount: Amount


def _as_given(value: Any, validate: Any) -> Any:
    """What was given, if it fits: the benchmark stores further fields too, and all in their own order."""
    validate(value)
    return value


AsGiven = WrapValidator(_as_given)
Flights = list[Annotated[Flight, AsGiven]]
Passengers = list[Annotated[Passenger, AsGiven]]
Payments = list[Annotated[Payment, AsGiven]]


class Airline(TauEnv):
    """Serve a customer of an airline, by the airline's policy. See `TauEnv` for the arguments, the user and the reward."""

    folder = "airline"
    table_names = ("users", "reservations", "flights")
    writes = ledger.WRITES
    as_on_first_date: ClassVar[bool] = True  # how the second of two flights is shown

    @tool(effect="read")
    def get_user_details(self, user_id: str) -> str:
        """Show a user's record: membership, payment methods, reservations."""
        return self._show("users", user_id)

    @tool(effect="read")
    def get_reservation_details(self, reservation_id: str) -> str:
        """Show a reservation's record: its flights, passengers and payments."""
        if reservation_id not in self.state.tables["reservations"]:
            raise ToolError("user not found")  # the benchmark's own words
        return self._show("reservations", reservation_id)

    @tool(effect="read")
    def list_all_airports(self) -> str:
        """Show the codes of all airports, each with its city."""
        return json.dumps(timetable.AIRPORTS)

    @tool(effect="read")
    def search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        """Find flights without a stop that can be booked.

        Args:
            origin: code of the airport, such as JFK.
            destination: code of the airport, such as LAX.
            date: such as 2024-05-20.
        """
        return json.dumps(timetable.direct(self.state.tables["flights"], origin, destination, date))

    @tool(effect="read")
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Find pairs of flights with one stop between them that can be booked.

        Args:
            origin: code of the airport, such as JFK.
            destination: code of the airport, such as LAX.
            date: of the first flight, such as 2024-05-20.
        """
        flights = self.state.tables["flights"]
        return json.dumps(timetable.one_stop(flights, origin, destination, date, as_on_first_date=self.as_on_first_date))

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
        trip = (user_id, origin, destination, flight_type, cabin, flights, passengers)
        extras = (payment_methods, total_baggages, nonfree_baggages, insurance)
        return self._write("reservations", id, self.writes["book_reservation"](self.state.tables, *trip, *extras))

    @tool
    def cancel_reservation(self, reservation_id: str) -> str:
        """Cancel a whole reservation, and refund what was paid."""
        return self._write("reservations", reservation_id, ledger.cancel_reservation(self.state.tables, reservation_id))

    @tool
    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: StrictInt, nonfree_baggages: StrictInt, payment_id: str
    ) -> str:
        """Change the number of bags.

        Args:
            total_baggages: the bags from now on.
            nonfree_baggages: those of them that are paid for.
            payment_id: of the user, to pay: a credit card or a gift card.
        """
        tables = ledger.update_reservation_baggages(self.state.tables, reservation_id, total_baggages, nonfree_baggages, payment_id)
        return self._write("reservations", reservation_id, tables)

    @tool
    def update_reservation_flights(self, reservation_id: str, cabin: Cabin, flights: Flights, payment_id: str) -> str:
        """Change the flights, the cabin or both.

        Args:
            flights: all flights from now on, also those that stay.
            payment_id: of the user, to pay or to be refunded the difference: a credit card or a gift card.
        """
        tables = self.writes["update_reservation_flights"](self.state.tables, reservation_id, cabin, flights, payment_id)
        return self._write("reservations", reservation_id, tables)

    @tool
    def update_reservation_passengers(self, reservation_id: str, passengers: Passengers) -> str:
        """Change who flies. Their number stays.

        Args:
            passengers: all of them.
        """
        tables = ledger.update_reservation_passengers(self.state.tables, reservation_id, passengers)
        return self._write("reservations", reservation_id, tables)

    @tool
    def send_certificate(self, user_id: str, amount: Amount) -> str:
        """Give a user a travel certificate.

        Args:
            amount: in dollars.
        """
        id = ledger.new_certificate_id(self.state.tables, user_id)
        self._write("users", user_id, ledger.send_certificate(self.state.tables, user_id, amount))
        return f"Certificate {id} added to user {user_id} with amount {amount}."
