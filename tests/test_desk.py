"""The service desk: what its tools write, that the final state alone counts, and an expert that can err."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import Lineage, Outcome, Rollout, Start, Task, TurnTree, call, check_env
from agentgym.envs.desk import Desk
from agentgym.envs.desk.expert import Expert, Memory, next_step
from agentgym.envs.desk.shop import COLOURS, CUSTOMERS, EXCHANGE, KINDS, MOVE, PRODUCTS, SIZES, split_of
from agentgym.expand import Groups
from agentgym.turn import total_reward

TABLES = {
    "customers": {"Anna": {"town": "Bergen", "orders": ["Lyon", "Turku"]}, "Omar": {"town": "Varna", "orders": ["Tartu"]}},
    "orders": {
        "Lyon": {"item": "Sligo", "status": "pending", "town": "Bergen"},
        "Turku": {"item": "Narva", "status": "delivered", "town": "Bergen"},
        "Tartu": {"item": "Sligo", "status": "pending", "town": "Varna"},
    },
    "items": {
        "Sligo": {"product": "Lamp", "colour": "Red", "stock": 0},
        "Parma": {"product": "Lamp", "colour": "Blue", "stock": 2},
        "Udine": {"product": "Lamp", "colour": "Green", "stock": 0},
        "Narva": {"product": "Chair", "colour": "Red", "stock": 1},
    },
}


def case(kind: str, wish: str = "", product: str = "Lamp", writes: Sequence[tuple[str, dict[str, str]]] = ()) -> Task:
    data = {"kind": kind, "customer": "Anna", "product": product, "wish": wish, "tables": TABLES}
    return Task("case", "Do it.", list(writes), data=data)


def started(task: Task) -> Desk:
    env = Desk()
    env.reset(seed=0, options={"task": task})
    return env


def said(env: Desk, tool: str, **arguments: str) -> str:
    return env.step(call(tool, **arguments))[0]


def expert_play(tasks: Iterable[Task], mistakes: float, seed: int = 0) -> list[TurnTree]:
    rollout = Rollout(Desk, Groups(1, "expert"), {"expert": Expert(seed, mistakes)}, None, Lineage.of(0, "test"))
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def returns(trees: Iterable[TurnTree]) -> list[float]:
    return [total_reward(leaf) or 0.0 for tree in trees for leaf in tree.leaves()]


def test_look_ups_show_the_names_that_writes_need_in_few_words() -> None:
    env = started(case("return"))
    assert said(env, "customer", name="Anna") == "Anna of Bergen. Orders: Lyon, Turku."
    assert said(env, "order", name="Lyon") == "Lyon: Lamp in Red, pending, to Bergen."
    assert said(env, "product", name="Lamp") == "Lamp. Red: sold out. Blue: Parma. Green: sold out."
    assert env.state.tables is env.state.start


@pytest.mark.parametrize(
    ("tool", "arguments", "changed"),
    [
        ("cancel", {"order": "Lyon"}, {("orders", "Lyon", "status"): "cancelled"}),
        ("refund", {"order": "Turku"}, {("orders", "Turku", "status"): "refunded"}),
        ("send", {"order": "Lyon", "town": "Cork"}, {("orders", "Lyon", "town"): "Cork"}),
        ("move", {"customer": "Anna", "town": "Cork"}, {("customers", "Anna", "town"): "Cork"}),
        (
            "exchange",
            {"order": "Lyon", "item": "Parma"},
            {("orders", "Lyon", "item"): "Parma", ("items", "Parma", "stock"): 1, ("items", "Sligo", "stock"): 1},
        ),
    ],
)
def test_a_write_changes_its_rows_and_no_others(tool: str, arguments: dict[str, str], changed: dict[tuple[str, ...], object]) -> None:
    env = started(case("return"))
    said(env, tool, **arguments)
    expected = env.state.start
    for place, value in changed.items():
        expected = expected.set(place, value)
    assert env.state.tables == expected


@pytest.mark.parametrize(
    ("tool", "arguments", "why"),
    [
        ("cancel", {"order": "Turku"}, "Turku is delivered, not pending"),
        ("refund", {"order": "Lyon"}, "Lyon is pending, not delivered"),
        ("exchange", {"order": "Lyon", "item": "Udine"}, "Udine is sold out"),
        ("exchange", {"order": "Lyon", "item": "Narva"}, "Narva is no other Lamp"),
        ("exchange", {"order": "Lyon", "item": "Sligo"}, "Sligo is no other Lamp"),
        ("exchange", {"order": "Lyon", "item": "Cork"}, "there is no item 'Cork'"),
        ("order", {"name": "Cork"}, "there is no order 'Cork'"),
        ("product", {"name": "Cork"}, "there is no product 'Cork'"),
        ("move", {"customer": "Cork", "town": "Cork"}, "there is no customer 'Cork'"),
    ],
)
def test_a_refused_call_says_why_and_changes_nothing(tool: str, arguments: dict[str, str], why: str) -> None:
    env = started(case("return"))
    observation, _, _, _, info = env.step(call(tool, **arguments))
    assert (observation, info["outcome"]) == (f"Error: {why}", Outcome.TOOL_ERROR)
    assert env.state.tables is env.state.start


def test_the_right_final_state_is_rewarded_whatever_way_led_there() -> None:
    task = case("send", "Cork", writes=[("send", {"order": "Lyon", "town": "Cork"})])
    env = started(task)
    said(env, "send", order="Lyon", town="Varna")
    said(env, "send", order="Lyon", town="Cork")
    assert env.step(call("done"))[1:3] == (1.0, True)


@pytest.mark.parametrize("write", [[], ["cancel"], ["send", "move"]])
def test_a_write_too_few_and_a_write_too_many_are_not_rewarded(write: list[str]) -> None:
    env = started(case("send", "Cork", writes=[("send", {"order": "Lyon", "town": "Cork"})]))
    arguments = {"cancel": {"order": "Lyon"}, "send": {"order": "Lyon", "town": "Cork"}, "move": {"customer": "Omar", "town": "Cork"}}
    for tool in write:
        assert not said(env, tool, **arguments[tool]).startswith("Error")
    assert env.step(call("done"))[1:3] == (0.0, True)


def test_who_never_says_that_it_is_done_earns_nothing() -> None:
    env = started(case("send", "Cork", writes=[("send", {"order": "Lyon", "town": "Cork"})]))
    for _ in range(10):
        _, reward, terminated, truncated, _ = env.step(call("send", order="Lyon", town="Cork"))
    assert (reward, terminated, truncated) == (0.0, False, True)


def test_each_task_needs_a_write_and_each_kind_is_as_frequent() -> None:
    for split, size in SIZES.items():
        tasks = Desk().tasks(split)
        assert Counter(task.data["kind"] for task in tasks) == dict.fromkeys(KINDS, size // len(KINDS))
        assert all(task.answer for task in tasks)
        assert len({task.prompt for task in tasks}) > size / 4


def test_the_name_that_a_write_needs_is_not_in_the_prompt() -> None:
    for task in Desk().tasks("validation"):
        names = {value for _, arguments in task.answer for key, value in arguments.items() if key in ("order", "item")}
        assert names
        assert not names & set(task.prompt.rstrip(".").replace(",", "").split())


def test_shops_of_different_splits_share_no_names_but_those_of_people_and_things() -> None:
    common = {*CUSTOMERS, *PRODUCTS, *COLOURS}
    for split in SIZES:
        for task in Desk().tasks(split)[:50]:
            tables = task.data["tables"]
            towns = {*tables["orders"], *tables["items"], *(row["town"] for row in tables["customers"].values())}
            assert {split_of(town) for town in towns} == {split}
            assert not towns & common


def test_who_is_done_at_once_or_guesses_one_write_earns_little() -> None:
    guessed = []
    for task in Desk().tasks("validation"):
        env = started(task)
        order = task.data["tables"]["customers"][task.data["customer"]]["orders"][0]
        said(env, "cancel", order=order)
        guessed.append(float(env.step(call("done"))[1]))
    assert sum(guessed) / len(guessed) < 0.2


def test_the_expert_solves_all_and_half_when_it_errs_within_few_words() -> None:
    tasks = Desk().tasks("validation")
    right = expert_play(tasks, mistakes=0.0)
    assert min(returns(right)) == 1.0
    assert max(leaf.depth for tree in right for leaf in tree.leaves()) <= 6
    erring = returns(expert_play(tasks, mistakes=0.3))
    assert 0.2 < sum(erring) / len(erring) < 0.6
    texts = [str(reply["content"]) for tree in right for turn in tree.turns[1:] for reply in turn.replies]
    assert max(map(len, texts)) < 100


def test_gold_is_what_the_grader_asks_for() -> None:
    for task in [*Desk().tasks("test")[:40], case(EXCHANGE, "Blue", writes=[("exchange", {"order": "Lyon", "item": "Parma"})])]:
        env = started(task)
        *_, last = [env.step(action) for action in env.gold(task)]
        assert last[1:3] == (1.0, True)
        assert last[4]["metrics"] == {f"success/{task.data['kind']}": 1.0}


def test_the_expert_goes_on_from_where_another_began() -> None:
    memory = Memory(orders=["Lyon", "Turku"], seen={"Lyon": ("Lamp", "pending"), "Turku": ("Chair", "delivered")}, written={"move"})
    step = next_step({"kind": MOVE, "customer": "Anna", "product": "", "wish": "Cork"}, memory)
    assert (step.tool, step.arguments) == ("send", {"order": "Lyon", "town": "Cork"})


def test_demonstrations_are_the_same_for_the_same_seed_and_each_is_new() -> None:
    first, again = (Desk().demonstrations(None, seed=5, mistakes=0.3).play(6) for _ in range(2))
    actions = [[turn.action for turn in tree.turns] for tree in first]
    assert actions == [[turn.action for turn in tree.turns] for tree in again]
    assert len({tree.task.id for tree in first}) > 1


@given(st.lists(st.sampled_from([("cancel", "Lyon"), ("refund", "Turku"), ("cancel", "Tartu"), ("refund", "Lyon")]), max_size=5))
@settings(max_examples=50)
def test_a_fork_at_any_turn_goes_on_as_the_trunk_does(writes: list[tuple[str, str]]) -> None:
    env = started(case("return"))
    snapshots = []
    for tool, order in writes:
        snapshots.append(env.snapshot())
        said(env, tool, order=order)
    for number, snapshot in enumerate(snapshots):
        other = Desk()
        other.restore(snapshot)
        for tool, order in writes[number:]:
            said(other, tool, order=order)
        assert (other.state, other.key()) == (env.state, env.key())


def test_keys_tell_states_apart_by_tables_and_by_what_was_read() -> None:
    env = started(case("return"))
    keys = [env.key()]
    for tool, arguments in (("order", {"name": "Lyon"}), ("order", {"name": "Turku"}), ("cancel", {"order": "Lyon"})):
        said(env, tool, **arguments)
        keys.append(env.key())
    assert len(set(keys)) == 4


@pytest.mark.long
def test_the_contract_holds() -> None:
    report = check_env(Desk)
    assert report.ok, report


def test_who_moves_and_has_all_orders_sent_blindly_earns_nothing():
    """To look at orders must be worth it."""
    env = Desk()
    moves = [task for task in env.tasks("validation") if task.data["kind"] == "move"]
    for task in moves[:12]:
        env.reset(options={"task": task})
        customer, town = task.data["customer"], task.data["wish"]
        orders = env.step(call("customer", name=customer))[0].partition("Orders: ")[2].rstrip(".").split(", ")
        for action in (call("move", customer=customer, town=town), *(call("send", order=order, town=town) for order in orders)):
            env.step(action)
        assert env.step(call("done"))[1] == 0.0
