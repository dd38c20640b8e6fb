"""What tau-bench's airline tools write: each function takes the tables and gives those after it, or raises `ToolError`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentgym.envs.tau.data import record
from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict

NOW = "2024-05-15T15:00:00"
INSURANCE, BAG = 30, 50  # dollars: for each passenger, for each bag that is not free
RESERVATION_IDS = ("HATHAT", "HATHAU", "HATHAV")  # of new reservations, as many as the benchmark has
MOST_PAYMENTS = 50  # of one reservation: the benchmark has no limit, and each cancelling doubles them
CERTIFICATE_IDS = ("certificate_3221322", "certificate_3221323", "certificate_3221324")


def book_reservation(
    tables: FrozenDict,
    user_id: str,
    origin: str,
    destination: str,
    flight_type: str,
    cabin: str,
    flights: Sequence[Mapping[str, Any]],
    passengers: Sequence[Mapping[str, Any]],
    payment_methods: Sequence[Mapping[str, Any]],
    total_baggages: int,
    nonfree_baggages: int,
    insurance: str,
) -> FrozenDict:
    record(tables, "users", user_id)
    booked = [_priced(tables, flight, cabin, len(passengers)) for flight in flights]
    total = (_fare(booked) + (INSURANCE if insurance == "yes" else 0)) * len(passengers) + BAG * nonfree_baggages
    tables = _paid_in_full(tables, user_id, payment_methods, total)
    reservation_id = new_reservation_id(tables)
    reservation = {
        "reservation_id": reservation_id,
        "user_id": user_id,
        "origin": origin,
        "destination": destination,
        "flight_type": flight_type,
        "cabin": cabin,
        "flights": booked,
        "passengers": passengers,
        "payment_history": payment_methods,
        "created_at": NOW,
        "total_baggages": total_baggages,
        "nonfree_baggages": nonfree_baggages,
        "insurance": insurance,
    }
    return tables.set(("reservations", reservation_id), reservation).append(("users", user_id, "reservations"), reservation_id)


def cancel_reservation(tables: FrozenDict, reservation_id: str) -> FrozenDict:
    history = record(tables, "reservations", reservation_id)["payment_history"]
    if len(history) > MOST_PAYMENTS:
        raise ToolError(f"reservation {reservation_id} was cancelled too often")
    refunds = [{"payment_id": paid["payment_id"], "amount": -paid["amount"]} for paid in history]
    tables = tables.set(("reservations", reservation_id, "payment_history"), [*history, *refunds])
    return tables.set(("reservations", reservation_id, "status"), "cancelled")


def update_reservation_baggages(
    tables: FrozenDict, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
) -> FrozenDict:
    reservation = record(tables, "reservations", reservation_id)
    cost = BAG * max(0, nonfree_baggages - reservation["nonfree_baggages"])
    tables = _charged(tables, reservation, payment_id, cost)
    tables = tables.set(("reservations", reservation_id, "total_baggages"), total_baggages)
    return tables.set(("reservations", reservation_id, "nonfree_baggages"), nonfree_baggages)


def update_reservation_flights(
    tables: FrozenDict, reservation_id: str, cabin: str, flights: Sequence[Mapping[str, Any]], payment_id: str
) -> FrozenDict:
    """As in the benchmark, the reservation's own field for the cabin stays as it is."""
    reservation = record(tables, "reservations", reservation_id)
    kept = {_segment(flight): flight for flight in reversed(reservation["flights"])} if cabin == reservation["cabin"] else {}
    count = len(reservation["passengers"])
    booked = [
        _placed(flight, kept[_segment(flight)]) if _segment(flight) in kept else _priced(tables, flight, cabin, count)
        for flight in flights
    ]
    tables = _charged(tables, reservation, payment_id, (_fare(booked) - _fare(reservation["flights"])) * count)
    return tables.set(("reservations", reservation_id, "flights"), booked)


def update_reservation_passengers(tables: FrozenDict, reservation_id: str, passengers: Sequence[Mapping[str, Any]]) -> FrozenDict:
    if len(passengers) != len(record(tables, "reservations", reservation_id)["passengers"]):
        raise ToolError("number of passengers does not match")
    return tables.set(("reservations", reservation_id, "passengers"), passengers)


