"""With which messages, reminders, menus, accounts and flights a task of an agent begins: literals in the benchmark's own sources.

The sources are parsed, and never imported or run: only plain values that the classes' ``__init__`` assigns to fields are read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agentgym.envs.syntax import module_of
from agentgym.errors import AgentGymError
from agentgym.tools.tables import FrozenDict, freeze

SOURCE = "github ACEBench/ACEBench, commit e6db74b735ea, model_inference/multi_step/scenariosen"
Price = int | float


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)  # a whole price stays whole


class _Person(_Model):
    user_id: str


class _Message(_Model):
    sender_id: str
    receiver_id: str
    message: str
    time: str


class _Reminder(_Model):
    reminder_id: int
    title: str
    description: str
    time: str
    notified: bool


class _Account(_Model):
    password: str
    balance: Price


class _Product(_Model):
    product: str
    price: Price


class _Merchant(_Model):
    menu: list[_Product]


class _Traveller(_Model):
    user_name: str
    password: str
    cash_balance: Price
    bank_balance: Price
    membership_level: str


class _Flight(_Model):
    flight_no: str
    origin: str
    destination: str
    depart_time: str
    arrival_time: str
    status: str
    seats_available: int
    economy_price: Price
    business_price: Price


class _Reservation(_Model):
    reservation_id: str
    user_id: str
    flight_no: str
    payment_method: str
    cabin: str
    baggage: int


class MessageTables(_Model):
    max_capacity: int
    user_list: dict[str, _Person]
    inbox: dict[int, _Message]
    message_id_counter: int


class ReminderTables(_Model):
    max_capacity: int
    reminder_list: dict[int, _Reminder]
    reminder_id_counter: int


class FoodTables(_Model):
    users: dict[str, _Account]
    merchant_list: dict[str, _Merchant]


class TravelTables(_Model):
    users: dict[str, _Traveller]
    flights: list[_Flight]
    reservations: list[_Reservation]


FILES: Mapping[str, tuple[str, type[_Model]]] = {
    "MessageApi": ("phone_platform/message.py", MessageTables),
    "ReminderApi": ("phone_platform/reminder.py", ReminderTables),
    "FoodPlatform": ("phone_platform/food_services.py", FoodTables),
    "Travel": ("travel.py", TravelTables),
}


@cache
def read_simulators(folder: Path) -> FrozenDict:
    """By the name of a class, its fields at the beginning. Raises `AgentGymError` that names the file, the field and the reason."""
    return freeze({owner: _read(folder / file, owner, model) for owner, (file, model) in FILES.items()})  # type: ignore[no-any-return]


def _read(path: Path, owner: str, model: type[_Model]) -> dict[str, Any]:
    try:
        module = module_of(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AgentGymError(
            f"{path} cannot be read ({why}): the tasks of agents begin as the benchmark's simulators do. Get {SOURCE}, and give that "
            "folder as simulators=, or as a folder named simulators within the data"
        ) from None
    found = dict(_fields(module, owner, model.model_fields))
    try:
        return fields(model, found)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise AgentGymError(f"{path}, class {owner}: {reasons}. Get it anew from {SOURCE}") from None


def fields(model: type[_Model], found: Mapping[str, Any]) -> dict[str, Any]:
    """With texts as keys, as tables have them. Raises `ValidationError`."""
    read: dict[str, Any] = model.model_validate(found).model_dump()
    return {name: _keyed_by_text(value) for name, value in read.items()}


def _keyed_by_text(value: Any) -> Any:
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else value


def _fields(module: ast.Module, owner: str, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields that are assigned a literal."""
    bodies = [node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == owner]
    made = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    for node in (node for function in made for node in function.body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and target.attr in wanted:
                    with suppress(ValueError, TypeError, RecursionError, MemoryError):  # no literal: as if it were not there
                        yield target.attr, ast.literal_eval(node.value)
