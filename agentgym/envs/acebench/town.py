"""A small world of our own for the tasks of agents, and tasks in it in the form of the benchmark, to play without its data."""

from __future__ import annotations

from typing import Any

from agentgym.envs.acebench.simulators import FILES, fields
from agentgym.tools.tables import FrozenDict, freeze

Json = dict[str, Any]
_INBOX: Json = {
    "1": {"sender_id": "P2", "receiver_id": "P1", "message": "Please order a pot of mint tea for me.", "time": "2024-05-02"},
    "2": {"sender_id": "P3", "receiver_id": "P2", "message": "The choir meets on Friday at seven.", "time": "2024-03-30"},
    "3": {"sender_id": "P1", "receiver_id": "P3", "message": "I have found your umbrella.", "time": "2024-05-20"},
}
_REMINDERS: Json = {
    "1": {"reminder_id": 501, "title": "Garden", "description": "Water the beans.", "time": "2024-06-01 08:00", "notified": False},
}
_ACCOUNTS: Json = {
    "Ada": {"user_id": "A1", "password": "heron", "balance": 40.0},
    "Ben": {"user_id": "A2", "password": "otter", "balance": 5.0},
}
_TRAVELLERS: Json = {
    "u1": {"user_name": "Ada", "password": "heron", "cash_balance": 500.0, "bank_balance": 90.0, "membership_level": "regular"},
    "u2": {"user_name": "Ben", "password": "otter", "cash_balance": 20.0, "bank_balance": 700.0, "membership_level": "gold"},
}
_BOOKED: Json = {
    "reservation_id": "res_1",
    "user_id": "u2",
    "flight_no": "LT10",
    "payment_method": "bank",
    "cabin": "Economy Class",
    "baggage": 3,
    "origin": "Lund",
    "destination": "Turin",
}


def _flight(number: str, origin: str, destination: str, day: int, hours: tuple[int, int], prices: tuple[int, int]) -> Json:
    leaves, lands = (f"2024-07-{day} {hour:02}:00:00" for hour in hours)
    known = {"flight_no": number, "origin": origin, "destination": destination, "depart_time": leaves, "arrival_time": lands}
    return {**known, "status": "available", "seats_available": 4, "economy_price": prices[0], "business_price": prices[1]}


_WORLD: Json = {
    "MessageApi": {
        "max_capacity": 3,
        "user_list": {"Ada": {"user_id": "P1"}, "Ben": {"user_id": "P2"}, "Cleo": {"user_id": "P3"}},
        "inbox": {int(number): one for number, one in _INBOX.items()},
        "message_id_counter": 3,
    },
    "ReminderApi": {
        "max_capacity": 3,
        "reminder_list": {int(number): one for number, one in _REMINDERS.items()},
        "reminder_id_counter": 1,
    },
    "FoodPlatform": {
        "users": _ACCOUNTS,
        "merchant_list": {
            "Rye and Salt": {"menu": [{"product": "Rye Loaf", "price": 7.5}, {"product": "Salt Loaf", "price": 9.0}]},
            "The Kettle": {"menu": [{"product": "Mint Tea", "price": 3.0}, {"product": "Lime Tea", "price": 4.0}]},
        },
    },
    "Travel": {
        "users": _TRAVELLERS,
        "flights": [
            _flight("LT10", "Lund", "Turin", 20, (8, 10), (200, 350)),
            _flight("LT30", "Lund", "Turin", 21, (18, 20), (180, 300)),
            _flight("TL11", "Turin", "Lund", 25, (9, 11), (150, 400)),
            _flight("TO12", "Turin", "Oslo", 20, (12, 15), (220, 500)),
        ],
        "reservations": [_BOOKED],
    },
}
TABLES: FrozenDict = freeze({owner: fields(model, _WORLD[owner]) for owner, (_, model) in FILES.items()})

_TEXTS: Json = {"type": "string"}
_ITEM: Json = {"type": "dict", "properties": {"product": _TEXTS, "quantity": {"type": "integer"}}, "required": ["product", "quantity"]}


def _function(name: str, description: str, required: str = "", **other: Json) -> Json:
    """``required``: names of parameters that are texts, if ``other`` says nothing else of them."""
    properties, names = {**dict.fromkeys(required.split(), _TEXTS), **other}, required.split()
    return {"name": name, "description": description, "parameters": {"type": "dict", "properties": properties, "required": names}}


