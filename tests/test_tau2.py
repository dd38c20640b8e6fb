"""tau2-bench's retail and airline: gold runs, what differs from tau-bench, and the product of criteria."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tau2_bench import DATA, Says, airline_folder, played, retail_folder, row, shared
from tau_bench import OTTO, UNA

from agentgym import AgentGymError, Call, Lineage, Outcome, Rollout, Start, call
from agentgym.action import parse_action
from agentgym.envs.check import check_env
from agentgym.envs.judging import Judge
from agentgym.envs.tau2 import Tau2Env
from agentgym.envs.tau2.airline import Tau2Airline
from agentgym.envs.tau2.retail import Tau2Retail
from agentgym.envs.tau2.scoring import Made, acted, communicated
from agentgym.envs.user.users import Line
from agentgym.errors import JudgeError
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted

DONE = call("done")
DAY = "2024-05-20"
WRITES = ("book_", "cancel_", "modify_", "update_", "return_", "exchange_", "send_certificate")
SEATS = {"user_id": "una", "origin": "JFK", "destination": "ORD", "flight_type": "one_way",
         "cabin": "economy", "flights": [{"flight_number": "A", "date": "2024-05-20"}], "passengers": [UNA],
         "payment_methods": [{"payment_id": "credit_card_1", "amount": 100}],
         "total_baggages": 0, "nonfree_baggages": 0, "insurance": "no"}  # fmt: skip


def judged_by(text: str) -> Judge:
    return Judge(Says(text), votes=1)


@shared
@pytest.mark.parametrize("domain", [Tau2Retail, Tau2Airline])
def test_every_gold_run_earns_1(domain: type[Tau2Env]) -> None:
    env = domain(DATA, judge=judged_by("yes"))
    for task in env.tasks("base"):
        assert played(env, task, env.gold(task) or [])[1:] == (1.0, True), task.id


@shared
@pytest.mark.parametrize("domain", [Tau2Retail, Tau2Airline])
def test_a_gold_run_without_a_write_that_was_done_earns_0(domain: type[Tau2Env]) -> None:
    env, lost = domain(DATA, judge=judged_by("yes")), 0
    for task in env.tasks("base"):
        actions = env.gold(task) or []
        answers = played(env, task, actions)[0]
        done = [place for place, action in enumerate(actions) if _writes(action) and not answers[place].startswith("Error")]
        for place in done[-1:]:
            assert played(env, task, [*actions[:place], *actions[place + 1 :]])[1:] == (0.0, True), (task.id, actions[place])
            lost += 1
    assert lost > len(env.tasks("base")) // 3


def _writes(action: str) -> bool:
    return parse_action(action).calls[0].name.startswith(WRITES)


@shared
@pytest.mark.parametrize("domain", [Tau2Retail, Tau2Airline])
def test_what_was_not_said_or_not_ended_earns_0(domain: type[Tau2Env]) -> None:
    env = domain(DATA, judge=judged_by("yes"))
    for task in env.tasks("base"):
        silent = [action for action in env.gold(task) or [] if '"respond"' not in action]
        told = "COMMUNICATE" in task.answer["reward_basis"] and task.answer["communicate_info"]
        assert played(env, task, silent)[1] == (0.0 if told else 1.0), task.id
        assert played(env, task, [*silent[:-1], call("respond", content="Bye.")])[1:] == (0.0, False)
        assert env.stop("budget")[0] == 0.0


@shared
def test_the_judge_alone_decides_on_assertions_in_words() -> None:
    judge = Says("no")
    env, missing = Tau2Retail(DATA, judge=Judge(judge, votes=1)), Tau2Retail(DATA)
    asked = [task for task in env.tasks("base") if task.answer["nl_assertions"]]
    assert asked
    for task in asked:
        assert played(env, task, env.gold(task) or [])[1] == 0.0
        for actions in (missing.gold(task) or [], [DONE]):
            with pytest.raises(JudgeError, match="give judge="):
                played(missing, task, actions)
    votes, lost = len(judge.asked), next(task for task in asked if any(_writes(action) for action in env.gold(task) or []))
    assert played(env, lost, [DONE])[1:] == (0.0, True)
    assert len(judge.asked) == votes  # it is 0 whatever a judge says


def test_a_missing_judge_is_no_verdict(tmp_path: Path) -> None:
    folder = retail_folder(tmp_path, row("a cup", reward_basis=["DB", "NL_ASSERTION"], nl_assertions=["The agent is kind."]))
    rollout = Rollout(lambda: Tau2Retail(folder), Groups(1, "agent"), {"agent": Scripted(lambda prompt: DONE)}, None, Lineage.of(0, "t"))
    (leaf,) = asyncio.run(rollout.run([Start(Tau2Retail(folder).tasks("base")[0])]))[0].leaves()
    assert (leaf.reward, leaf.end) == (None, "error")
    assert leaf.outcome is not Outcome.OK


def test_the_judge_reads_what_was_said_and_called_in_order(tmp_path: Path) -> None:
    folder, judge = retail_folder(tmp_path, row("a", reward_basis=["NL_ASSERTION"], nl_assertions=["It is so."])), Says("yes")
    actions = ["First.", call("get_user_details", user_id="una"), "Second.", DONE]
    assert played(Tau2Retail(folder, judge=Judge(judge, votes=1)), "a", actions)[1] == 1.0
    text = judge.asked[0][1]["content"]
    assert text.index("First.") < text.index('get_user_details({"user_id":"una"})') < text.index("Second.")


@pytest.mark.parametrize(
    ("compare", "made", "counts"),
    [
        (None, Call("pay", {"to": "a", "sum": 2.0}), True),
        (None, Call("pay", {"to": "a"}), False),
        (["to"], Call("pay", {"to": "a", "sum": 3}), True),
        (["to"], Call("pay", {"to": "b", "sum": 2}), False),
        ([], Call("pay", {}), True),
        ([], Call("ask", {"to": "a", "sum": 2}), False),
    ],
)
def test_an_action_counts_by_name_and_the_arguments_that_are_compared(compare: list[str] | None, made: Call, counts: bool) -> None:
    gold = [{"name": "pay", "arguments": {"to": "a", "sum": 2}, "compare_args": compare}]
    assert acted(gold, [Made("other", "{}", 0), Made(made.name, json.dumps(made.arguments), 0)]) is counts


def test_what_is_communicated_is_said_by_the_agent_in_any_case_and_with_commas() -> None:
    dialogue = [Line("agent", "It is $1,628, by Mastercard."), Line("user", "And 99?")]
    assert communicated(["1628", "mastercard"], dialogue)
    assert not communicated(["1628", "99"], dialogue)


def test_several_items_that_are_modified_all_get_the_last_ones_price_and_options(tmp_path: Path) -> None:
    env = Tau2Retail(retail_folder(tmp_path))
    change = call("modify_pending_order_items", order_id="#W1", item_ids=["1", "1"], new_item_ids=["2", "3"], payment_method_id="card_1")
    order = json.loads(played(env, "a cup", [change])[0][0])
    assert [item["item_id"] for item in order["items"]] == ["2", "3"]
    assert [(item["price"], item["options"]) for item in order["items"]] == [(17.0, {"size": "3"})] * 2
    assert order["payment_history"][-1]["amount"] == 9.0
    assert order["status"] == "pending (item modified)"


def test_retail_differs_from_tau_bench_as_it_is_told_to(tmp_path: Path) -> None:
    env = Tau2Retail(retail_folder(tmp_path))
    address = {"address1": "a", "address2": "b", "city": "c", "state": "s", "country": "d", "zip": "2"}
    same = call("modify_pending_order_items", order_id="#W1", item_ids=["1"], new_item_ids=["1"], payment_method_id="card_1")
    answers = played(env, "a cup", [
        call("get_user_details", user_id="una"),
        call("get_item_details", item_id="3"),
        call("get_item_details", item_id="9"),
        call("modify_pending_order_payment", order_id="#W2", payment_method_id="card_2"),
        call("modify_pending_order_address", order_id="#W2", **address),
        call("cancel_pending_order", order_id="#W2", reason="no longer needed"),
        same,
        call("think", thought="?"),
    ])[0]  # fmt: skip
    assert json.loads(answers[0])["user_id"] == "una"
    assert json.loads(answers[1])["price"] == 17.0
    assert answers[2] == "Error: Item not found"
    assert json.loads(answers[3])["status"] == json.loads(answers[4])["status"] == "pending (item modified)"
    assert json.loads(answers[4])["address"] == address
    assert answers[5] == "Error: Non-pending order cannot be cancelled"
    assert answers[6] == "Error: The new item id should be different from the old item id"
    assert answers[7].startswith("Error: no tool named 'think'")


def test_airline_differs_from_tau_bench_as_it_is_told_to(tmp_path: Path) -> None:
    env = Tau2Airline(airline_folder(tmp_path))
    trip = {"reservation_id": "R", "cabin": "business", "flights": SEATS["flights"], "payment_id": "credit_card_1"}
    for_two = {"passengers": [UNA, OTTO], "payment_methods": [{"payment_id": "credit_card_1", "amount": 200}]}
    answers = played(env, "a seat", [
        call("book_reservation", **SEATS),
        call("book_reservation", **SEATS | for_two),
        call("update_reservation_flights", **trip),
        call("search_onestop_flight", origin="JFK", destination="SEA", date="2024-05-20"),
        call("get_flight_status", flight_number="A", date="2024-05-21"),
        call("get_flight_status", flight_number="A", date="2024-05-22"),
        call("list_all_airports"),
    ])[0]  # fmt: skip
    assert env.state.tables["flights"]["A"]["dates"]["2024-05-20"]["available_seats"]["economy"] == 1
    assert answers[1] == "Error: Not enough seats on flight A"
    assert json.loads(answers[2])["cabin"] == "business"
    assert [legs[1]["prices"]["economy"] for legs in json.loads(answers[3]) if legs[1]["date"] == "2024-05-21"] == [70]
    assert answers[4:6] == ["cancelled", "Error: Flight A not found on date 2024-05-22"]
    assert json.loads(answers[6])[0] == {"iata": "SFO", "city": "San Francisco"}


def test_a_fourth_new_reservation_is_refused(tmp_path: Path) -> None:
    env = Tau2Airline(airline_folder(tmp_path))
    trips = [
        SEATS | {"flights": [{"flight_number": flight, "date": DAY}], "payment_methods": [{"payment_id": "credit_card_1", "amount": cost}]}
        for flight, cost in (("B", 60), ("C", 50)) * 2
    ]
    answers = played(env, "a seat", [call("book_reservation", **trip) for trip in trips])[0]
    assert [json.loads(answer)["reservation_id"] for answer in answers[:3]] == ["HATHAT", "HATHAU", "HATHAV"]
    assert answers[3] == "Error: There can be no more new reservations"


def test_a_transfer_ends_nothing_by_itself(tmp_path: Path) -> None:
    env = Tau2Retail(retail_folder(tmp_path))
    assert played(env, "a cup", [call("transfer_to_human_agents", summary="?")]) == (["Transfer successful"], 0.0, False)
    assert env.step(DONE)[1:3] == (1.0, True)


def test_the_contract_holds(tmp_path: Path) -> None:
    where = retail_folder(tmp_path, row("a word", communicate_info=["50"], reward_basis=["COMMUNICATE"]))

    def made() -> Tau2Env:
        env = Tau2Retail(where)
        env.max_turns = env.max_calls = 8  # or the check takes half a minute
        return env

    check_env(made).raise_if_broken()


def test_tables_are_found_beside_within_or_where_it_is_told(tmp_path: Path) -> None:
    own = airline_folder(tmp_path / "tau2-bench")
    beside = tmp_path / "tau-bench" / "airline"
    beside.mkdir(parents=True)
    (own / "airline" / "db").rename(beside / "db")
    assert Tau2Airline(own).tasks("base") == Tau2Airline(own / "airline").tasks("base")
    (tmp_path / "tau-bench").rename(tmp_path / "elsewhere")
    assert Tau2Airline(own, tables=tmp_path / "elsewhere").tasks("test")
    with pytest.raises(AgentGymError, match="give its folder with tables="):
        Tau2Airline(own / "airline", tables=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": ""}, r"tasks.jsonl, line 2: id: "),
        ({"evaluation_criteria": {"reward_basis": ["LUCK"]}}, r"line 2: evaluation_criteria.reward_basis.0: "),
        ({"initial_state": {"initialization_actions": [{"env_type": "user", "func_name": "f"}]}}, r"line 2: row: .* no 'f' for 'user'"),
        ({"initial_state": {"message_history": [1]}}, r"line 2: initial_state.message_history: "),
    ],
)
def test_a_bad_row_is_named_with_its_file_line_and_field(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = retail_folder(tmp_path, row("a cup"), row("b") | change)
    with pytest.raises(AgentGymError, match=why):
        Tau2Retail(folder)


def test_the_base_split_is_train_and_test(tmp_path: Path) -> None:
    rows = [row(split, reward_basis=["DB"]) | {"official_split": split} for split in ("small", "test", "train")]
    env = Tau2Retail(retail_folder(tmp_path, *rows))
    assert {split: [task.id for task in env.tasks(split)] for split in env.splits} == {
        "train": ["train"], "test": ["test"], "small": ["small"], "base": ["test", "train"]
    }  # fmt: skip


def test_a_judge_can_be_given_as_plain_values_from_a_command_line() -> None:
    if not DATA.is_dir():
        pytest.skip("there is no tau2-bench beside the repository")
    env = Tau2Retail(DATA, judge={"url": "http://localhost:9/v1", "model": "m"})
    assert isinstance(env.judge, Judge)
    with pytest.raises(TypeError, match="nope"):
        Tau2Retail(DATA, judge={"url": "http://localhost:9/v1", "model": "m", "nope": 1})
