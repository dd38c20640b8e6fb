"""``agentgym/Tau2Retail-v0``: the retail domain of tau2-bench."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from agentgym.envs.retail import Retail, ledger
from agentgym.envs.tau.data import record
from agentgym.envs.tau2.tables import OnTables
from agentgym.errors import ToolError
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict


def _of_any_pending(change: Callable[..., FrozenDict], tables: FrozenDict, order_id: str, *arguments: Any, **address: str) -> FrozenDict:
    """Address and payment may be changed in any order whose status contains "pending", which it keeps."""
    status = record(tables, "orders", order_id)["status"]
    place = ("orders", order_id, "status")
    changed = change(tables.set(place, "pending") if "pending" in status else tables, order_id, *arguments, **address)
    return changed.set(place, status)


def _with_items(
    tables: FrozenDict, order_id: str, item_ids: Sequence[str], new_item_ids: Sequence[str], payment_method_id: str
) -> FrozenDict:
    if any(old == new for old, new in zip(item_ids, new_item_ids, strict=False)):
        raise ToolError("the new item id should be different from the old item id")
    changed = ledger.modify_pending_order_items(tables, order_id, item_ids, new_item_ids, payment_method_id)
    return _all_like_the_last(tables, changed, order_id, new_item_ids)


def _all_like_the_last(before: FrozenDict, after: FrozenDict, order_id: str, new_item_ids: Sequence[str]) -> FrozenDict:
    """As in the benchmark, all exchanged items get the price and the options of the last new one."""
    order: Any = after["orders"][order_id]
    pairs = enumerate(zip(before["orders"][order_id]["items"], order["items"], strict=True))
    changed = [place for place, (old, new) in pairs if old["item_id"] != new["item_id"]]
    last: Any = next((item for item in order["items"] if new_item_ids and item["item_id"] == new_item_ids[-1]), None)
    for place in changed:
        order = order.set(("items", place, "price"), last["price"]).set(("items", place, "options"), last["options"])
    return after.set(("orders", order_id), order)


class Tau2Retail(OnTables, Retail):
    """Serve a customer of a shop. See `OnTables` for the arguments, `Tau2Env` for user, judge and reward."""

    writes = {  # noqa: RUF012  (read alone)
        **ledger.WRITES,
        "modify_pending_order_address": partial(_of_any_pending, ledger.modify_pending_order_address),
        "modify_pending_order_payment": partial(_of_any_pending, ledger.modify_pending_order_payment),
        "modify_pending_order_items": _with_items,
    }

    @tool(effect="read")
    def get_item_details(self, item_id: str) -> str:
        """Show one variant of a product: its options, price and availability. An item id is no product id."""
        for product in self.state.tables["products"].values():
            if item_id in product["variants"]:
                return json.dumps(product["variants"][item_id].to_plain())
        raise ToolError("item not found")
