"""``agentgym/Retail-v0``: the retail domain of tau-bench, on tables that are shared and never copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentgym.action import Action, Call, format_action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.retail import ledger
from agentgym.envs.retail.data import load_shop
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.calculator import calculator
from agentgym.tools.tables import FrozenDict

TRANSFER = "transfer_to_human_agents"


@dataclass(frozen=True, slots=True)
class RetailState:
    """``tables``: users, orders and products. ``said``: to the user. ``shown``: what the last turn said."""

    tables: FrozenDict
    said: tuple[str, ...] = ()
    shown: str = ""


class Retail(AgentEnv):
    """Serve a customer of a shop, by the shop's policy. ``data``: tau-bench's folder (arXiv 2406.12045).

    Reward, as the benchmark has it [S2]: 1 if the agent ends the episode with the tables as the task's own actions leave
    them, and all that was to be said was said; else 0. There is no user: the task's instruction is the prompt, and what is
    said with ``respond`` is noted. Raises `AgentGymError` where a file is missing or has a bad line.
    """

    snapshots: Kind = "value"
    max_turns = max_calls = 30
    state: RetailState

    def __init__(self, data: str | Path) -> None:
        super().__init__()
        self._shop = load_shop(Path(data))
        self.system = self._shop.policy
        self.splits = tuple(self._shop.tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._shop.tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = RetailState(self._shop.tables)

    def act(self, action: Action) -> Reply:
        reply = super().act(action)
        self.state = replace(self.state, shown=reply.text)
        return reply

    @tool(effect="read")
    def calculate(self, expression: str) -> str:
        """Calculate an arithmetic expression, rounded to 2 places.

        Args:
            expression: numbers with + - * / and brackets.
        """
        if not set(expression) <= set("0123456789+-*/(). "):
            raise ToolError("invalid characters in expression")
        return str(round(float(calculator(expression)), 2))

    @tool(effect="read")
    def think(self, thought: str) -> str:
        """Note a thought. Changes nothing."""
        return ""

    @tool
    def respond(self, content: str) -> str:
        """Say something to the user."""
        self.state = replace(self.state, said=(*self.state.said, content))
        return "Said."

    @tool(ends=True)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent, which ends the conversation.

        Args:
            summary: what the user's issue is.
        """
        return "Transfer successful"

    @tool(ends=True)
    def done(self) -> str:
        """End the conversation, when the user has all that was asked for."""
        return "Done."

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
        return self._write("orders", order_id, ledger.modify_pending_order_address(self.state.tables, order_id, **address))

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
        tables = ledger.modify_pending_order_items(self.state.tables, order_id, item_ids, new_item_ids, payment_method_id)
        return self._write("orders", order_id, tables)

    @tool
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Pay for a pending order by another method."""
        tables = ledger.modify_pending_order_payment(self.state.tables, order_id, payment_method_id)
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

    def score(self) -> float:
        said = [content.lower().replace(",", "") for content in self.state.said]
        told = all(any(output.lower() in content for content in said) for output in self.task.answer["outputs"])
        return float(self.ended == "done" and told and self.state.tables.digest == self._goal(self.task).digest)

    def gold(self, task: Task) -> list[str]:
        """The task's own actions, then all that is to be said, then the end."""
        calls = [Call(action["name"], action["arguments"]) for action in task.answer["actions"]]
        ends = [call for call in calls if call.name == TRANSFER] or [Call("done", {})]
        said = [Call("respond", {"content": " ".join(task.answer["outputs"])})] if task.answer["outputs"] else []
        return [format_action(call) for call in (*(call for call in calls if call.name != TRANSFER), *said, *ends[:1])]

    def key(self) -> str:
        """Equal where the same task's tables are equal, the same was said and the last turn showed the same."""
        return state_digest(self.task.id, self.state)

    def _goal(self, task: Task) -> FrozenDict:
        """The tables after the task's own actions. As in the benchmark, one that is refused changes nothing."""
        tables = self._shop.tables
        for action in task.answer["actions"]:
            if action["name"] in ledger.WRITES:
                with suppress(ToolError):
                    tables = ledger.WRITES[action["name"]](tables, **action["arguments"])
        return tables

    def _find_user(self, fits: Callable[[Any], bool]) -> str:
        for id, user in self.state.tables["users"].items():
            if fits(user):
                return str(id)
        raise ToolError("user not found")

    def _show(self, table: str, id: str) -> str:
        return json.dumps(ledger.record(self.state.tables, table, id).to_plain())

    def _write(self, table: str, id: str, tables: FrozenDict) -> str:
        self.state = replace(self.state, tables=tables)
        return self._show(table, id)

