"""tau2-bench's folder, and small shops and airlines of our own in its form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tau_bench import small_airline

from agentgym import Task
from agentgym.env import AgentEnv
from agentgym.tools.completion import Said

DATA = Path(__file__).parents[2] / "shared" / "data" / "tau2-bench"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"tau2-bench is not at {DATA}")


class Says:
    """A completion that always says the same, and counts how often it was asked."""

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, list[Any]()

    def complete(self, messages: Any, tools: Any = (), *, temperature: float = 1.0, seed: int | None = None) -> Said:
        self.asked.append(messages)
        return Said(self.text)


def played(env: AgentEnv, task: Task | str, actions: Sequence[str]) -> tuple[list[str], float, bool]:
    """What was answered, the last reward, and whether the episode was ended by a side."""
    env.reset(seed=0, options={"task": task})
    replies = [env.step(action) for action in actions]
    return [str(reply[0]) for reply in replies], float(replies[-1][1]), replies[-1][2]


def row(id: str, *actions: dict[str, Any], **criteria: Any) -> dict[str, Any]:
    scenario = {"instructions": {"domain": "shop", "reason_for_call": f"You want {id}.", "known_info": "You are Una."}}
    return {
        "id": id,
        "user_scenario": scenario,
        "evaluation_criteria": {"actions": list(actions), "reward_basis": ["DB"], **criteria},
        "official_split": "test",
    }


def written(folder: Path, name: str, rows: Sequence[dict[str, Any]], tables: dict[str, Any]) -> Path:
    (folder / name / "db").mkdir(parents=True)
    for table, records in tables.items():
        (folder / name / "db" / f"{table}.json").write_text(json.dumps(records))
    (folder / name / "policy.md").write_text("Be kind.")
    (folder / name / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def airline_folder(folder: Path, *rows: dict[str, Any]) -> Path:
    return written(folder, "airline", rows or [row("a seat")], small_airline().to_plain())


def retail_folder(folder: Path, *rows: dict[str, Any]) -> Path:
    prices = {"1": 10.0, "2": 12.0, "3": 17.0}
    variants = {id: {"item_id": id, "price": price, "options": {"size": id}, "available": True} for id, price in prices.items()}
    items = [{"item_id": "1", "product_id": "p", "price": 10.0, "options": {"size": "1"}} for _ in range(2)]
    paid = [{"transaction_type": "payment", "amount": 20.0, "payment_method_id": "card_1"}]
    user = {
        "name": {"first_name": "Una", "last_name": "Ort"}, "email": "una@x.org", "address": {"zip": "1"}, "orders": ["#W1", "#W2"],
        "payment_methods": {"card_1": {"source": "credit_card", "id": "card_1"}, "card_2": {"source": "credit_card", "id": "card_2"}},
    }  # fmt: skip
    orders = {id: {"order_id": id, "user_id": "una", "status": status, "items": items, "payment_history": paid, "address": {}}
              for id, status in (("#W1", "pending"), ("#W2", "pending (item modified)"))}  # fmt: skip
    product = {"name": "Cup", "product_id": "p", "variants": variants}
    return written(folder, "retail", rows or [row("a cup")], {"users": {"una": user}, "orders": orders, "products": {"p": product}})
