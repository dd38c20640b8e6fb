"""The phone and the airline of ACEBench's agents: what their functions do, and the sources that say how they begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError, Call
from agentgym.envs.acebench import AceBench
from agentgym.envs.acebench.simulators import FILES, read_simulators
from agentgym.envs.acebench.town import TABLES
from agentgym.envs.acebench.world import APPS, FUNCTIONS, World

PHONE = ("BaseApi", "MessageApi", "ReminderApi", "FoodPlatform")
ON = {"wifi": True, "logged_in": True, "logged_in_users": []}
LATER = "The airline has canceled the flight."


def phone(**device: Any) -> World:
    return World.start(TABLES, PHONE, {**ON, **device})


def airline() -> World:
    return World.start(TABLES, ["Travel"], ON)


def play(world: World, *calls: Call) -> tuple[World, list[str]]:
    how = []
    for call in calls:
        answer, world = world.answer(call)
        how.append(answer.how)
    return world, how


def shown(world: World, name: str, /, **arguments: Any) -> Any:
    answer, _ = world.answer(Call(name, arguments))
    assert answer.how == "done", answer
    return json.loads(answer.text) if answer.text.startswith("{") else answer.text


def send(message: str = "hello", receiver: str = "Ben") -> Call:
    return Call("send_message", {"sender_name": "Ada", "receiver_name": receiver, "message": message})


def order(product: str, quantity: Any, user: str = "Ada", merchant: str = "Rye and Salt") -> Call:
    items = [{"product": product, "quantity": quantity}]
    return Call("add_food_delivery_order", {"username": user, "merchant_name": merchant, "items": items})


def login(user: str, password: str) -> Call:
    return Call("login_food_platform", {"username": user, "password": password})


def modify(**changes: Any) -> Call:
    return Call("modify_flight", {"user_id": "u2", "reservation_id": "res_1", **changes})


def book(**changes: Any) -> Call:
    known = {"user_id": "u1", "password": "heron", "flight_no": "LT10", "cabin": "Economy Class", "payment_method": "cash"}
    return Call("reserve_flight", {**known, "baggage_count": 1, **changes})


def money(world: World, user: str) -> tuple[float, float]:
    account = world.saved()["Travel"]["users"][user]
    return account["cash_balance"], account["bank_balance"]


# The phone.


@pytest.mark.parametrize(
    ("device", "calls", "how"),
    [
        ({"logged_in": False}, [Call("get_latest_message_id", {}), Call("delete_message", {"message_id": 1})], ["refused"] * 2),
        (
            {"logged_in": False},
            [Call("view_all_reminders", {}), Call("search_messages", {"user_name": "Ada", "keyword": "A"})],
            ["done"] * 2,
        ),
        ({"wifi": False}, [Call("delete_message", {"message_id": 1}), send()], ["done", "refused"]),
        ({}, [send(), Call("delete_message", {"message_id": 1}), send(), send()], ["refused", "done", "done", "refused"]),
        ({}, [Call("delete_message", {"message_id": 1}), send(receiver="Dora")], ["done", "refused"]),
        ({}, [Call("delete_message", {"message_id": one}) for one in ("1", 1.0, 1, [1])], ["refused", "done", "refused", "broken"]),
        ({"wifi": False}, [login("Ada", "heron"), Call("turn_on_wifi", {}), login("Ada", "heron")], ["refused", "done", "done"]),
        (
            {},
            [login("Ada", "otter"), login("Dora", "x"), login("Ada", "heron"), login("Ada", "heron")],
            ["refused", "refused", "done", "refused"],
        ),
        ({"logged_in_users": ["Ben"]}, [order("Rye Loaf", 1, "Ben"), order("Rye Loaf", 1)], ["refused", "refused"]),
        (
            {"logged_in_users": ["Ada"]},
            [order("Rye Loaf", one) for one in (0, 1.0, "1", True, 4, 1)],
            ["refused"] * 3 + ["done", "done", "refused"],
        ),
        (
            {"logged_in_users": ["Ada"]},
            [order("Lime Tea", one, merchant="The Kettle") for one in (11, 10, 1)],
            ["refused", "done", "refused"],
        ),
        ({"logged_in_users": ["Ada"]}, [order("Mint Tea", 1), order("Rye Loaf", 1, merchant="None")], ["refused", "refused"]),
    ],
)
def test_what_the_phone_refuses(device: dict[str, Any], calls: list[Call], how: list[str]) -> None:
    assert play(phone(**device), *calls)[1] == how


def test_messages_are_found_by_their_times_and_by_their_words() -> None:
    world = phone()
    assert (shown(world, "get_latest_message_id")["message_id"], shown(world, "get_earliest_message_id")["message_id"]) == (3, 2)
    found = shown(world, "view_messages_between_users", sender_name="Cleo", receiver_name="Ben")["messages"]
    assert found == [{"id": 2, "sender": "Cleo", "receiver": "Ben", "message": "The choir meets on Friday at seven."}]
    assert [one["id"] for one in shown(world, "search_messages", user_name="Ada", keyword="UMBRELLA")["messages"]] == [3]
    assert [one["id"] for one in shown(world, "search_messages", user_name="Ben", keyword="e")["messages"]] == [1, 2]
    assert shown(world, "get_all_message_times_with_ids") == {"1": "2024-05-02", "2": "2024-03-30", "3": "2024-05-20"}


def test_a_message_that_was_sent_has_a_new_number_and_no_time() -> None:
    world, how = play(phone(), Call("delete_message", {"message_id": 3}), send("hi"), Call("get_latest_message_id", {}))
    assert how == ["done", "done", "broken"]
    inbox = world.saved()["MessageApi"]["inbox"]
    assert (list(inbox), inbox["4"]) == (["1", "2", "4"], {"sender_id": "P1", "receiver_id": "P2", "message": "hi"})


def test_reminders_are_numbered_on_and_their_memory_has_an_end() -> None:
    note = [Call("add_reminder", {"title": title, "description": "d", "time": "now"}) for title in "abc"]
    world, how = play(phone(), *note, Call("delete_reminder", {"reminder_id": 2}), note[2], Call("delete_reminder", {"reminder_id": 501}))
    assert how == ["done", "done", "refused", "done", "done", "refused"]
    reminders = world.saved()["ReminderApi"]["reminder_list"]
    assert list(reminders) == ["1", "3", "4"]
    assert reminders["4"] == {"reminder_id": 4, "title": "c", "description": "d", "time": "now", "notified": False}
    assert shown(world, "view_reminder_by_title", title="b")["reminder"]["reminder_id"] == 3
    assert [one["title"] for one in shown(world, "view_all_reminders")["reminders"]] == ["Garden", "b", "c"]


def test_an_order_takes_its_price_from_the_balance() -> None:
    items = [{"product": "Rye Loaf", "quantity": 2}, {"product": "Salt Loaf"}]
    world, how = play(
        phone(logged_in_users=["Ada"]),
        Call("add_food_delivery_order", {"username": "Ada", "merchant_name": "Rye and Salt", "items": items}),
    )
    food = world.saved()["FoodPlatform"]
    assert (how, food["users"]["Ada"]["balance"], food["orders"][0]["total_price"]) == (["done"], 16.0, 24.0)
    assert food["orders"][0]["items"][1] == {"product": "Salt Loaf", "quantity": 1, "price_per_unit": 9.0}
    assert (shown(world, "check_balance", user_name="Ada"), shown(world, "check_balance", user_name="Dora")) == ("16.0", "0.0")
    assert shown(world, "search_orders", keyword="SALT L")["orders"] == shown(world, "view_orders", user_name="Ada")["orders"]


def test_the_apps_of_the_phone_share_one_device_and_only_those_of_the_task_are_there() -> None:
    world = World.start(TABLES, ["MessageApi"], {**ON, "wifi": False})
    world, how = play(world, Call("turn_on_wifi", {}), Call("delete_message", {"message_id": 1}), send(), login("Ada", "heron"))
    assert how == ["done", "done", "done", "unknown"]
    assert world.saved().keys() == {"MessageApi"}
    assert play(airline(), Call("turn_on_wifi", {}), Call("_booking", {}))[1] == ["unknown"] * 2


# The airline.


@pytest.mark.parametrize(
    ("call", "cash", "bank"),
    [
        (book(), 300.0, 90.0),
        (book(baggage_count=4), 150.0, 90.0),
        (book(cabin="Business Class", baggage_count=3), 100.0, 90.0),
    ],
)
def test_a_booking_costs_its_cabin_and_the_bags_that_are_not_free(call: Call, cash: float, bank: float) -> None:
    world, how = play(airline(), call)
    assert (how, money(world, "u1")) == (["done"], (cash, bank))
    booked = {name: call.arguments[name] for name in ("user_id", "flight_no", "payment_method", "cabin")}
    assert world.saved()["Travel"]["reservations"][1] == {"reservation_id": "res_2", **booked, "baggage": call.arguments["baggage_count"]}
    assert world.parts["Travel"]["flights"][0]["seats_available"] == 3


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"payment_method": "bank"}, "refused"),
        ({"payment_method": "card"}, "refused"),
        ({"password": "otter"}, "broken"),
        ({"flight_no": "XX1"}, "broken"),
        ({"cabin": "First"}, "broken"),
        ({"baggage_count": "1"}, "broken"),
        ({"unheard_of": 1}, "broken"),
    ],
)
def test_a_booking_that_cannot_be_made_changes_nothing(changes: dict[str, Any], how: str) -> None:
    world, found = play(airline(), book(**changes))
    assert (found, world) == ([how], airline())


@pytest.mark.parametrize(
    ("changes", "bank", "booked"),
    [
        ({"new_flight_no": "LT30"}, 700.0, {"flight_no": "LT30"}),
        ({"new_cabin": "Business Class"}, 550.0, {"cabin": "Business Class"}),
        ({"new_flight_no": "LT30", "new_cabin": "Business Class"}, 550.0, {"flight_no": "LT30", "cabin": "Business Class"}),
        ({"add_baggage": 2}, 600.0, {"baggage": 5}),
        ({"add_baggage": 20}, 700.0, {"baggage": 23}),
        ({"new_cabin": "Business Class", "new_payment_method": "cash"}, 700.0, {"cabin": "Business Class"}),
        ({"new_cabin": "First"}, 900.0, {"cabin": "First"}),
        ({"new_cabin": "Business Class", "new_payment_method": "card"}, 700.0, {"cabin": "Business Class"}),
    ],
)
def test_a_change_is_paid_as_the_benchmark_has_it(changes: dict[str, Any], bank: float, booked: dict[str, Any]) -> None:
    world, how = play(airline(), modify(**changes))
    known = airline().saved()["Travel"]["reservations"][0]
    assert (how, money(world, "u2")) == (["done"], (20.0, bank))
    assert world.saved()["Travel"]["reservations"] == [{**known, **booked}]


def test_bags_that_were_paid_are_paid_again_with_each_that_is_added() -> None:
    world, _ = play(airline(), modify(add_baggage=1), modify(add_baggage=1))
    assert money(world, "u2") == (20.0, 700.0 - 50 - 100)


def test_a_change_that_breaks_down_midway_leaves_what_it_has_changed() -> None:
    world, how = play(airline(), modify(new_flight_no="LT30", add_baggage="1"))
    assert (how, world.saved()["Travel"]["reservations"][0]["flight_no"]) == (["broken"], "LT30")


@pytest.mark.parametrize("end", ["origin", "destination"])
def test_a_flight_between_other_cities_is_no_change(end: str) -> None:
    world = World.start(TABLES.set(["Travel", "flights", 1, end], "Oslo"), ["Travel"], ON)
    assert play(world, modify(new_flight_no="LT30", new_cabin="Business Class")) == (world, ["refused"])


@pytest.mark.parametrize(
    ("leaves", "reason", "cash"),
    [
        ("2024-07-15 06:00:01", "other", 220.0),
        ("2024-07-15 06:00:00", "other", 200.0),
        ("2024-07-14 06:00:00", "other", 200.0),
        ("2024-07-14 05:59:59", "other", None),
        ("2024-07-14 05:59:59", LATER, None),
        ("2024-07-14 07:00:00", LATER, 220.0),
    ],
)
def test_a_cancellation_gives_back_cash_less_a_tenth_on_the_last_day(leaves: str, reason: str, cash: float | None) -> None:
    world = World.start(TABLES.set(["Travel", "flights", 0, "depart_time"], leaves), ["Travel"], ON)
    after, how = play(world, Call("cancel_reservation", {"user_id": "u2", "reservation_id": "res_1", "reason": reason}))
    assert (how, money(after, "u2")) == ((["refused"], (20.0, 700.0)) if cash is None else (["done"], (cash, 700.0)))
    assert after.saved()["Travel"]["reservations"] == world.saved()["Travel"]["reservations"]


def test_flights_are_found_directly_and_by_way_of_a_city() -> None:
    world = airline()
    assert shown(world, "get_flight_details", origin="Lund").count("flight_no") == 2
    assert "LT10" in (by_turin := shown(world, "find_transfer_flights", origin_city="Lund", transfer_city="Turin", destination_city="Oslo"))
    assert "LT30" not in by_turin
    assert "password" not in shown(world, "get_user_details", user_id="u2", password="otter")
    assert shown(world, "get_reservation_details", user_id="u2").count("reservation_id") == 1
    assert [shown(world, "get_baggage_allowance", membership_level=one, cabin_class="Economy Class") for one in ("silver", "x")] == [
        "2",
        "0",
    ]
    refused = [
        ("get_flight_details", {"origin": "Oslo"}),
        ("get_reservation_details", {}),
        ("get_user_details", {"user_id": "u2", "password": "x"}),
    ]
    assert play(world, *(Call(*one) for one in refused))[1] == ["refused"] * 3


# Whatever is passed.


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["Ada", "Ben", "u2", "res_1", "LT10", "cash", "Business Class"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["product", "quantity"]) | st.integers(), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = [
    "user_id",
    "password",
    "reservation_id",
    "message_id",
    "title",
    "description",
    "time",
    "items",
    "add_baggage",
    "new_cabin",
    "reason",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)), max_size=4))
def test_whatever_is_called_is_answered_and_the_world_before_it_stays(calls: list[tuple[str, dict[str, Any]]]) -> None:
    world = World.start(TABLES, tuple(APPS), ON)
    before = world.saved()
    after, _ = play(world, *(Call(*one) for one in calls))
    assert (world.saved(), world.parts) == (before, World.start(TABLES, tuple(APPS), ON).parts)
    json.dumps(after.saved())


@pytest.mark.parametrize("value", [{"a": 1}, [[[{1: 2}]]], [{"a": json.loads("[" * 40 + "]" * 40)}]])
def test_what_no_table_can_hold_is_refused_and_changes_nothing(value: Any) -> None:
    world, how = play(phone(), Call("add_reminder", {"title": value, "description": "d", "time": "t"}))
    assert (how, world) == (["broken"], phone())


# The sources.


def written(tables: Any) -> dict[str, str]:
    """Our own world as the benchmark writes its own."""
    files = {}
    for owner, (file, model) in FILES.items():
        found = {name: value for name, value in tables[owner].to_plain().items() if name in model.model_fields}
        numbered = {
            name: {int(key): one for key, one in value.items()} for name, value in found.items() if name in ("inbox", "reminder_list")
        }
        lines = [f"        self.{name}: dict = {value!r}" for name, value in {**found, **numbered}.items()]
        files[file] = "\n".join(
            ["import no_such_module", f"class {owner}(BaseApi):", "    def __init__(self):", "        super().__init__()", *lines]
        )
    return files


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "simulators"
    (folder / "phone_platform").mkdir(parents=True)
    for file, text in written(TABLES).items():
        (folder / file).write_text(text + "\n")
    return folder


def test_the_tables_are_read_from_the_sources_without_running_them(sources: Path) -> None:
    assert read_simulators(sources) == TABLES


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (
            "travel.py",
            "self.flights: dict = ",
            "self.flights: dict = __import__('pathlib').Path('MARK').touch() or ",
            "class Travel: flights: Field req",
        ),
        ("travel.py", "class Travel", "class Trip", "class Travel: users: Field required; flights: .*Get it anew from github ACEBench"),
        ("travel.py", "'LT10'", "10", r"class Travel: flights\.0\.flight_no: Input should be a valid string"),
        ("travel.py", "self.users", "self.users = (", "travel.py cannot be read"),
        (
            "phone_platform/message.py",
            "self.max_capacity: dict = 3",
            "self.max_capacity = '3'",
            "class MessageApi: max_capacity: Input should be a valid int",
        ),
        (
            "phone_platform/food_services.py",
            "'price': 7.5",
            "'cost': 7.5",
            r"FoodPlatform: merchant_list\.Rye and Salt\.menu\.0\.price: Field required",
        ),
    ],
)
def test_a_source_that_does_not_fit_is_named_and_never_run(sources: Path, file: str, old: str, new: str, why: str) -> None:
    mark = sources / "ran"
    text = (sources / file).read_text()
    assert old in text
    (sources / file).write_text(text.replace(old, new.replace("MARK", str(mark))))
    with pytest.raises(AgentGymError, match=why):
        read_simulators(sources)
    assert not mark.exists()


def test_absent_simulators_are_told_with_their_source_before_an_episode(tmp_path: Path) -> None:
    (tmp_path / "agent_multi_step.jsonl").write_text("")
    env = AceBench(tmp_path)
    with pytest.raises(AgentGymError, match=r"simulators/phone_platform/message.py cannot be read .*commit e6db74b735ea.*simulators="):
        env.tasks("agent_multi_step")


def test_simulators_are_found_within_the_data_or_where_they_are_said_to_be(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "agent_multi_step.jsonl").write_text("")
    assert AceBench(tmp_path).tasks("agent_multi_step") == ()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "agent_multi_turn.jsonl").write_text("")
    assert AceBench(tmp_path / "elsewhere", simulators=sources).tasks("agent_multi_turn") == ()
