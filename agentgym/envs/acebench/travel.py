"""The flights of the tasks of agents: what can be found, booked, changed and cancelled. As in the benchmark, its slips included."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from agentgym.errors import ToolError

Json = dict[str, Any]
ECONOMY, BUSINESS = "Economy Class", "Business Class"
FREE_BAGS = {
    "regular": {ECONOMY: 1, BUSINESS: 2},
    "silver": {ECONOMY: 2, BUSINESS: 3},
    "gold": {ECONOMY: 3, BUSINESS: 3},
}
BAG = 50  # yuan for each that is not free
NOW = datetime(2024, 7, 14, 6)  # when bookings are cancelled
CANCELLED_BY_AIRLINE = "The airline has canceled the flight."
LATE = 0.1  # of the price, for who cancels on the last day
SHOWN = (
    *("flight_no", "origin", "destination", "depart_time", "arrival_time"),
    *("status", "seats_available", "economy_price", "business_price"),
)


class Travel:
    """``saved``: the fields that are compared with the known ones at the end."""

    saved: ClassVar = ("users", "reservations")

    def __init__(self, parts: Mapping[str, Json]) -> None:
        self.fields = parts["Travel"]

    def get_flight_details(self, origin: Any = None, destination: Any = None) -> list[Json]:
        ends = {"origin": origin, "destination": destination}
        wanted = {name: city for name, city in ends.items() if city}
        found = [flight for flight in self.fields["flights"] if all(flight[name] == city for name, city in wanted.items())]
        if not found:
            raise ToolError("no flight goes there directly")
        return [{name: flight[name] for name in SHOWN} for flight in found]

    def find_transfer_flights(self, origin_city: Any, transfer_city: Any, destination_city: Any) -> list[Json]:
        first, second = (
            [one for one in self.fields["flights"] if (one["origin"], one["destination"], one["status"]) == (*leg, "available")]
            for leg in ((origin_city, transfer_city), (transfer_city, destination_city))
        )
        pairs = [(one, next) for one in first for next in second if _time(one["arrival_time"]) < _time(next["depart_time"])]
        if not pairs:
            raise ToolError("no two flights go there by that city")
        return [{"first_leg": one, "second_leg": next} for one, next in pairs]

    def get_user_details(self, user_id: Any, password: Any) -> Json:
        return {name: value for name, value in self.authenticate_user(user_id, password).items() if name != "password"}

    def authenticate_user(self, user_id: Any, password: Any) -> Json:
        user: Json | None = self.fields["users"].get(user_id)
        if user is None or user["password"] != password:
            raise ToolError("the user or the password is wrong")
        return user

    def get_reservation_details(self, reservation_id: Any = None, user_id: Any = None) -> list[Json]:
        if not reservation_id and not user_id:
            raise ToolError("give a reservation or a user")
        name, wanted = ("reservation_id", reservation_id) if reservation_id else ("user_id", user_id)
        found = [one for one in self.fields["reservations"] if one[name] == wanted]
        return [{**one, "flight_info": self._flight(one["flight_no"])} for one in found]

    def get_baggage_allowance(self, membership_level: Any, cabin_class: Any) -> int:
        return FREE_BAGS.get(membership_level, {}).get(cabin_class, 0)

    def calculate_baggage_fee(self, membership_level: Any, cabin_class: Any, baggage_count: Any) -> Any:
        return max(baggage_count - FREE_BAGS[membership_level][cabin_class], 0) * BAG

    def reserve_flight(
        self, user_id: Any, password: Any, flight_no: Any, cabin: Any, payment_method: Any, baggage_count: Any
    ) -> str:  # how many seats are left is not asked
        flight = next((one for one in self.fields["flights"] if one["flight_no"] == flight_no and one["status"] == "available"), None)
        user = self.fields["users"].get(user_id)
        if flight is None or user is None or user["password"] != password:  # where the benchmark's program breaks down
            raise ValueError("the flight, the user or the password is wrong")
        cost = _price(flight, cabin) + self.calculate_baggage_fee(user["membership_level"], cabin, baggage_count)
        if payment_method not in ["cash", "bank"]:
            raise ToolError("one pays by cash or bank")
        if cost > user[f"{payment_method}_balance"]:
            raise ToolError(f"the {payment_method} balance is too low: perhaps the other one is not")
        user[f"{payment_method}_balance"] -= cost
        flight["seats_available"] -= 1
        booking = {"reservation_id": f"res_{len(self.fields['reservations']) + 1}", "user_id": user_id, "flight_no": flight_no}
        self.fields["reservations"].append({**booking, "payment_method": payment_method, "cabin": cabin, "baggage": baggage_count})
        return f"Booked as {booking['reservation_id']}. With baggage, it costs {cost} yuan."

    def modify_flight(
        self,
        user_id: Any,
        reservation_id: Any,
        new_flight_no: Any = None,
        new_cabin: Any = None,
        add_baggage: Any = 0,
        new_payment_method: Any = None,
    ) -> str:
        booking = self._booking(user_id, reservation_id)
        flight = self._flight(booking["flight_no"])
        if flight is None:
            raise ToolError("the flight of this reservation is not known")
        user, method = self.fields["users"][user_id], new_payment_method or booking["payment_method"]
        done = []
        if new_flight_no and new_flight_no != booking["flight_no"]:
            self._change_flight(booking, flight, new_flight_no)
            done.append("The flight is changed.")
        if new_cabin and new_cabin != booking["cabin"]:
            done.append(_change_cabin(booking, flight, new_cabin, user, method))
        if add_baggage > 0:
            done.append(self._add_bags(booking, add_baggage, user, method))
        return " ".join(filter(None, done)) or "It is changed, and costs nothing more."

    def cancel_reservation(self, user_id: Any, reservation_id: Any, reason: Any) -> str:
        """Money comes back as cash. As in the benchmark, the reservation stays on the list, and may be cancelled again."""
        if not (user := self.fields["users"].get(user_id)):
            raise ToolError("the user is not known")
        booking = self._booking(user_id, reservation_id)
        flight = self._flight(booking["flight_no"])
        if flight is None:
            raise ToolError("the flight of this reservation is not known")
        left = _time(flight["depart_time"]) - NOW
        if left < timedelta():
            raise ToolError("the flight has left, so nothing can be cancelled")
        price = _price(flight, booking["cabin"])
        free = reason == CANCELLED_BY_AIRLINE or left > timedelta(days=1)
        fee = 0 if free else price * LATE
        user["cash_balance"] += price - fee
        return f"Cancelled. {price - fee} yuan come back{'' if free else f', after a fee of {fee} yuan'}."

    def _booking(self, user_id: Any, reservation_id: Any) -> Json:
        for one in self.fields["reservations"]:
            if (one["reservation_id"], one["user_id"]) == (reservation_id, user_id):
                found: Json = one
                return found
        raise ToolError("this user has no such reservation")

    def _flight(self, number: Any) -> Json | None:
        """The first of that number."""
        return next((one for one in self.fields["flights"] if one["flight_no"] == number), None)

    def _change_flight(self, booking: Json, flight: Json, number: Any) -> None:
        """At no price."""
        new = self._flight(number)
        if new is None or any(new[end] != flight[end] for end in ("origin", "destination")):
            raise ToolError("the new flight is not known, or goes elsewhere")
        booking["flight_no"] = number

    def _add_bags(self, booking: Json, more: Any, user: Json, method: Any) -> str:
        """As in the benchmark, all bags that are not free are paid for, also those that were before."""
        bags = booking.get("baggage", 0) + more
        cost = max(0, bags - self.get_baggage_allowance(user["membership_level"], booking["cabin"])) * BAG
        paid = not cost or _pay(user, method, cost)
        booking["baggage"] = bags
        return (f"The baggage costs {cost} more." if cost else "") if paid else "The balance is too low for the baggage."


def _change_cabin(booking: Json, flight: Json, cabin: Any, user: Json, method: Any) -> str:
    """At the price of the flight that was booked before. As in the benchmark, one that cannot be paid is changed all the same."""
    prices = {ECONOMY: flight["economy_price"], BUSINESS: flight["business_price"]}
    more = prices.get(cabin, 0) - prices.get(booking["cabin"], 0)
    booking["cabin"] = cabin
    paid = not more or _pay(user, method, more)
    if more < 0:
        return f"The cabin is changed, and {-more} come back."
    return (f"The cabin is changed, for {more} more." if more else "") if paid else "The balance is too low for the cabin."


def _pay(user: Json, method: Any, cost: Any) -> bool:
    """Whether it could be paid; a negative cost comes back. As in the benchmark, other ways than cash and bank cost nothing."""
    if method not in ("cash", "bank"):
        return True
    if user[f"{method}_balance"] - cost < 0:
        return False
    user[f"{method}_balance"] -= cost
    return True


def _price(flight: Json, cabin: Any) -> Any:
    return flight["economy_price"] if cabin == ECONOMY else flight["business_price"]


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
