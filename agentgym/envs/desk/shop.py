"""Small shops of our own with a customer's wish in each, drawn by seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from agentgym.envs.search.atlas import town_names
from agentgym.seeds import Lineage
from agentgym.task import Task

SIZES = {"train": 4000, "validation": 200, "test": 400}
SPLIT_ENDS = {"train": 70, "validation": 80, "test": 100}  # per cent of the towns, cumulative
SOLD_OUT = 1 / 3  # of the colours that customers wish for

RETURN, EXCHANGE, SEND, MOVE = "return", "exchange", "send", "move"
WORDING = {
    RETURN: "{customer} does not want the {product}.",
    EXCHANGE: "{customer} wants the {product} in {wish}, or none.",
    SEND: "{customer} wants the {product} sent to {wish}.",
    MOVE: "{customer} moves to {wish}.",
}
KINDS = tuple(WORDING)

# Capitalised, so that a tiny policy reads each as one word. Orders and items bear the names of towns, which are spelled and must be copied.
CUSTOMERS = (
    "Ada", "Alice", "Amir", "Anna", "Aron", "Ben", "Boris", "Carla", "Clara", "David", "Dora", "Edith", "Elena", "Emil", "Eva", "Felix",
    "Fiona", "Frida", "Georg", "Grace", "Hana", "Hugo", "Ida", "Igor", "Irene", "Ivan", "Jana", "Jonas", "Julia", "Karim", "Karl",
    "Kira", "Laila", "Lars", "Lena", "Leo", "Lucia", "Maja", "Marco", "Maria", "Mina", "Nadia", "Nils", "Nora", "Olga", "Omar", "Oscar",
    "Paula", "Pedro", "Petra", "Rosa", "Ruben", "Ruth", "Sara", "Simon", "Sofia", "Tara", "Tomas", "Vera", "Yusuf", "Zoe",
)
PRODUCTS = (
    "Bench", "Blanket", "Chair", "Clock", "Cushion", "Kettle", "Lamp", "Mirror", "Radio", "Shelf", "Sofa", "Stool", "Table", "Teapot",
    "Vase",
)
COLOURS = ("Black", "Blue", "Brown", "Green", "Red", "White", "Yellow")
Data = dict[str, Any]


@cache
def shop_tasks(split: str) -> tuple[Task, ...]:
    """The tasks of a split, in a fixed order, as many of each kind; none for a split that does not exist."""
    return tuple(_task(split, number) for number in range(SIZES.get(split, 0)))


def split_of(town: str) -> str:
    """The one split whose shops may use this name."""
    percent = Lineage.of(0, "desk", "split", town).seed() % 100
    return next(split for split, end in SPLIT_ENDS.items() if percent < end)


def _task(split: str, number: int) -> Task:
    rng = Lineage.of(0, "desk", split, number).rng()
    kind = KINDS[number % len(KINDS)]
    towns = rng.sample(_towns(split), 22)
    tables = _furnish(rng, towns)
    customer = rng.choice(list(tables["customers"]))
    name, other = rng.sample(tables["customers"][customer]["orders"], 2)
    order = tables["orders"][name]
    wish = ""
    if kind in (SEND, MOVE):
        wish, order["status"] = towns.pop(), "pending"
    if kind == MOVE:
        tables["orders"][other]["status"] = "delivered"
    if kind == EXCHANGE:
        wish = rng.choice([row["colour"] for row in _items(tables, order) if row["colour"] != _colour(tables, order)])
        wished = next(row for row in _items(tables, order) if row["colour"] == wish)
        wished["stock"] = 0 if rng.random() < SOLD_OUT else rng.randint(1, 3)
    product = "" if kind == MOVE else tables["items"][order["item"]]["product"]
    prompt = WORDING[kind].format(customer=customer, product=product, wish=wish)
    data = {"kind": kind, "customer": customer, "product": product, "wish": wish, "tables": tables}
    return Task(f"{split}-{number}", prompt, _writes(kind, customer, name, wish, tables), split, data)


def _furnish(rng: Random, towns: list[str]) -> Data:
    """Three customers with two orders each, of three products in three colours. Takes the names that it needs from ``towns``."""
    sold = rng.sample(PRODUCTS, 3)
    items = {
        towns.pop(): {"product": product, "colour": colour, "stock": rng.randint(0, 3)}
        for product in sold
        for colour in rng.sample(COLOURS, 3)
    }
    customers: Data = {}
    orders: Data = {}
    for customer in rng.sample(CUSTOMERS, 3):
        home, names = towns.pop(), [towns.pop(), towns.pop()]
        customers[customer] = {"town": home, "orders": names}
        for name, product in zip(names, rng.sample(sold, 2), strict=True):
            item = rng.choice([item for item, row in items.items() if row["product"] == product])
            orders[name] = {"item": item, "status": rng.choice(["pending", "delivered"]), "town": home}
    return {"customers": customers, "orders": orders, "items": items}


def _writes(kind: str, customer: str, name: str, wish: str, tables: Data) -> list[tuple[str, dict[str, str]]]:
    """The writes that fulfil a wish about the order ``name``: tools and their arguments."""
    order = tables["orders"][name]
    if kind == MOVE:
        return [("move", {"customer": customer, "town": wish}), ("send", {"order": name, "town": wish})]
    if kind == SEND:
        return [("send", {"order": name, "town": wish})]
    found = [item for item, row in tables["items"].items() if row in _items(tables, order) and row["colour"] == wish and row["stock"]]
    if found:
        return [("exchange", {"order": name, "item": found[0]})]
    return [("cancel" if order["status"] == "pending" else "refund", {"order": name})]


def _items(tables: Data, order: Data) -> list[Data]:
    """All items of the product that was ordered."""
    product = tables["items"][order["item"]]["product"]
    return [row for row in tables["items"].values() if row["product"] == product]


def _colour(tables: Data, order: Data) -> str:
    return str(tables["items"][order["item"]]["colour"])


@cache
def _towns(split: str) -> Sequence[str]:
    """Names of one word, of 4 to 7 letters, that only this split uses."""
    words = {*CUSTOMERS, *PRODUCTS, *COLOURS}
    fit = [name for name in town_names() if re.fullmatch("[A-Z][a-z]{3,6}", name) and name not in words]
    return [name for name in fit if split_of(name) == split]
