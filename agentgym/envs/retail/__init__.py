"""``agentgym/Retail-v0``: the retail domain of tau-bench, on tables that are shared and never copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentgym.envs.retail import ledger
from agentgym.envs.tau import TauEnv
from agentgym.errors import ToolError
from agentgym.tool import tool


class Retail(TauEnv):
    """Serve a customer of a shop, by the shop's policy. See `TauEnv` for the arguments, the user and the reward."""

    folder = "retail"
    table_names = ("users", "orders", "products")
    writes = ledger.WRITES

    @tool(effect="read")
    def find_user_id_by_email(self, email: str) -> str:
        """Find a user by e-mail address."""
        return self._find_user(lambda user: user["email"].lower() == email.lower())

    @tool(effect="read")
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        """Find a user by first name, last name and zip code."""
        name = (first_name.lower(), last_name.lower(), zip)
        return self._find_user(
            lambda user: (user["name"]["first_name"].lower(), user["name"]["last_name"].lower(), user["address"]["zip"]) == name
        )

    @tool(effect="read")
    def get_user_details(self, user_id: str) -> str:
        """Show a user's record: address, payment methods, orders."""
        return self._show("users", user_id)

    @tool(effect="read")
    def get_order_details(self, order_id: str) -> str:
        """Show an order's record: its items, status, address and payments.

        Args:
            order_id: begins with #W.
        """
        return self._show("orders", order_id)

    @tool(effect="read")
    def get_product_details(self, product_id: str) -> str:
        """Show a product's record, with all its variants. A product id is no item id."""
        return self._show("products", product_id)

    @tool(effect="read")
    def list_all_product_types(self) -> str:
        """Show the names of all products, each with its product id."""
        return json.dumps(dict(sorted((product["name"], id) for id, product in self.state.tables["products"].items())))

    @tool
    def cancel_pending_order(self, order_id: str, reason: str) -> str:
        """Cancel a pending order, and refund what was paid.

        Args:
            reason: "no longer needed" or "ordered by mistake".
        """
        return self._write("orders", order_id, ledger.cancel_pending_order(self.state.tables, order_id, reason))

    @tool
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Send a pending order to another address."""
        address = {"address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip}
        return self._write("orders", order_id, self.writes["modify_pending_order_address"](self.state.tables, order_id, **address))

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
        tables = self.writes["modify_pending_order_items"](self.state.tables, order_id, item_ids, new_item_ids, payment_method_id)
        return self._write("orders", order_id, tables)

    @tool
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Pay for a pending order by another method."""
        tables = self.writes["modify_pending_order_payment"](self.state.tables, order_id, payment_method_id)
        return self._write("orders", order_id, tables)

    @tool
    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Change a user's default address."""
        address = {"address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip}
        return self._write("users", user_id, ledger.modify_user_address(self.state.tables, user_id, **address))

    @tool
    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
        """Ask for the return of items of a delivered order.

        Args:
            item_ids: those to be returned; an id may come twice.
            payment_method_id: for the refund: that of the order, or a gift card.
        """
        tables = ledger.return_delivered_order_items(self.state.tables, order_id, item_ids, payment_method_id)
        return self._write("orders", order_id, tables)

    @tool
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Ask for the exchange of items of a delivered order for other variants of the same products. Possible once for each order.

        Args:
            item_ids: those to be exchanged; an id may come twice.
            new_item_ids: their replacements, in the same order.
            payment_method_id: of the user, to pay or to be refunded the difference.
        """
        tables = ledger.exchange_delivered_order_items(self.state.tables, order_id, item_ids, new_item_ids, payment_method_id)
        return self._write("orders", order_id, tables)

    def _find_user(self, fits: Callable[[Any], bool]) -> str:
        for id, user in self.state.tables["users"].items():
            if fits(user):
                return str(id)
        raise ToolError("user not found")
