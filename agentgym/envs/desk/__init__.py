"""``agentgym/Tools-v0``: the service desk of a small shop. What counts is what its tables hold in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agentgym.action import Action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.desk import ledger
from agentgym.envs.desk.expert import Expert, Memory, action_of, next_step
from agentgym.envs.desk.shop import SIZES, shop_tasks
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.tables import FrozenDict, freeze

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.demonstrations import Demonstrations


@dataclass(frozen=True, slots=True)
class DeskState:
    """``tables``: customers, orders and items by name. ``start``: as they were. ``shown``: what the last turn said."""

    start: FrozenDict
    tables: FrozenDict
    shown: str = ""


class Desk(AgentEnv):
    """Look up, cancel, refund, exchange and send orders as a customer wishes.

    Reward: 1 if the agent closes the case with the tables as they should be, all of them; else 0. So a write too many spoils it.
    """

    system = (
        "Fulfil the wish with the tools customer, order, product, cancel, refund, exchange, send, move; then call done. "
        "Cancel what is pending, refund what is delivered. Who moves gets pending orders sent there."
    )
    snapshots: Kind = "value"
    splits = tuple(SIZES)
    max_turns = max_calls = 10
    state: DeskState

    def tasks(self, split: str) -> Sequence[Task]:
        return shop_tasks(split)

    def begin(self, task: Task) -> None:
        tables = freeze(task.data["tables"])
        self.state = DeskState(tables, tables)

    def act(self, action: Action) -> Reply:
        reply = super().act(action)
        self.state = replace(self.state, shown=reply.text)
        return reply

    @tool(effect="read")
    def customer(self, name: str) -> str:
        """Look up where a customer lives, and the names of the orders."""
        row = ledger.row(self.state.tables, "customers", name)
        return f"{name} of {row['town']}. Orders: {', '.join(row['orders'])}."

    @tool(effect="read")
    def order(self, name: str) -> str:
        """Look up what was ordered, whether it is pending or delivered, and where it goes."""
        row = ledger.row(self.state.tables, "orders", name)
        item = self.state.tables["items"][row["item"]]
        return f"{name}: {item['product']} in {item['colour']}, {row['status']}, to {row['town']}."

    @tool(effect="read")
    def product(self, name: str) -> str:
        """Look up the colours of a product, each with the name of its item."""
        rows = {item: row for item, row in self.state.tables["items"].items() if row["product"] == name}
        if not rows:
            raise ToolError(f"there is no product {name!r}")
        return f"{name}. " + " ".join(f"{row['colour']}: {item if row['stock'] else 'sold out'}." for item, row in rows.items())

    @tool
    def cancel(self, order: str) -> str:
        """Cancel a pending order."""
        return self._write(f"Cancelled {order}.", ledger.cancel(self.state.tables, order))

    @tool
    def refund(self, order: str) -> str:
        """Take a delivered order back and refund it."""
        return self._write(f"Refunded {order}.", ledger.refund(self.state.tables, order))

    @tool
    def exchange(self, order: str, item: str) -> str:
        """Exchange what was ordered for another item of the same product.

        Args:
            item: its name, as product shows it.
        """
        return self._write(f"Exchanged {order}.", ledger.exchange(self.state.tables, order, item))

    @tool
    def send(self, order: str, town: str) -> str:
        """Send a pending order to another town."""
        return self._write(f"Sent {order}.", ledger.send(self.state.tables, order, town))

    @tool
    def move(self, customer: str, town: str) -> str:
        """Note where a customer lives from now on. Orders are not sent there by this."""
        return self._write(f"Moved {customer}.", ledger.move(self.state.tables, customer, town))

    @tool(ends=True)
    def done(self) -> str:
        """Close the case, when the wish is fulfilled."""
        return "Closed."

    def score(self) -> float:
        return float(self.ended == "done" and self.state.tables.digest == self._goal().digest)

    def metrics(self) -> dict[str, float]:
        return {f"success/{self.task.data['kind']}": self.score()}

    def gold(self, task: Task) -> list[str]:
        """What the expert does."""
        desk, memory, actions = Desk(), Memory(), list[str]()
        desk.reset(seed=0, options={"task": task})
        while desk.ended is None:
            step = next_step(task.data, memory)
            memory.read(step.tool, step.arguments, desk.step(action_of(step))[0])
            actions.append(action_of(step))
        return actions

    def key(self) -> str:
        """Equal where the same task's tables are equal and the last turn showed the same."""
        return state_digest(self.task.id, self.state)

    def demonstrations(self, chat: Chat | None, seed: int, mistakes: float) -> Demonstrations:
        """Episodes of an expert that errs with probability ``mistakes`` at each turn, for a warm start."""
        from agentgym.envs.demonstrations import Demonstrations

        return Demonstrations(Desk, Expert(seed=seed, mistakes=mistakes), chat, seed)

    def _goal(self) -> FrozenDict:
        """The tables as they should be: those of the start after the writes that fulfil the wish, and no others."""
        tables = self.state.start
        for name, arguments in self.task.answer:
            tables = getattr(ledger, name)(tables, **arguments)
        return tables

    def _write(self, said: str, tables: FrozenDict) -> str:
        self.state = replace(self.state, tables=tables)
        return said