_PHONE: list[Json] = [
    _function("turn_on_wifi", "Switches the Wi-Fi on."),
    _function("login_device", "Unlocks the phone, for messages and reminders."),
    _function("send_message", "Sends a message.", "sender_name receiver_name message"),
    _function("view_messages_between_users", "Shows what one person wrote to another.", "sender_name receiver_name"),
    _function("delete_message", "Deletes a message.", "message_id", message_id={"type": "integer"}),
    _function("get_latest_message_id", "Finds the newest message."),
    _function("get_earliest_message_id", "Finds the oldest message."),
    _function("add_reminder", "Notes a reminder. A time is written as 2024-06-01 08:00.", "title description time"),
    _function("login_food_platform", "Opens an account of the platform for food.", "username password"),
    _function("get_products", "Shows what a merchant sells.", "merchant_name"),
    _function("add_food_delivery_order", "Orders food.", "username merchant_name items", items={"type": "list", "items": _ITEM}),
]
_FLIGHTS: list[Json] = [
    _function("get_user_details", "Shows the account of a traveller.", "user_id password"),
    _function("get_flight_details", "Finds flights.", origin=_TEXTS, destination=_TEXTS),
    _function("get_reservation_details", "Shows reservations.", reservation_id=_TEXTS, user_id=_TEXTS),
    _function(
        "reserve_flight",
        "Books a flight in Economy Class or Business Class, paid by cash or bank.",
        "user_id password flight_no cabin payment_method baggage_count",
        baggage_count={"type": "integer"},
    ),
    _function(
        "modify_flight",
        "Changes a reservation: the flight, the cabin or the bags.",
        "user_id reservation_id",
        new_flight_no=_TEXTS,
        new_cabin=_TEXTS,
        add_baggage={"type": "integer"},
        new_payment_method=_TEXTS,
    ),
    _function("cancel_reservation", "Cancels a reservation.", "user_id reservation_id reason"),
]


def _order(user: str, merchant: str, product: str, quantity: int, price: float) -> list[Json]:
    item = {"product": product, "quantity": quantity, "price_per_unit": price}
    return [{"user_name": user, "merchant_name": merchant, "items": [item], "total_price": price * quantity}]


def _phone_row(id: str, question: str, device: tuple[bool, bool], stones: list[str], ends: Json) -> Json:
    wifi, logged_in = device
    return {
        "id": id,
        "question": question,
        "function": _PHONE,
        "initial_config": {"BaseApi": {"wifi": wifi, "logged_in": logged_in}},
        "involved_classes": list(ends),
        "ground_truth": [{name: fields} for name, fields in ends.items()],
        "mile_stone": stones,
    }


def _flight_row(id: str, question: str, stones: list[str], users: Json, reservations: list[Json]) -> Json:
    row = _phone_row(id, question, (False, True), stones, {"Travel": {"users": {**_TRAVELLERS, **users}, "reservations": reservations}})
    return {**row, "function": _FLIGHTS, "initial_config": {}}


_ON: Json = {"wifi": True, "logged_in": True}
_NEW_LOAF: Json = {"reminder_id": 2, "title": "Spent", "description": "7.5 yuan", "time": "2024-06-11 16:00", "notified": False}
_THANKS: Json = {"sender_id": "P2", "receiver_id": "P3", "message": "Thank you, I shall sing."}
_THANKING = "[send_message(sender_name='Ben', receiver_name='Cleo', message='Thank you, I shall sing.')]"

AGENT_EXAMPLES: dict[str, list[Json]] = {
    "agent_multi_step": [
        _phone_row(
            "loaf",
            "I am Ada (password: heron). Order the cheaper of the two loaves of Rye and Salt, and note what it costs as a reminder: title "
            '"Spent", content "() yuan", time "2024-06-11 16:00".',
            (False, True),
            [
                "[turn_on_wifi()]",
                "[login_food_platform(username='Ada', password='heron')]",
                "[add_food_delivery_order(username='Ada', merchant_name='Rye and Salt', items=[{'product': 'Rye Loaf', 'quantity': 1}])]",
                "[add_reminder(title='Spent', description='7.5 yuan', time='2024-06-11 16:00')]",
            ],
            {
                "BaseApi": _ON,
                "ReminderApi": {"reminder_list": {**_REMINDERS, "2": _NEW_LOAF}},
                "FoodPlatform": {
                    "users": {**_ACCOUNTS, "Ada": {**_ACCOUNTS["Ada"], "balance": 32.5}},
                    "logged_in_users": ["Ada"],
                    "orders": _order("Ada", "Rye and Salt", "Rye Loaf", 1, 7.5),
                },
            },
        ),
    ],
    "agent_multi_turn": [
        _phone_row(
            "choir",
            "You are Ben. You want to see what Cleo wrote to you, and then to answer: Thank you, I shall sing. If a message must be "
            "deleted, delete the oldest.",
            (True, False),
            [
                "[login_device()]",
                "[view_messages_between_users(sender_name='Cleo', receiver_name='Ben')]",
                "[get_earliest_message_id()]",
                "[delete_message(message_id=2)]",
                _THANKING,
            ],
            {"BaseApi": _ON, "MessageApi": {"inbox": {"1": _INBOX["1"], "3": _INBOX["3"], "4": _THANKS}}},
        ),
        _flight_row(
            "later",
            "You are Ben (user ID: u2, password: otter). You want to take the later flight from Lund to Turin, with all else as it is.",
            [
                "[get_reservation_details(user_id='u2')]",
                "[get_flight_details(origin='Lund', destination='Turin')]",
                "[modify_flight(user_id='u2', reservation_id='res_1', new_flight_no='LT30')]",
            ],
            {},
            [{**_BOOKED, "flight_no": "LT30"}],
        ),
    ],
}
