"""tau-bench's retail domain: every recorded call and final state of the shared half, and a reward that a wrong write costs."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tau_bench import DATA, as_recorded, changes, play, rows, shared, started

from agentgym import AgentGymError, Call, Outcome, call, check_env, format_action
from agentgym.envs.retail import Retail, ledger
from agentgym.envs.tau import TRANSFER
from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict, freeze

SPLITS = {"dev": 20, "test": 54, "train": 500}


@shared
@pytest.mark.parametrize("split", SPLITS)
def test_every_gold_run_ends_in_its_recorded_state_with_full_reward(split: str) -> None:
    env = Retail(DATA)
    recorded = {row["id"]: row for row in rows(f"retail/tasks_{split}.jsonl")}
    assert [task.id for task in env.tasks(split)] == list(recorded)
    assert len(recorded) == SPLITS[split]
    for task in env.tasks(split):
        _, reward, terminated = play(started(env, task), env.gold(task))
        assert (reward, terminated) == (1.0, True), task.id
        assert changes(env) == freeze(recorded[task.id]["gt_final_diff"]), task.id


@shared
def test_every_recorded_answer_of_a_tool_is_given_letter_by_letter() -> None:
    env, compared, refused = Retail(DATA), 0, 0
    for split in ("dev", "test"):
        for task, row in zip(env.tasks(split), rows(f"retail/tasks_{split}.jsonl"), strict=True):
            started(env, task)
            for action, recorded in zip(row["actions"], row["gt_tool_outputs"], strict=True):
                answer = str(env.step(call(action["name"], **action["arguments"]))[0])
                if recorded is not None:
                    assert as_recorded(answer, recorded) == recorded, (task.id, action)
                    compared, refused = compared + 1, refused + answer.startswith("Error: ")
    assert (compared, refused) == (342, 11)


@shared
def test_one_wrong_write_costs_the_reward() -> None:
    env = Retail(DATA)
    for task in env.tasks("test")[:20]:
        *actions, last = env.gold(task)
        cities = {"address1": "1 Elm St", "address2": "", "city": "Paris", "state": "TX", "country": "USA", "zip": "75460"}
        wrong = call("modify_user_address", user_id="noah_brown_6181", **cities)
        if TRANSFER not in last:
            assert play(started(env, task), [*actions, wrong, last])[1:] == (0.0, True)


@shared
def test_what_was_to_be_said_must_be_said_and_case_and_commas_do_not_count() -> None:
    env = Retail(DATA)
    task = next(task for task in env.tasks("test") if task.answer["outputs"] == ["54.04", "41.64"])
    actions = [action for action in env.gold(task) if "respond" not in action]
    assert play(started(env, task), actions)[1] == 0.0
    assert play(started(env, task), [call("respond", content="It is 54.04 or 4,1.64."), *actions])[1] == 1.0
    assert play(started(env, task), [call("respond", content="It is 54.04."), *actions])[1] == 0.0


@shared
def test_an_episode_that_is_not_ended_within_30_turns_earns_nothing() -> None:
    env = Retail(DATA)
    task = env.tasks("test")[0]
    *actions, _ = env.gold(task)
    started(env, task)
    for action in (*actions, *[call("calculate", expression="1")] * (30 - len(actions))):
        _, reward, terminated, truncated, _ = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, True)


@shared
def test_a_transfer_ends_the_episode_and_is_scored() -> None:
    env = Retail(DATA)
    task = next(task for task in env.tasks("test") if any(action["name"] == TRANSFER for action in task.answer["actions"]))
    answers, reward, terminated = play(started(env, task), env.gold(task))
    assert (answers[-1], reward, terminated) == ("Transfer successful", 1.0, True)


@shared
def test_the_tables_are_shared_by_all_environments_and_forks_are_their_own() -> None:
    one, other = Retail(DATA), Retail(DATA)
    task = one.tasks("test")[0]
    started(one, task)
    before = one.snapshot()
    one.step(one.gold(task)[-2])
    other.restore(before)
    assert other.state.tables is one.domain.tables
    assert one.state.tables != other.state.tables
    assert one.key() != other.key()


@shared
@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("calculate", {"expression": "(2 + 3) * 4"}, "20.0"),
        ("calculate", {"expression": "10 / 3"}, "3.33"),
        ("calculate", {"expression": "2 ** 0.5 + x"}, "Error: invalid characters in expression"),
        ("think", {"thought": "well"}, ""),
        ("find_user_id_by_email", {"email": "NOAH.BROWN7922@EXAMPLE.COM"}, "noah_brown_6181"),
        ("find_user_id_by_name_zip", {"first_name": "noah", "last_name": "BROWN", "zip": "80279"}, "noah_brown_6181"),
        ("find_user_id_by_name_zip", {"first_name": "noah", "last_name": "BROWN", "zip": "80270"}, "Error: user not found"),
        ("get_order_details", {"order_id": "W2611340"}, "Error: order not found"),
        ("cancel_pending_order", {"order_id": "#W2611340", "reason": "none"}, "Error: non-pending order cannot be cancelled"),
    ],
)
def test_tools_answer_as_the_benchmark_says(tool: str, arguments: dict[str, str], answer: str) -> None:
    env = Retail(DATA)
    assert started(env, env.tasks("test")[0]).step(format_action(Call(tool, arguments)))[0] == answer


@shared
def test_bad_arguments_name_the_field() -> None:
    env = Retail(DATA)
    started(env, env.tasks("test")[0])
    arguments = {"order_id": "#W2611340", "item_ids": "9", "payment_method_id": "x"}
    observation, _, _, _, info = env.step(call("return_delivered_order_items", **arguments))
    assert observation.startswith("Error: return_delivered_order_items: item_ids:")
    assert info["outcome"] == Outcome.MODEL_ERROR


@shared
def test_the_benchmark_measures_what_it_promises() -> None:
    command = [sys.executable, Path(__file__).parents[1] / "benchmarks" / "retail.py", "--quick", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    targets = {figure["name"]: figure["target"] for figure in report["figures"]}
    assert targets == {"reset": 1000.0, "final reward": 1000.0, "fork after a write": 200.0, "turn": None}
    assert all(figure["best"] > 0 for figure in report["figures"])


# The rules of the writes, on small tables of our own.


def small_shop(**order: Any) -> FrozenDict:
    methods = {"gift_card_1": {"source": "gift_card", "balance": 30}, "paypal_1": {"source": "paypal"}}
    variants = {
        "small": {"item_id": "small", "price": 10.1, "options": {"size": "S"}, "available": True},
        "large": {"item_id": "large", "price": 40.3, "options": {"size": "L"}, "available": True},
        "gone": {"item_id": "gone", "price": 1.0, "options": {}, "available": False},
    }
    items = [{"name": "Shirt", "product_id": "shirt", "item_id": "small", "price": 10.1, "options": {"size": "S"}}]
    paid = [{"transaction_type": "payment", "amount": 10.1, "payment_method_id": "gift_card_1"}]
    plain = {"user_id": "u", "status": "pending", "items": items, "payment_history": paid, **order}
    tables = {"users": {"u": {"payment_methods": methods}}, "orders": {"o": plain}, "products": {"shirt": {"variants": variants}}}
    return freeze(tables)


def balance(tables: FrozenDict) -> float:
    return tables["users"]["u"]["payment_methods"]["gift_card_1"]["balance"]


def test_a_cancelled_order_refunds_the_gift_card() -> None:
    after = ledger.cancel_pending_order(small_shop(), "o", "ordered by mistake")
    assert balance(after) == 40.1
    assert [paid["transaction_type"] for paid in after["orders"]["o"]["payment_history"]] == ["payment", "refund"]


def test_a_dearer_item_is_paid_and_a_gift_card_must_suffice() -> None:
    with pytest.raises(ToolError, match="insufficient gift card balance to pay for the new item"):
        ledger.modify_pending_order_items(small_shop(), "o", ["small"], ["large"], "gift_card_1")
    after = ledger.modify_pending_order_items(small_shop(), "o", ["small"], ["large"], "paypal_1")["orders"]["o"]
    assert after["payment_history"][-1].to_plain() == {
        "transaction_type": "payment", "amount": pytest.approx(30.2), "payment_method_id": "paypal_1",
    }  # fmt: skip
    assert (after["items"][0]["item_id"], after["items"][0]["options"]["size"]) == ("large", "L")
    assert after["status"] == "pending (item modified)"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (["small", "small"], ["large", "large"], "small not found"),
        (["small"], [], "the number of items to be exchanged should match"),
        (["small"], ["gone"], "new item gone not found or available"),
    ],
)
def test_an_exchange_is_refused_with_the_benchmarks_words(old: list[str], new: list[str], why: str) -> None:
    with pytest.raises(ToolError, match=why):
        ledger.exchange_delivered_order_items(small_shop(status="delivered"), "o", old, new, "paypal_1")


def test_a_payment_moves_to_another_method_once() -> None:
    after = ledger.modify_pending_order_payment(small_shop(), "o", "paypal_1")
    assert balance(after) == 40.1
    with pytest.raises(ToolError, match="exactly one payment"):
        ledger.modify_pending_order_payment(after, "o", "gift_card_1")
    with pytest.raises(ToolError, match="should be different"):
        ledger.modify_pending_order_payment(small_shop(), "o", "gift_card_1")


def test_a_return_goes_to_the_first_method_or_a_gift_card() -> None:
    paid = [{"transaction_type": "payment", "amount": 1, "payment_method_id": "gift_card_1"}]
    with pytest.raises(ToolError, match="either the original payment method or a gift card"):
        ledger.return_delivered_order_items(small_shop(status="delivered", payment_history=paid), "o", ["small"], "paypal_1")
    after = ledger.return_delivered_order_items(small_shop(status="delivered"), "o", ["small"], "gift_card_1")["orders"]["o"]
    assert (after["status"], list(after["return_items"])) == ("return requested", ["small"])


@pytest.mark.long
def test_the_contract_holds_on_small_tables_too(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    user = {"name": {"first_name": "Una", "last_name": "Ort"}, "email": "u@x", "address": {"zip": "1"}}
    tables = small_shop().to_plain()
    tables["users"]["u"] |= user
    tables["products"]["shirt"]["name"] = "Shirt"
    for name, records in tables.items():
        (tmp_path / "db" / f"{name}.json").write_text(json.dumps(records))
    (tmp_path / "policy.md").write_text("Be kind.")
    actions = [{"name": "cancel_pending_order", "arguments": {"order_id": "o", "reason": "no longer needed"}}]
    lines = [{"id": f"a{n}", "instruction": f"Cancel order o, user {n}.", "actions": actions, "outputs": ["10.1"]} for n in range(3)]
    (tmp_path / "tasks_dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = check_env(partial(Retail, tmp_path))
    assert report.ok, report


def test_a_missing_file_and_a_bad_line_are_named(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match=r"users\.json is missing"):
        Retail(tmp_path)
    (tmp_path / "db").mkdir()
    for name in ("users", "orders", "products"):
        (tmp_path / "db" / f"{name}.json").write_text("{}")
    with pytest.raises(AgentGymError, match=r"holds no tasks_\*\.jsonl"):
        Retail(tmp_path)
    (tmp_path / "tasks_dev.jsonl").write_text('{"id": "a", "instruction": "b"}\n')
    with pytest.raises(AgentGymError, match=r"tasks_dev\.jsonl, line 1: actions: Field required"):
        Retail(tmp_path)
