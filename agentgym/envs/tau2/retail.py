"""``agentgym/Tau2Retail-v0``: the retail domain of tau2-bench."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentgym.envs.judging import Judge
from agentgym.envs.retail import Retail, ledger
from agentgym.envs.tau.data import record
from agentgym.envs.tau.users import chosen
from agentgym.envs.tau2 import Tau2Env
from agentgym.envs.tau2.tables import load
from agentgym.envs.tau2.users import instructed
from agentgym.envs.user.users import User
from agentgym.errors import ToolError
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict


class Tau2Retail(Tau2Env, Retail):
    """Serve a customer of a shop. See `Tau2Env` for user, judge and reward, `agentgym.envs.tau.users` for ``url`` and what follows it.

    ``data``: tau2-bench's folder; ``tables``: tau-bench's, where it does not lie beside it.
    """

    def __init__(
        self,
        data: str | Path,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
        judge: Judge | Mapping[str, Any] | None = None,
        tables: str | Path | None = None,
    ) -> None:
        domain = load(data, tables, self.folder, self.table_names)
        self._start(domain, chosen(user, url, model, key, cache, instructed), judge)

    @tool(effect="read")
    def get_item_details(self, item_id: str) -> str:
        """Show one variant of a product: its options, price and availability. An item id is no product id."""
        for product in self.state.tables["products"].values():
            if item_id in product["variants"]:
                return json.dumps(product["variants"][item_id].to_plain())
        raise ToolError("item not found")

    @tool
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Send a pending order to another address."""
        address = {"address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip}
        tables = _as_pending(self.state.tables, order_id)
        return self._keep(order_id, ledger.modify_pending_order_address(tables, order_id, **address))

    @tool
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Pay for a pending order by another method."""
        tables = _as_pending(self.state.tables, order_id)
        return self._keep(order_id, ledger.modify_pending_order_payment(tables, order_id, payment_method_id))

    @tool
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Exchange items of a pending order for other variants of the same products. Possible once for each order.

        Args:
            item_ids: those to be replaced; an id may come twice.
            new_item_ids: their replacements, in the same order.
            payment_method_id: of the user, to pay or to be refunded the difference.
        """
        if any(old == new for old, new in zip(item_ids, new_item_ids, strict=False)):
            raise ToolError("the new item id should be different from the old item id")
        before = self.state.tables
        tables = ledger.modify_pending_order_items(before, order_id, item_ids, new_item_ids, payment_method_id)
        return self._write("orders", order_id, _all_like_the_last(before, tables, order_id, new_item_ids))

    def _keep(self, order_id: str, tables: FrozenDict) -> str:
        """Write the order back with the status that it had."""
        status = self.state.tables["orders"][order_id]["status"]
        return self._write("orders", order_id, tables.set(("orders", order_id, "status"), status))


def _as_pending(tables: FrozenDict, order_id: str) -> FrozenDict:
    """Address and payment may be changed in any order whose status contains "pending"."""
    pending = "pending" in record(tables, "orders", order_id)["status"]
    return tables.set(("orders", order_id, "status"), "pending") if pending else tables


def _all_like_the_last(before: FrozenDict, after: FrozenDict, order_id: str, new_item_ids: Sequence[str]) -> FrozenDict:
    """As in the benchmark, all exchanged items get the price and the options of the last new one."""
    order: Any = after["orders"][order_id]
    pairs = enumerate(zip(before["orders"][order_id]["items"], order["items"], strict=True))
    changed = [place for place, (old, new) in pairs if old["item_id"] != new["item_id"]]
    last: Any = next((item for item in order["items"] if new_item_ids and item["item_id"] == new_item_ids[-1]), None)
    for place in changed:
        order = order.set(("items", place, "price"), last["price"]).set(("items", place, "options"), last["options"])
    return after.set(("orders", order_id), order)
