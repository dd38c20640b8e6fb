"""tau-bench's airline domain: every gold run's recorded answers and final state, and a reward that any wrong write costs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tau_bench import DATA, METHODS, OTTO, UNA, as_recorded, changes, folder_of, play, rows, shared, small_airline, started

from agentgym import AgentGymError, Call, Outcome, call, check_env, format_action
from agentgym.envs.airline import Airline, ledger
from agentgym.envs.airline.flights import direct, one_stop
from agentgym.envs.tau import TRANSFER
from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict, freeze

WRONG_WRITES = (
    call("send_certificate", user_id="mia_li_3668", amount=1),
    call("update_reservation_passengers", reservation_id="4WQ150", passengers=[{"first_name": "A", "last_name": "B", "dob": "C"}] * 3),
    call("cancel_reservation", reservation_id="4WQ150"),
)


@shared
def test_every_gold_run_ends_in_its_recorded_state_with_its_recorded_answers_and_full_reward() -> None:
    env, compared = Airline(DATA), 0
    recorded = {row["id"]: row for row in rows("airline/tasks_test.jsonl")}
    assert [task.id for task in env.tasks("test")] == list(recorded)
    for task in env.tasks("test"):
        answers, reward, terminated = play(started(env, task), env.gold(task))
        assert (reward, terminated) == (1.0, True), task.id
        assert changes(env) == freeze(recorded[task.id]["gt_final_diff"]), task.id
        outputs = [output for output in recorded[task.id]["gt_tool_outputs"] if output is not None]  # that of a transfer
        for answer, expected in zip(answers, outputs, strict=False):
            assert as_recorded(answer, expected) == expected, (task.id, answer)
        compared += len(outputs)
    assert compared >= 74


@shared
@pytest.mark.parametrize("wrong", WRONG_WRITES)
def test_one_wrong_write_costs_the_reward_of_every_task(wrong: str) -> None:
    env = Airline(DATA)
    for task in env.tasks("test"):
        *actions, last = env.gold(task)
        answers, reward, terminated = play(started(env, task), [*actions, wrong, last])
        assert not answers[-2].startswith("Error"), answers[-2]
        assert (reward, terminated) == (0.0, True), task.id


@shared
def test_a_write_that_is_left_out_or_done_otherwise_costs_the_reward() -> None:
    env, left_out, otherwise = Airline(DATA), 0, 0
    for task in env.tasks("test"):
        actions = env.gold(task)
        for number, action in enumerate(actions):
            if any(f'"{name}"' in action for name in ledger.WRITES):
                assert play(started(env, task), [*actions[:number], *actions[number + 1 :]])[1] == 0.0, (task.id, action)
                left_out += 1
            if '"total_baggages": 3' in action:
                other = action.replace('"total_baggages": 3', '"total_baggages": 4')
                assert play(started(env, task), [*actions[:number], other, *actions[number + 1 :]])[1] == 0.0
                otherwise += 1
    assert left_out >= 30
    assert otherwise >= 2


@shared
def test_what_was_to_be_said_must_be_said() -> None:
    env = Airline(DATA)
    task = next(task for task in env.tasks("test") if task.answer["outputs"] == ["327", "1000", "1786"])
    actions = [action for action in env.gold(task) if "respond" not in action]
    assert play(started(env, task), actions)[1] == 0.0
    assert play(started(env, task), ["You have $327 and $1,000.", *actions])[1] == 0.0
    assert play(started(env, task), ["You have $327 and $1,000.", call("respond", content="It is $1,786."), *actions])[1] == 1.0


@shared
def test_a_transfer_ends_the_episode_and_is_scored() -> None:
    env = Airline(DATA)
    task = next(task for task in env.tasks("test") if any(action["name"] == TRANSFER for action in task.answer["actions"]))
    answers, reward, terminated = play(started(env, task), env.gold(task))
    assert (answers[-1], reward, terminated) == ("Transfer successful", 1.0, True)


@shared
def test_all_tools_of_the_benchmark_are_there() -> None:
    names = json.loads((DATA / "tool_names.json").read_text())["airline"]
    assert {tool.name for tool in Airline(DATA).tools} == {*names, "respond", "done"}


@shared
@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("get_user_details", {"user_id": "nobody"}, "Error: user not found"),
        ("get_reservation_details", {"reservation_id": "nothing"}, "Error: user not found"),
        ("cancel_reservation", {"reservation_id": "nothing"}, "Error: reservation not found"),
        ("search_direct_flight", {"origin": "PHL", "destination": "LGA", "date": "2024-05-01"}, "[]"),
        (
            "send_certificate",
            {"user_id": "mia_li_3668", "amount": 50},
            "Certificate certificate_3221322 added to user mia_li_3668 with amount 50.",
        ),
    ],
)
def test_tools_answer_as_the_benchmark_says(tool: str, arguments: dict[str, Any], answer: str) -> None:
    env = Airline(DATA)
    assert started(env, env.tasks("test")[0]).step(format_action(Call(tool, arguments)))[0] == answer


@shared
def test_tables_are_shared_and_forks_are_their_own() -> None:
    one, other = Airline(DATA), Airline(DATA)
    task = one.tasks("test")[0]
    before = started(one, task).snapshot()
    one.step(WRONG_WRITES[0])
    other.restore(before)
    assert other.state.tables is one.domain.tables
    assert one.state.tables != other.state.tables


# The rules, on small tables of our own.

def segments(*numbers: str, date: str = "2024-05-20") -> list[dict[str, str]]:
    return [{"flight_number": number, "date": date} for number in numbers]


def book(tables: FrozenDict, *payments: tuple[str, float], **changed: Any) -> FrozenDict:
    asked = {
        "user_id": "una", "origin": "JFK", "destination": "SEA", "flight_type": "one_way", "cabin": "economy",
        "flights": segments("A", "B"), "passengers": [UNA], "total_baggages": 0, "nonfree_baggages": 0, "insurance": "no",
    } | changed  # fmt: skip
    return ledger.book_reservation(tables, payment_methods=[{"payment_id": id, "amount": amount} for id, amount in payments], **asked)


def una(tables: FrozenDict) -> Any:
    return tables["users"]["una"]


def test_a_booking_takes_from_the_gift_card_and_uses_up_the_certificate() -> None:
    after = book(small_airline(), ("certificate_1", 100), ("gift_card_1", 40), ("credit_card_1", 20))
    assert una(after)["payment_methods"].to_plain() == {
        "gift_card_1": {**METHODS["gift_card_1"], "amount": 160}, "credit_card_1": METHODS["credit_card_1"],
    }  # fmt: skip
    assert list(una(after)["reservations"]) == ["R", "HATHAT"]
    booked = after["reservations"]["HATHAT"].to_plain()
    assert list(booked) == [*small_airline()["reservations"]["R"]]
    assert list(booked["flights"][0].items()) == [
        ("flight_number", "A"), ("date", "2024-05-20"), ("price", 100), ("origin", "JFK"), ("destination", "ORD"),
    ]  # fmt: skip


def test_passengers_bags_and_insurance_are_paid_for() -> None:
    extras = {"passengers": [UNA, OTTO], "insurance": "yes", "total_baggages": 3, "nonfree_baggages": 1}
    with pytest.raises(ToolError, match="payment amount does not add up, total price is 430, but paid 429"):
        book(small_airline(), ("credit_card_1", 429), **extras)
    assert book(small_airline(), ("credit_card_1", 430), **extras)["reservations"]["HATHAT"]["insurance"] == "yes"


@pytest.mark.parametrize(
    ("payment", "changed", "why"),
    [
        (("gift_card_1", 160), {"user_id": "otto"}, "user not found"),
        (("gift_card_1", 160), {"flights": segments("Z")}, "flight Z not found$"),
        (("gift_card_1", 160), {"flights": segments("C", date="2024-05-21")}, "flight C not found on date 2024-05-21"),
        (("gift_card_1", 160), {"flights": segments("A", date="2024-05-21")}, "flight A not available on date 2024-05-21"),
        (("gift_card_1", 160), {"passengers": [UNA, OTTO], "cabin": "business"}, "not enough seats on flight A"),
        (("paypal_1", 160), {}, "payment method paypal_1 not found"),
        (("gift_card_1", 201), {}, "not enough balance in payment method gift_card_1"),
        (("certificate_1", 160), {}, "not enough balance in payment method certificate_1"),
    ],
)
def test_a_booking_is_refused_with_the_benchmarks_words(payment: tuple[str, float], changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ToolError, match=f"^{why}"):
        book(small_airline(), payment, **changed)


def test_new_reservations_have_the_benchmarks_ids() -> None:
    tables, ids = small_airline(), []
    for _ in range(4):
        tables = book(tables, ("credit_card_1", 160))
        ids.append(una(tables)["reservations"][-1])
    assert ids == ["HATHAT", "HATHAU", "HATHAV", "HATHAV"]


def test_a_cancelled_reservation_notes_its_refunds_and_gives_no_balance_back() -> None:
    paid = [{"payment_id": "gift_card_1", "amount": 90}, {"payment_id": "credit_card_1", "amount": 50}]
    after = ledger.cancel_reservation(small_airline(payment_history=paid), "R")
    assert after["reservations"]["R"]["status"] == "cancelled"
    assert [payment["amount"] for payment in after["reservations"]["R"]["payment_history"]] == [90, 50, -90, -50]
    assert una(after)["payment_methods"]["gift_card_1"]["amount"] == 200


def test_cancelling_again_and_again_comes_to_an_end() -> None:
    tables = small_airline()
    for _ in range(6):
        tables = ledger.cancel_reservation(tables, "R")
    with pytest.raises(ToolError, match="reservation R was cancelled too often"):
        ledger.cancel_reservation(tables, "R")


def test_only_more_paid_bags_cost() -> None:
    more = ledger.update_reservation_baggages(small_airline(), "R", 4, 2, "gift_card_1")
    assert una(more)["payment_methods"]["gift_card_1"]["amount"] == 100
    assert more["reservations"]["R"]["payment_history"][-1].to_plain() == {"payment_id": "gift_card_1", "amount": 100}
    fewer = ledger.update_reservation_baggages(more, "R", 1, 0, "gift_card_1")
    assert una(fewer) == una(more)
    assert (fewer["reservations"]["R"]["total_baggages"], len(fewer["reservations"]["R"]["payment_history"])) == (1, 2)


@pytest.mark.parametrize(
    ("payment_id", "why"),
    [
        ("x", "payment method not found"),
        ("certificate_1", "certificate cannot be used to update reservation"),
        ("gift_card_1", "gift card balance is not enough"),
    ],
)
def test_a_change_is_paid_by_card_or_by_a_gift_card_that_suffices(payment_id: str, why: str) -> None:
    with pytest.raises(ToolError, match=why):
        ledger.update_reservation_baggages(small_airline(), "R", 5, 5, payment_id)


def test_a_segment_that_stays_keeps_its_price_and_is_not_checked() -> None:
    full = small_airline().set(("flights", "A", "dates", "2024-05-20", "status"), "delayed")
    after = ledger.update_reservation_flights(full, "R", "economy", segments("A", "B"), "gift_card_1")
    assert [flight["price"] for flight in after["reservations"]["R"]["flights"]] == [90, 60]
    assert una(after)["payment_methods"]["gift_card_1"]["amount"] == 140
    with pytest.raises(ToolError, match="flight A not available"):
        ledger.update_reservation_flights(full, "R", "business", segments("A"), "gift_card_1")


def test_another_cabin_is_charged_for_all_passengers_and_the_record_does_not_show_it() -> None:
    tables = small_airline(cabin="business", passengers=[UNA, OTTO])
    after = ledger.update_reservation_flights(tables, "R", "economy", segments("A"), "gift_card_1")["reservations"]["R"]
    assert (after["cabin"], after["flights"][0]["price"], after["payment_history"][-1]["amount"]) == ("business", 100, 20)
    cheaper = ledger.update_reservation_flights(tables, "R", "economy", segments("D"), "gift_card_1")
    assert una(cheaper)["payment_methods"]["gift_card_1"]["amount"] == 320


def test_the_number_of_passengers_stays() -> None:
    with pytest.raises(ToolError, match="number of passengers does not match"):
        ledger.update_reservation_passengers(small_airline(), "R", [UNA, OTTO])
    assert ledger.update_reservation_passengers(small_airline(), "R", [OTTO])["reservations"]["R"]["passengers"][0]["first_name"] == "Otto"


def test_a_user_gets_at_most_three_certificates() -> None:
    tables = small_airline()
    for amount in (50, 50.0, 100):
        tables = ledger.send_certificate(tables, "una", amount)
    assert [method["amount"] for id, method in una(tables)["payment_methods"].items() if "_322132" in id] == [50, 50.0, 100]
    with pytest.raises(ToolError, match="no more than 3 certificates"):
        ledger.send_certificate(tables, "una", 1)


def test_direct_flights_are_shown_with_the_fields_of_their_date() -> None:
    found = direct(small_airline()["flights"], "ORD", "SEA", "2024-05-20")
    assert [flight["flight_number"] for flight in found] == ["B", "C"]
    assert list(found[0]) == [
        "flight_number", "origin", "destination", "scheduled_departure_time_est", "scheduled_arrival_time_est",
        "status", "available_seats", "prices",
    ]  # fmt: skip


def test_a_second_flight_leaves_after_the_first_arrives_and_is_shown_with_the_first_dates_prices() -> None:
    flights = small_airline()["flights"]
    pairs = one_stop(flights, "JFK", "SEA", "2024-05-20")
    shown = [[(leg["flight_number"], leg["date"], leg["prices"]["economy"]) for leg in pair] for pair in pairs]
    assert shown == [
        [("A", "2024-05-20", 100), ("B", "2024-05-20", 60)],
        [("D", "2024-05-20", 30), ("B", "2024-05-21", 60)],
    ]
    with pytest.raises(KeyError):
        one_stop(flights, "JFK", "LAX", "2024-05-20")


WRITES = st.one_of(
    st.builds(lambda *given: (book, *given), st.tuples(st.sampled_from(sorted(METHODS)), st.sampled_from([100, 160, 100.0]))),
    st.builds(lambda *given: (ledger.cancel_reservation, *given), st.sampled_from(["R", "HATHAT", "x"])),
    st.builds(lambda *given: (ledger.send_certificate, *given), st.just("una"), st.sampled_from([50, 50.0])),
    st.builds(
        lambda numbers, *given: (ledger.update_reservation_flights, "R", "economy", segments(*numbers), *given),
        st.lists(st.sampled_from("ABDZ"), max_size=3), st.sampled_from(sorted(METHODS)),
    ),
    st.builds(lambda *bags: (ledger.update_reservation_baggages, "R", *bags, "gift_card_1"), st.integers(0, 3), st.integers(0, 3)),
)  # fmt: skip


@given(st.lists(WRITES, max_size=8))
def test_whatever_is_written_the_state_hash_is_that_of_tables_made_anew(writes: list[Any]) -> None:
    tables = first = small_airline()
    before = first.digest
    for write, *arguments in writes:
        try:
            tables = write(tables, *arguments)
        except ToolError:
            continue
    assert freeze(tables.to_plain()).digest == tables.digest
    assert freeze(first.to_plain()).digest == before


# The environment, on these.


@pytest.mark.long
def test_the_contract_holds(tmp_path: Path) -> None:
    report = check_env(partial(Airline, folder_of(tmp_path)))
    assert report.ok, report


@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("update_reservation_baggages", {"total_baggages": "2", "nonfree_baggages": 0}, "total_baggages: input should be a valid integer"),
        ("update_reservation_flights", {"cabin": "first", "flights": []}, "cabin: input should be"),
        ("update_reservation_flights", {"cabin": "economy", "flights": [{"flight_number": "A"}]}, "flights.0.date: field required"),
        ("update_reservation_passengers", {"passengers": ["Una"]}, "passengers.0: input should be a valid dictionary"),
    ],
)
def test_bad_arguments_name_the_field(tmp_path: Path, tool: str, arguments: dict[str, Any], answer: str) -> None:
    env = Airline(folder_of(tmp_path))
    observation, _, _, _, info = started(env, env.tasks("test")[0]).step(format_action(Call(tool, {"reservation_id": "R", **arguments})))
    assert observation.startswith(f"Error: {tool}: {answer}")
    assert info["outcome"] == Outcome.MODEL_ERROR


def test_further_fields_of_a_flight_are_kept_in_their_order(tmp_path: Path) -> None:
    env = Airline(folder_of(tmp_path))
    flights = [{"origin": "JFK", "date": "2024-05-20", "flight_number": "D", "seat": "1A"}]
    arguments = {"reservation_id": "R", "cabin": "economy", "flights": flights, "payment_id": "credit_card_1"}
    answer = json.loads(started(env, env.tasks("test")[0]).step(call("update_reservation_flights", **arguments))[0])
    assert list(answer["flights"][0]) == ["origin", "date", "flight_number", "seat", "price", "destination"]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "db" / "reservations.json").unlink()
    with pytest.raises(AgentGymError, match=r"reservations\.json is missing: give tau-bench's folder, with airline/db"):
        Airline(tmp_path)
