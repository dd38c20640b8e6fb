"""Calls that lead to a known end: those of the benchmark's milestones where they do, else those that the end itself asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from agentgym.action import Call
from agentgym.envs.acebench.travel import CANCELLED_BY_AIRLINE
from agentgym.envs.acebench.world import World
from agentgym.envs.calls import read_calls

Fields = Mapping[str, Any]


def solution(
    world: World, ends: Sequence[Mapping[str, Fields]], milestones: Sequence[Sequence[str]], is_reached: Callable[[World], bool]
) -> list[Call] | None:
    """None where neither leads there, or an end has another form than the apps have."""
    wanted = dict(chain.from_iterable(one.items() for one in ends))
    with suppress(LookupError, TypeError, AttributeError):
        for calls in chain(_read(milestones), _plans(world.parts.to_plain(), wanted)):
            if calls and is_reached(played(world, calls)):
                return calls
    return None


def played(world: World, calls: Sequence[Call]) -> World:
    for call in calls:
        _, world = world.answer(call)
    return world


def _read(milestones: Sequence[Sequence[str]]) -> Iterator[list[Call]]:
    for stones in milestones:
        try:
            yield [call for stone in stones for call in read_calls(stone)]
        except ValueError:  # a quote within quotes
            continue


def _plans(parts: Mapping[str, Fields], wanted: Mapping[str, Fields]) -> Iterator[list[Call]]:
    """What differs is done, the phone's apps after its device; the ways to pay and what to cancel are tried."""
    makers: Mapping[str, Callable[[Fields, Fields], list[Call]]] = {
        "BaseApi": _switch,
        "FoodPlatform": _order,
        "MessageApi": _send,
        "ReminderApi": _remind,
    }
    phone = [call for name, make in makers.items() if name in wanted for call in make(parts[name], wanted[name])]
    if "Travel" not in wanted:
        yield phone
        return
    for method in (None, "cash", "bank"):
        calls = [*phone, *_travel(parts["Travel"], wanted["Travel"], method)]
        yield calls
        for one in parts["Travel"]["reservations"]:
            cancel = {"user_id": one["user_id"], "reservation_id": one["reservation_id"], "reason": CANCELLED_BY_AIRLINE}
            yield [*calls, Call("cancel_reservation", cancel)]
            yield [*calls, Call("cancel_reservation", cancel | {"reason": "other"})]


def _switch(now: Fields, wanted: Fields) -> list[Call]:
    functions = {"logged_in": "login_device", "wifi": "turn_on_wifi"}
    return [Call(function, {}) for field, function in functions.items() if wanted[field] and not now[field]]


def _order(now: Fields, wanted: Fields) -> list[Call]:
    new = [name for name in wanted["logged_in_users"] if name not in now["logged_in_users"] and name in now["users"]]
    calls = [Call("login_food_platform", {"username": name, "password": now["users"][name]["password"]}) for name in new]
    for order in wanted["orders"]:
        items = [{"product": item["product"], "quantity": item["quantity"]} for item in order["items"]]
        ordered = {"username": order["user_name"], "merchant_name": order["merchant_name"], "items": items}
        calls.append(Call("add_food_delivery_order", ordered))
    return calls


def _send(now: Fields, wanted: Fields) -> list[Call]:
    names = {person["user_id"]: name for name, person in now["user_list"].items()}
    calls = [Call("delete_message", {"message_id": int(number)}) for number in now["inbox"] if number not in wanted["inbox"]]
    for number, one in wanted["inbox"].items():
        if number not in now["inbox"]:
            people = {"sender_name": names.get(one["sender_id"]), "receiver_name": names.get(one["receiver_id"])}
            calls.append(Call("send_message", {**people, "message": one["message"]}))
    return calls


def _remind(now: Fields, wanted: Fields) -> list[Call]:
    before, after = now["reminder_list"], wanted["reminder_list"]
    calls = [Call("delete_reminder", {"reminder_id": int(number)}) for number in before if number not in after]
    new = [one for number, one in after.items() if number not in before]
    return [*calls, *(Call("add_reminder", {name: one[name] for name in ("title", "description", "time")}) for one in new)]


def _travel(now: Fields, wanted: Fields, method: str | None) -> list[Call]:
    """``method``: of paying for changes; None as the reservation was paid."""
    before = {one["reservation_id"]: one for one in now["reservations"]}
    calls = []
    for one in wanted["reservations"]:
        known = {name: one[name] for name in ("user_id", "flight_no", "cabin", "payment_method")}
        if (old := before.get(one["reservation_id"])) is None:
            password = now["users"][one["user_id"]]["password"]
            calls.append(Call("reserve_flight", {**known, "password": password, "baggage_count": one["baggage"]}))
        elif old != one:
            new = {"new_flight_no": one["flight_no"], "new_cabin": one["cabin"], "new_payment_method": method}
            changed = {name: value for name, value in new.items() if value is not None and value not in (old["flight_no"], old["cabin"])}
            ids = {"user_id": one["user_id"], "reservation_id": one["reservation_id"]}
            more = {"add_baggage": one["baggage"] - old["baggage"]} if one["baggage"] > old["baggage"] else {}
            calls.append(Call("modify_flight", {**ids, **changed, **more}))
    return calls