def send_certificate(tables: FrozenDict, user_id: str, amount: float) -> FrozenDict:
    certificate_id = new_certificate_id(tables, user_id)
    certificate = {"source": "certificate", "amount": amount, "id": certificate_id}
    return tables.set(("users", user_id, "payment_methods", certificate_id), certificate)


WRITES: dict[str, Callable[..., FrozenDict]] = {
    write.__name__: write
    for write in (
        book_reservation,
        cancel_reservation,
        update_reservation_baggages,
        update_reservation_flights,
        update_reservation_passengers,
        send_certificate,
    )
}


def new_reservation_id(tables: FrozenDict) -> str:
    """The first that is free; the benchmark writes a fourth reservation over the third."""
    return next((id for id in RESERVATION_IDS if id not in tables["reservations"]), RESERVATION_IDS[-1])


def new_certificate_id(tables: FrozenDict, user_id: str) -> str:
    methods = record(tables, "users", user_id)["payment_methods"]
    for id in CERTIFICATE_IDS:
        if id not in methods:
            return id
    raise ToolError(f"user {user_id} can get no more than {len(CERTIFICATE_IDS)} certificates")


def _segment(flight: Mapping[str, Any]) -> tuple[str, str]:
    return flight["flight_number"], flight["date"]


def _priced(tables: FrozenDict, flight: Mapping[str, Any], cabin: str, count: int) -> dict[str, Any]:
    """A flight with its price now, if it can be booked for ``count`` passengers."""
    number, date = _segment(flight)
    if number not in tables["flights"]:
        raise ToolError(f"flight {number} not found")
    found = tables["flights"][number]
    if date not in found["dates"]:
        raise ToolError(f"flight {number} not found on date {date}")
    day = found["dates"][date]
    if day["status"] != "available":
        raise ToolError(f"flight {number} not available on date {date}")
    if day["available_seats"][cabin] < count:
        raise ToolError(f"not enough seats on flight {number}")
    return _placed(flight, {"price": day["prices"][cabin], "origin": found["origin"], "destination": found["destination"]})


def _placed(flight: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    return {**flight, **{field: source[field] for field in ("price", "origin", "destination")}}


def _fare(flights: Sequence[Mapping[str, Any]]) -> int:
    """For one passenger."""
    return sum(flight["price"] for flight in flights)


def _paid_in_full(tables: FrozenDict, user_id: str, payments: Sequence[Mapping[str, Any]], total: float) -> FrozenDict:
    """The tables after a booking's payments: a gift card keeps what is left of it, a certificate is used up."""
    methods = tables["users"][user_id]["payment_methods"]
    for payment in payments:
        if (id := payment["payment_id"]) not in methods:
            raise ToolError(f"payment method {id} not found")
        if "amount" in methods[id] and methods[id]["amount"] < payment["amount"]:
            raise ToolError(f"not enough balance in payment method {id}")
    paid = sum(payment["amount"] for payment in payments)
    if paid != total:
        raise ToolError(f"payment amount does not add up, total price is {total}, but paid {paid}")
    for payment in payments:
        method = methods[payment["payment_id"]]
        if method["source"] == "gift_card":
            methods = methods.set((payment["payment_id"], "amount"), method["amount"] - payment["amount"])
        elif method["source"] == "certificate":
            methods = methods.delete(payment["payment_id"])
    return tables.set(("users", user_id, "payment_methods"), methods)


def _charged(tables: FrozenDict, reservation: Any, payment_id: str, cost: int) -> FrozenDict:
    """The tables after ``cost`` is paid for a change; less than 0 is paid back, to a gift card at once."""
    methods = tables["users"][reservation["user_id"]]["payment_methods"]
    if payment_id not in methods:
        raise ToolError("payment method not found")
    method = methods[payment_id]
    if method["source"] == "certificate":
        raise ToolError("certificate cannot be used to update reservation")
    if method["source"] == "gift_card":
        if method["amount"] < cost:
            raise ToolError("gift card balance is not enough")
        balance = ("users", reservation["user_id"], "payment_methods", payment_id, "amount")
        tables = tables.set(balance, method["amount"] - cost)
    if not cost:
        return tables
    return tables.append(("reservations", reservation["reservation_id"], "payment_history"), {"payment_id": payment_id, "amount": cost})
