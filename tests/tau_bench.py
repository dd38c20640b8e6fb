"""tau-bench's data, played and compared with what its own tools said; and a small airline of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym import Task
from agentgym.envs.tau import TauEnv
from agentgym.tools.tables import FrozenDict, freeze

DATA = Path(__file__).parents[2] / "shared" / "data" / "tau-bench"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"tau-bench is not at {DATA}")


def rows(file: str) -> list[dict[str, Any]]:
    with (DATA / file).open() as lines:
        return [json.loads(line) for line in lines]


def started(env: TauEnv, task: Task) -> TauEnv:
    env.reset(seed=0, options={"task": task})
    return env


def play(env: TauEnv, actions: Sequence[str]) -> tuple[list[str], float, bool]:
    replies = [env.step(action) for action in actions]
    return [str(reply[0]) for reply in replies], float(replies[-1][1]), replies[-1][2]


def as_recorded(answer: str, recorded: Any) -> Any:
    """Long answers are recorded as a hash and a length."""
    return answer if isinstance(recorded, str) else {"sha256": hashlib.sha256(answer.encode()).hexdigest(), "chars": len(answer)}


def changes(env: TauEnv) -> FrozenDict:
    """The records that an episode changed, by table, where 5 and 5.0 differ, but not as a change. The rest is the very same object."""
    found: dict[str, dict[str, Any]] = {}
    for table, records in env.state.tables.items():
        for id, record in records.items():
            before = env.domain.tables[table].get(id)
            if record is not before and (before is None or record.to_plain() != before.to_plain()):
                found.setdefault(table, {})[id] = record
    return freeze(found)


UNA = {"first_name": "Una", "last_name": "Ort", "dob": "1990-01-01"}
OTTO = {"first_name": "Otto", "last_name": "Ort", "dob": "1991-01-01"}
METHODS = {
    "gift_card_1": {"source": "gift_card", "amount": 200, "id": "gift_card_1"},
    "certificate_1": {"source": "certificate", "amount": 150, "id": "certificate_1"},
    "credit_card_1": {"source": "credit_card", "brand": "visa", "last_four": "0000", "id": "credit_card_1"},
}


def a_day(price: int) -> dict[str, Any]:
    seats, prices = {"economy": 2, "business": 1}, {"economy": price, "business": 3 * price}
    return {"status": "available", "available_seats": seats, "prices": prices}


def a_flight(number: str, route: str, times: str, dates: dict[str, Any]) -> dict[str, Any]:
    ends = dict(zip(("origin", "destination"), route.split("-"), strict=True))
    hours = dict(zip(("scheduled_departure_time_est", "scheduled_arrival_time_est"), times.split(), strict=True))
    return {"flight_number": number, **ends, **hours, "dates": dates}


def small_airline(**reservation: Any) -> FrozenDict:
    flights = [
        a_flight("A", "JFK-ORD", "08:00 10:00", {"2024-05-20": a_day(100), "2024-05-21": {"status": "cancelled"}}),
        a_flight("B", "ORD-SEA", "11:00 13:00", {"2024-05-20": a_day(60), "2024-05-21": a_day(70)}),
        a_flight("C", "ORD-SEA", "09:00 12:00", {"2024-05-20": a_day(50)}),
        a_flight("D", "JFK-ORD", "22:00 01:00+1", {"2024-05-20": a_day(30)}),
        a_flight("E", "ORD-LAX", "11:00 13:00", {"2024-05-21": a_day(80)}),
    ]
    plain = {
        "reservation_id": "R", "user_id": "una", "origin": "JFK", "destination": "ORD", "flight_type": "one_way", "cabin": "economy",
        "flights": [{"origin": "JFK", "destination": "ORD", "flight_number": "A", "date": "2024-05-20", "price": 90}],
        "passengers": [UNA], "payment_history": [{"payment_id": "credit_card_1", "amount": 90}], "created_at": "2024-05-01T10:00:00",
        "total_baggages": 1, "nonfree_baggages": 0, "insurance": "no",
    } | reservation  # fmt: skip
    user = {"payment_methods": METHODS, "membership": "gold", "reservations": ["R"]}
    numbered = {flight["flight_number"]: flight for flight in flights}
    return freeze({"users": {"una": user}, "reservations": {"R": plain}, "flights": numbered})


def folder_of(path: Path) -> Path:
    (path / "db").mkdir()
    for name, records in small_airline().to_plain().items():
        (path / "db" / f"{name}.json").write_text(json.dumps(records))
    (path / "policy.md").write_text("Be kind.")
    arguments = {"reservation_id": "R", "total_baggages": 2, "nonfree_baggages": 1, "payment_id": "gift_card_1"}
    actions = [{"name": "update_reservation_baggages", "arguments": arguments}]
    lines = [{"id": f"a{n}", "instruction": f"Add a bag to R, Una {n}.", "actions": actions, "outputs": ["50"]} for n in range(3)]
    (path / "tasks_test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path
