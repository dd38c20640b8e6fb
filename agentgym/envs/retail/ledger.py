"""What tau-bench's retail tools write: each function takes the tables and gives those after it, or raises `ToolError`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentgym.envs.tau.data import record
from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict

REASONS = ("no longer needed", "ordered by mistake")


def cancel_pending_order(tables: FrozenDict, order_id: str, reason: str) -> FrozenDict:
    order = _order(tables, order_id, "pending", "non-pending order cannot be cancelled")
    if reason not in REASONS:
        raise ToolError("invalid reason")
    refunds = [_transaction("refund", paid["amount"], paid["payment_method_id"]) for paid in order["payment_history"]]
    for refund in refunds:
        tables = _credited(tables, order["user_id"], refund["payment_method_id"], refund["amount"])
    history = [*order["payment_history"], *refunds]
    return _with(tables, order_id, status="cancelled", cancel_reason=reason, payment_history=history)


def modify_pending_order_address(tables: FrozenDict, order_id: str, **address: str) -> FrozenDict:
    _order(tables, order_id, "pending", "non-pending order cannot be modified")
    return _with(tables, order_id, address=address)


def modify_user_address(tables: FrozenDict, user_id: str, **address: str) -> FrozenDict:
    record(tables, "users", user_id)
    return tables.set(("users", user_id, "address"), address)


def modify_pending_order_items(
    tables: FrozenDict, order_id: str, item_ids: Sequence[str], new_item_ids: Sequence[str], payment_method_id: str
) -> FrozenDict:
    order = _order(tables, order_id, "pending", "non-pending order cannot be modified")
    variants = _exchanged(tables, order, item_ids, new_item_ids)
    difference = _difference(order, item_ids, variants)
    method = _method(tables, order, payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the new item")
    items = order["items"].to_plain()
    for old, new in zip(item_ids, variants, strict=True):
        item = next(item for item in items if item["item_id"] == old)
        item.update(item_id=new["item_id"], price=new["price"], options=new["options"])
    paid = _transaction("payment" if difference > 0 else "refund", abs(difference), payment_method_id)
    if method["source"] == "gift_card":
        tables = _credited(tables, order["user_id"], payment_method_id, -difference)
    history = [*order["payment_history"], paid]
    return _with(tables, order_id, payment_history=history, items=items, status="pending (item modified)")


def modify_pending_order_payment(tables: FrozenDict, order_id: str, payment_method_id: str) -> FrozenDict:
    order = _order(tables, order_id, "pending", "non-pending order cannot be modified")
    method = _method(tables, order, payment_method_id)
    history = order["payment_history"]
    if len(history) != 1 or history[0]["transaction_type"] != "payment":
        raise ToolError("there should be exactly one payment for a pending order")
    old, amount = history[0]["payment_method_id"], history[0]["amount"]
    if old == payment_method_id:
        raise ToolError("the new payment method should be different from the current one")
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise ToolError("insufficient gift card balance to pay for the order")
    tables = _credited(tables, order["user_id"], payment_method_id, -amount)
    tables = _credited(tables, order["user_id"], old, amount)
    payments = [_transaction("payment", amount, payment_method_id), _transaction("refund", amount, old)]
    return _with(tables, order_id, payment_history=[*history, *payments])


def return_delivered_order_items(tables: FrozenDict, order_id: str, item_ids: Sequence[str], payment_method_id: str) -> FrozenDict:
    order = _order(tables, order_id, "delivered", "non-delivered order cannot be returned")
    _method(tables, order, payment_method_id)
    if "gift_card" not in payment_method_id and payment_method_id != order["payment_history"][0]["payment_method_id"]:
        raise ToolError("payment method should be either the original payment method or a gift card")
    if any(item_ids.count(item) > _ordered(order).count(item) for item in item_ids):
        raise ToolError("some item not found")
    return _with(
        tables, order_id, status="return requested", return_items=sorted(item_ids), return_payment_method_id=payment_method_id
    )


def exchange_delivered_order_items(
    tables: FrozenDict, order_id: str, item_ids: Sequence[str], new_item_ids: Sequence[str], payment_method_id: str
) -> FrozenDict:
    order = _order(tables, order_id, "delivered", "non-delivered order cannot be exchanged")
    variants = _exchanged(tables, order, item_ids, new_item_ids)
    difference = round(_difference(order, item_ids, variants), 2)
    method = _method(tables, order, payment_method_id)
    if method["source"] == "gift_card" and method["balance"] < difference:
        raise ToolError("insufficient gift card balance to pay for the price difference")
    return _with(
        tables,
        order_id,
        status="exchange requested",
        exchange_items=sorted(item_ids),
        exchange_new_items=sorted(new_item_ids),
        exchange_payment_method_id=payment_method_id,
        exchange_price_difference=difference,
    )


WRITES: dict[str, Callable[..., FrozenDict]] = {
    write.__name__: write
    for write in (
        cancel_pending_order,
        modify_pending_order_address,
        modify_user_address,
        modify_pending_order_items,
        modify_pending_order_payment,
        return_delivered_order_items,
        exchange_delivered_order_items,
    )
}


def _order(tables: FrozenDict, order_id: str, status: str, refusal: str) -> Any:
    order = record(tables, "orders", order_id)
    if order["status"] != status:
        raise ToolError(refusal)
    return order


def _method(tables: FrozenDict, order: Any, payment_method_id: str) -> Any:
    methods = tables["users"][order["user_id"]]["payment_methods"]
    if payment_method_id not in methods:
        raise ToolError("payment method not found")
    return methods[payment_method_id]


def _ordered(order: Any) -> list[str]:
    return [item["item_id"] for item in order["items"]]


def _item(order: Any, item_id: str) -> Any:
    return next(item for item in order["items"] if item["item_id"] == item_id)


def _exchanged(tables: FrozenDict, order: Any, item_ids: Sequence[str], new_item_ids: Sequence[str]) -> list[Any]:
    """The variants that the items are exchanged for, in the order of the items."""
    for item in item_ids:
        if item_ids.count(item) > _ordered(order).count(item):
            raise ToolError(f"{item} not found")
    if len(item_ids) != len(new_item_ids):
        raise ToolError("the number of items to be exchanged should match")
    return [_variant(tables, _item(order, old)["product_id"], new) for old, new in zip(item_ids, new_item_ids, strict=True)]


def _variant(tables: FrozenDict, product_id: str, item_id: str) -> Any:
    variants = tables["products"][product_id]["variants"]
    if item_id not in variants or not variants[item_id]["available"]:
        raise ToolError(f"new item {item_id} not found or available")
    return variants[item_id]


def _difference(order: Any, item_ids: Sequence[str], variants: Sequence[Any]) -> float:
    difference: float = 0
    for old, new in zip(item_ids, variants, strict=True):
        difference += new["price"] - _item(order, old)["price"]
    return difference


def _transaction(type: str, amount: float, payment_method_id: str) -> dict[str, Any]:
    return {"transaction_type": type, "amount": amount, "payment_method_id": payment_method_id}


def _credited(tables: FrozenDict, user_id: str, payment_method_id: str, amount: float) -> FrozenDict:
    """The balance of a gift card after ``amount`` is added to it. Other methods have no balance."""
    if "gift_card" not in payment_method_id:
        return tables
    place = ("users", user_id, "payment_methods", payment_method_id, "balance")
    balance = tables["users"][user_id]["payment_methods"][payment_method_id]["balance"]
    return tables.set(place, round(balance + amount, 2))


def _with(tables: FrozenDict, order_id: str, **fields: Any) -> FrozenDict:
    order = tables["orders"][order_id]
    for name, value in fields.items():
        order = order.set(name, value)
    return tables.set(("orders", order_id), order)
