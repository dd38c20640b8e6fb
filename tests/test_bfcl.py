"""BFCL in many turns: every recorded answer and state of the shared half, what a turn is judged by, and hostile calls."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError, Call, Outcome, Prompt, Task, call, check_env, evaluate, format_action
from agentgym.envs.bfcl import MOST_STEPS, Functions
from agentgym.envs.bfcl.apis import APIS, DOCUMENTS
from agentgym.envs.bfcl.backends import Backends
from agentgym.envs.calls import read_written
from agentgym.policies.scripted import Scripted

DATA = Path(__file__).parents[2] / "shared" / "data" / "bfcl-v4"
MULTI = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param")
IMPOSSIBLE = {"live_multiple_862-181-3", "live_multiple_964-207-0", "live_simple_106-63-0"}  # the allowed values contradict the description
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"BFCL is not at {DATA}")


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").open()]


def task_of(env: Functions, split: str, id: str) -> Task:
    return next(task for task in env.tasks(split) if task.id == id)


def started(env: Functions, task: Task) -> Functions:
    env.reset(seed=0, options={"task": task})
    return env


def play(env: Functions, actions: list[str]) -> tuple[list[str], float, bool]:
    replies = [env.step(action) for action in actions]
    return [str(reply[0]) for reply in replies], float(replies[-1][1]), replies[-1][2]


def recorded_state(fields: dict[str, Any]) -> dict[str, Any]:
    """As ours: without the mark of another category, and with a set as a sorted list."""
    plain = {name: value for name, value in fields.items() if name != "long_context"}
    if isinstance(ids := plain.get("generated_ids"), str):
        plain["generated_ids"] = sorted(ast.literal_eval(ids)) if ids != "set()" else []
    return plain


# The backends, against what was recorded.


@shared
def test_every_gold_call_gives_its_recorded_answer_and_every_backend_ends_in_its_recorded_state() -> None:
    tables, answers, states = Functions(DATA)._benchmark.tables, 0, 0
    for row in (row for split in MULTI for row in rows(split)):
        backends = Backends.start(row["involved_classes"], row["initial_config"], tables)
        for written, recorded in zip(row["ground_truth"], row["gt_results"], strict=True):
            for text, expected in zip(written, recorded, strict=True):
                asked, backends = backends.read(tables, text)
                answer, _, backends = backends.answer(tables, asked)
                assert answer == expected, (row["id"], text)
                answers += 1
        found = json.loads(json.dumps(backends.public()))
        for name, fields in row["gt_final_state"].items():
            assert found[name] == recorded_state(fields), (row["id"], name)
            states += 1
    assert (answers, states) == (1576, 477)


@shared
def test_every_gold_run_earns_full_reward_and_three_tasks_allow_no_answer() -> None:
    env, played, impossible = Functions(DATA), 0, set()
    for task in (task for split in env.splits for task in env.tasks(split)):
        actions = env.gold(task)
        if actions is None:
            impossible.add(task.id)
            continue
        assert play(started(env, task), actions)[1:] == (1.0, True), task.id
        played += 1
    assert (played, impossible) == (1556, IMPOSSIBLE)


@shared
def test_the_functions_are_those_that_the_benchmark_describes() -> None:
    for api, document in DOCUMENTS.items():
        described = {row["name"]: row["parameters"] for row in map(json.loads, (DATA / "multi_turn_func_doc" / f"{document}.jsonl").open())}
        ours = {name: function for name, function in vars(api).items() if inspect.isfunction(function) and name[0] != "_"}
        assert ours.keys() == described.keys()
        for name, function in ours.items():
            parameters = [parameter for parameter in inspect.signature(function).parameters.values() if parameter.name != "self"]
            assert {parameter.name for parameter in parameters} == described[name]["properties"].keys(), name
            required = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
            assert required == set(described[name]["required"]), name


FILES, TWEET = "GorillaFileSystem", "authenticate_twitter('john', 'john123'); post_tweet('x', ['#y']); "


@shared
@pytest.mark.parametrize(
    ("owner", "calls", "answer"),
    [
        (FILES, "pwd()", {"current_working_directory": "//"}),
        (FILES, "cd('a/b')", {"error": "cd: a/b: Unsupported path. Only one folder level at a time is supported."}),
        (FILES, "cd('..')", {"error": "Current directory is already the root. Cannot go back."}),
        (FILES, "touch('a'); touch('a')", {"error": "touch: cannot touch 'a': File exists"}),
        (FILES, "mkdir('a'); cd('a'); touch('b'); cd('/'); cp('a', 'c'); find('.', 'b')", {"matches": ["./a/b", "./c/b"]}),
        (FILES, "mkdir('a'); touch('b'); mv('b', 'a'); rmdir('a')", {"error": "rmdir: cannot remove 'a': Directory not empty"}),
        (FILES, "touch('a'); echo('b\\na', 'a'); sort('a')", {"sorted_content": "a\nb"}),
        ("MathAPI", "divide(1, 0)", {"error": "Cannot divide by zero"}),
        ("MathAPI", "square_root(2, 5)", "{'result': Decimal('1.4142')}"),
        ("MathAPI", "imperial_si_conversion(100, 'celsius', 'fahrenheit')", {"result": 212.0}),
        ("MessageAPI", "send_message('USR002', 'x')", {"error": "No user is currently logged in."}),
        ("MessageAPI", "message_login('USR001'); get_message_stats()", {"stats": {"received_count": 3, "total_contacts": 3}}),
        ("TicketAPI", "ticket_login('a', '')", {"success": False}),
        (
            "TicketAPI",
            "ticket_login('a', 'b'); create_ticket('t', priority=6)",
            {"error": "Invalid priority. Priority must be between 1 and 5."},
        ),
        ("TwitterAPI", f"{TWEET} search_tweets('#Y')", "[{'id': 0, 'username': 'john', 'content': 'x', 'tags': ['#y'], 'mentions': []}]"),
        ("TwitterAPI", f"{TWEET} comment(0, 'z'); get_tweet_comments(0)", "[{'username': 'john', 'content': 'z'}]"),
        (
            "TradingBot",
            "trading_login('a', 'b'); place_order('Buy', 'AAPL', 227, 100)",
            {"error": "Insufficient funds: required $22700.00 but only $10000.00 available."},
        ),
        (
            "TradingBot",
            "get_order_details('12345')",
            {"error": "Order with ID 12345 not found.Here is the list of orders_id: [12345, 12446]"},
        ),
        (
            "TravelAPI",
            "get_flight_cost('SFO', 'HKG', '2026-01-01', 'first')",
            "Error during execution: No available route for the given airports.",
        ),
        ("VehicleControlAPI", "pressBrakePedal(1); startEngine('STOP'); displayCarStatus('engine')", {"engineState": "stopped"}),
    ],
)
def test_backends_refuse_and_answer_in_the_benchmarks_words(owner: str, calls: str, answer: Any) -> None:
    tables = Functions(DATA)._benchmark.tables
    backends = Backends.start([owner], {}, tables)
    for text in calls.split("; "):
        asked, backends = backends.read(tables, text)
        found, _, backends = backends.answer(tables, asked)
    assert found == (answer if isinstance(answer, str) else json.dumps(answer))


@shared
def test_a_call_in_the_arguments_of_a_call_is_made_first() -> None:
    tables = Functions(DATA)._benchmark.tables
    written = "set_budget_limit(access_token=list_all_airports(), budget_limit=1)"
    asked, _ = Backends.start(["TravelAPI"], {}, tables).read(tables, written)
    assert asked.arguments == {"access_token": tables["TravelAPI_airports"], "budget_limit": 1}


# What a turn is judged by.


def base(env: Functions) -> Task:
    """Three turns: a search and a copy, in a file system."""
    return task_of(env, "multi_turn_base", "multi_turn_base_3")


@shared
def test_a_wrong_write_a_missing_answer_and_an_empty_turn_each_cost_the_reward() -> None:
    env = Functions(DATA)
    task = base(env)
    first, end, second, over = env.gold(task) or []
    assert play(started(env, task), [first, call("touch", file_name="odd"), end, second, over])[1] == 0.0
    assert play(started(env, task), [call("ls"), end, second, over])[1] == 0.0
    assert play(started(env, task), [end, first, second, over])[1] == 0.0
    assert play(started(env, task), [first, call("ls"), end, second, call("pwd"), over])[1] == 1.0


@shared
def test_an_answer_that_was_had_in_an_earlier_turn_counts_but_each_turn_needs_a_call() -> None:
    env = Functions(DATA)
    task = base(env)
    first, end, second, over = env.gold(task) or []
    assert play(started(env, task), [first, second, end, over])[1] == 0.0
    row = {**task.answer, "calls": [[], task.answer["calls"][0]]}
    later = Task("later", task.prompt, row, task.split, task.data)
    assert play(started(env, later), [first, end, call("pwd"), over])[1] == 1.0
    assert play(started(env, later), [first, end, over])[1] == 0.0
    assert env.state.passed == (True, False)


@shared
def test_the_next_message_of_the_user_comes_when_a_turn_ends_and_a_malformed_action_ends_it() -> None:
    env = Functions(DATA)
    task = base(env)
    started(env, task)
    assert env.step("Done.")[0] == task.data["turns"][1][0]["content"]
    started(env, task)
    observation, _, terminated, _, info = env.step('<tool_call>{"name": ')
    assert (observation, terminated, info["outcome"]) == (task.data["turns"][1][0]["content"], False, Outcome.MODEL_ERROR)
    assert info["messages"] == task.data["turns"][1]


@shared
def test_more_than_20_actions_with_calls_in_one_turn_end_the_episode() -> None:
    env = Functions(DATA)
    task = base(env)
    first, end, second, over = env.gold(task) or []
    looks = [call("ls")] * (MOST_STEPS - 1)
    assert play(started(env, task), [first, *looks, end, second, *looks, over])[1:] == (1.0, True)
    assert play(started(env, task), [first, *looks, call("ls")])[1:] == (0.0, True)


@shared
def test_a_withheld_function_is_announced_in_its_turn_and_an_excluded_one_never() -> None:
    env = Functions(DATA)
    task = task_of(env, "multi_turn_miss_func", "multi_turn_miss_func_0")
    started(env, task)
    assert not {"sort", "cp"} & {tool.name for tool in env.tools}
    gold = iter(env.gold(task) or [])
    for action in gold:
        observation = str(env.step(action)[0])
        if "Now you can also call" in observation:
            break
    assert json.loads(observation.splitlines()[1])["name"] == "sort"
    assert {"sort", "mv"} <= {tool.name for tool in env.tools}
    assert "cp" not in {tool.name for tool in env.tools}
    assert play(env, list(gold))[1:] == (1.0, True)


@shared
def test_a_fork_shares_nothing_that_changes_and_brings_its_tools_along() -> None:
    env, other = Functions(DATA), Functions(DATA)
    task = task_of(env, "multi_turn_miss_func", "multi_turn_miss_func_0")
    gold = env.gold(task) or []
    announced = next(n for n, action in enumerate(gold) if "sort" in action)
    play(started(env, task), gold[:announced])
    saved, key = env.snapshot(), env.key()
    env.step(call("touch", file_name="odd"))
    started(other, base(other)).restore(saved)
    assert other.key() == key != env.key()
    assert [tool.name for tool in other.tools] == [tool.name for tool in env.tools]
    assert play(other, gold[announced:])[1] == 1.0
    assert play(env, gold[announced:])[1] == 0.0


@shared
def test_an_evaluation_plays_all_categories_and_gives_the_share_of_tasks_and_of_turns() -> None:
    env = Functions(DATA)
    tasks = [task for split in (*MULTI, "parallel", "irrelevance") for task in env.tasks(split)[:6]]
    gold = {task.id: env.gold(task) or [] for task in tasks}
    spoilt = tasks[0].id

    def act(prompt: Prompt) -> str:
        done = prompt.tree.task.id == spoilt and prompt.turn.depth == 0
        return "Done." if done else gold[prompt.tree.task.id][prompt.turn.depth]

    result, _ = asyncio.run(evaluate(partial(Functions, DATA), Scripted(act), tasks))
    assert result.success.average.estimate == pytest.approx(29 / 30)
    assert 29 / 30 <= result.metrics["turns_passed"].estimate < 1


@shared
def test_what_the_policy_is_told_of_a_function_is_json_schema() -> None:
    env = Functions(DATA)
    for split in ("live_multiple", "multi_turn_base"):
        for task in env.tasks(split)[:40]:
            _, info = env.reset(seed=0, options={"task": task})
            told = json.dumps(info["tools"])
            assert '"type": "dict"' not in told
            assert '"type": "float"' not in told
            assert info["messages"] == task.data["turns"][0]


# Hostile and broken calls.


@shared
@pytest.mark.parametrize(
    ("owner", "asked"),
    [
        ("MathAPI", Call("power", {"base": 10, "exponent": 10**9})),
        ("MathAPI", Call("logarithm", {"value": 2, "base": 10, "precision": 10**9})),
        ("MathAPI", Call("multiply", {"a": "x", "b": 10**9})),
        ("MathAPI", Call("round_number", {"number": 5, "decimal_places": -(10**9)})),
        ("MathAPI", Call("_precise", {})),
        ("MathAPI", Call("start", {"tables": {}, "config": {}})),
        ("TicketAPI", Call("create_ticket", {"self": 1, "name": 2, "tables": 3})),
        ("TicketAPI", Call("edit_ticket", {"ticket_id": 1, "updates": json.loads("[" * 500 + "]" * 500)})),
        ("no such", Call("eval", {"code": "1"})),
    ],
)
def test_a_hostile_call_is_refused_at_once_and_changes_nothing(owner: str, asked: Call) -> None:
    tables = Functions(DATA)._benchmark.tables
    backends = Backends.start([owner] if owner in APIS else [], {}, tables)
    answer, done, after = backends.answer(tables, asked)
    assert (done, after) == (False, backends)
    assert "rror" in answer


@shared
def test_what_is_nested_too_deep_to_be_saved_is_refused() -> None:
    env = Functions(DATA)
    task = env.tasks("multi_turn_base")[0]
    config = {"TicketAPI": {"current_user": "a"}}
    started(env, Task("deep", task.prompt, task.answer, task.split, {**task.data, "classes": ["TicketAPI"], "config": config}))
    title = json.loads("[" * 40 + "]" * 40)
    assert "nested deeper" in str(env.step(call("create_ticket", title=title))[0])
    env.restore(env.snapshot())
    assert "nested deeper" not in str(env.step(call("create_ticket", title=[["a"]]))[0])


@shared
def test_a_file_system_does_not_grow_without_bound() -> None:
    tables = Functions(DATA)._benchmark.tables
    backends = Backends.start(["GorillaFileSystem"], {}, tables)
    doubling = [f"cp('a', 'x{n}'); mv('x{n}', 'a')" for n in range(13)]
    for text in "; ".join(["mkdir('a')", *doubling, "cp('a', 'b')"]).split("; "):
        asked, backends = backends.read(tables, text)
        answer, _, backends = backends.answer(tables, asked)
    assert "no more than 2000 entries" in answer
    assert 500 < json.dumps(backends.public()).count("contents") <= 2001


NAMES = sorted({name for api in APIS.values() for name in vars(api) if name[0] != "_"})
TEXTS = st.text("ab1./'é\n", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def made_calls(draw: st.DrawFn) -> list[Call]:
    def one() -> Call:
        name = draw(st.sampled_from(NAMES))
        owner = next(api for api in APIS.values() if name in vars(api))
        known = [parameter for parameter in inspect.signature(getattr(owner, name)).parameters if parameter not in ("self", "cls")]
        return Call(name, {parameter: draw(VALUES) for parameter in known if draw(st.integers(0, 9))})

    return [one() for _ in range(draw(st.integers(1, 6)))]


@shared
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it measures the machine
@given(made_calls())
def test_whatever_is_called_is_answered_and_the_state_can_be_saved_and_restored(calls: list[Call]) -> None:
    env, other = Functions(DATA), Functions(DATA)
    task = env.tasks("multi_turn_base")[0]
    data = {**task.data, "classes": list(APIS), "config": {}}
    started(env, Task("all", task.prompt, task.answer, task.split, data))
    before = env.snapshot()
    first = env.step(format_action(*calls))
    other.restore(env.snapshot())
    assert other.key() == env.key()
    other.restore(before)
    assert other.step(format_action(*calls))[:2] == first[:2]
    assert other.key() == env.key()


# The contract, on small files of our own, and files that do not fit.


def described(name: str, **parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": kind, "description": parameter} for parameter, kind in parameters.items()}
    return {"name": name, "description": name, "parameters": {"type": "dict", "properties": properties, "required": list(properties)}}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def talk(number: int, **fields: Any) -> dict[str, Any]:
    turns = [said(f"Log in as u{number} with p{number}."), said("Open a ticket: Broken."), []]
    truth = [[f"ticket_login('u{number}', 'p{number}')"], ["create_ticket(title='Broken')"], ["close_ticket(ticket_id=1)"]]
    config = {"initial_config": {}, "involved_classes": ["TicketAPI"], "missed_function": {"2": ["close_ticket"]}}
    return {"id": f"t{number}", "question": turns, "ground_truth": truth, **config, **fields}


def write(path: Path, lines: list[Any]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def small(folder: Path, talks: list[dict[str, Any]]) -> Path:
    functions = [
        described("ticket_login", username="string", password="string"),
        described("create_ticket", title="string"),
        described("close_ticket", ticket_id="integer"),
    ]
    for document in DOCUMENTS.values():
        write(folder / "multi_turn_func_doc" / f"{document}.jsonl", functions if document == "ticket_api" else [])
    (folder / "backend_tables.json").write_text(json.dumps({"TicketAPI": {"ticket_queue": [], "ticket_counter": 1, "current_user": None}}))
    write(folder / "multi_turn_own.jsonl", talks)
    add = {"function": [described("math.add", a="integer", b="float")]}
    sums = [{"id": f"s{n}", "question": [said(f"Add 2 to {n}.")], "ground_truth": [{"math.add": {"a": [n], "b": [2.0]}}]} for n in range(3)]
    write(folder / "simple.jsonl", [row | add for row in sums])
    return folder


def test_the_contract_holds_on_small_files(tmp_path: Path) -> None:
    small(tmp_path, [talk(number) for number in range(3)])
    report = check_env(partial(Functions, tmp_path))
    assert [str(problem) for problem in report.problems] == []
    assert "gold" in report.passed


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"question": [[]]}, "line 1: question: .*first turn has no message"),
        ({"involved_classes": ["Nope"]}, "there are no classes Nope"),
        ({"ground_truth": []}, "ground_truth has 0 turns, but question 3"),
        ({"ground_truth": [["1 + 1"], [], []]}, "a call holds plain values, no BinOp"),
        ({"id": ""}, "line 1: id: "),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(AgentGymError, match=why):
        Functions(small(tmp_path, [talk(0, **fields)])).tasks("multi_turn_own")


def test_a_folder_that_lacks_something_is_told_what(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match=r"holds no \*\.jsonl: give BFCL's folder"):
        Functions(tmp_path / "empty")
    folder = small(tmp_path / "no-tables", [talk(0)])
    (folder / "backend_tables.json").unlink()
    with pytest.raises(AgentGymError, match=r"backend_tables\.json cannot be read"):
        Functions(folder)


def test_a_call_is_read_without_being_evaluated() -> None:
    assert read_written("f(1, b=-2.5, c={'d': [g(), (True, None)]})").name == "f"
    for text in ("__import__('os').system('x')()", "f(*a)", "f(**a)", "f(lambda: 1)", "f(a=b.c)", "1", "f(", "f(a=" + "[" * 5000 + ")"):
        with pytest.raises(ValueError, match=r"no Python|no call|plain values|no name"):
            read_written(text)
