"""What a desk can write: each function takes the tables of a shop and gives those after it, or raises `ToolError`."""

from __future__ import annotations

from typing import Any

from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict


def row(tables: FrozenDict, table: str, name: str) -> Any:
    if name not in tables[table]:
        raise ToolError(f"there is no {table.removesuffix('s')} {name!r}")
    return tables[table][name]


def cancel(tables: FrozenDict, order: str) -> FrozenDict:
    _require(tables, order, "pending")
    return tables.set(("orders", order, "status"), "cancelled")


def refund(tables: FrozenDict, order: str) -> FrozenDict:
    _require(tables, order, "delivered")
    return tables.set(("orders", order, "status"), "refunded")


def exchange(tables: FrozenDict, order: str, item: str) -> FrozenDict:
    """The new item leaves the stock, the old one comes back to it."""
    ordered = _require(tables, order, "pending", "delivered")
    old, new = row(tables, "items", ordered["item"]), row(tables, "items", item)
    if old["product"] != new["product"] or item == ordered["item"]:
        raise ToolError(f"{item} is no other {old['product']}")
    if new["stock"] == 0:
        raise ToolError(f"{item} is sold out")
    tables = tables.set(("items", item, "stock"), new["stock"] - 1)
    tables = tables.set(("items", ordered["item"], "stock"), old["stock"] + 1)
    return tables.set(("orders", order, "item"), item)


def send(tables: FrozenDict, order: str, town: str) -> FrozenDict:
    """Also what is delivered already: to send it on blindly must cost something."""
    _require(tables, order, "pending", "delivered")
    return tables.set(("orders", order, "town"), town)


def move(tables: FrozenDict, customer: str, town: str) -> FrozenDict:
    row(tables, "customers", customer)
    return tables.set(("customers", customer, "town"), town)


def _require(tables: FrozenDict, order: str, *statuses: str) -> Any:
    found = row(tables, "orders", order)
    if found["status"] not in statuses:
        raise ToolError(f"{order} is {found['status']}, not {' or '.join(statuses)}")
    return found
