"""BFCL's metric for single answers: it takes every gold answer of the shared half, and refuses planted mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError, Call, Task, call, format_action
from agentgym.envs.bfcl import Functions
from agentgym.envs.bfcl.examples import example
from agentgym.envs.bfcl.matching import fault
from agentgym.envs.bfcl.tasks import tasks
from agentgym.envs.calls import read_calls, schema, tool_name

DATA = Path(__file__).parents[2] / "shared" / "data" / "bfcl-v4"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"BFCL is not at {DATA}")
WANTED = {
    "simple_python": 200, "multiple": 103, "parallel": 87, "parallel_multiple": 108, "live_simple": 141, "live_multiple": 497,
    "live_parallel": 8, "live_parallel_multiple": 11,
}  # fmt: skip


def answered() -> Iterator[tuple[str, Task, list[Call]]]:
    env = Functions(DATA)
    for split in WANTED:
        for task in env.tasks(split):
            calls = example(task.data["functions"], task.answer["calls"])
            if calls is not None:
                yield split, task, calls


def wrong(task: Task, calls: list[Call]) -> str:
    return fault(calls, task.data["functions"], task.answer["calls"])


def with_call(calls: list[Call], number: int, change: Callable[[Call], None]) -> list[Call]:
    changed = deepcopy(calls)
    change(changed[number])
    return changed


def required(task: Task, made: Call) -> list[str]:
    described = next(function for function in task.data["functions"] if tool_name(function["name"]) == made.name)
    return list(described["parameters"]["required"])


@shared
def test_every_gold_answer_is_taken_in_any_order_and_every_planted_mistake_refused() -> None:
    taken = dict.fromkeys(WANTED, 0)
    for split, task, calls in answered():
        assert wrong(task, calls) == "", task.id
        assert wrong(task, calls[::-1]) == "", task.id
        taken[split] += 1
        assert wrong(task, calls[1:])
        assert wrong(task, [*calls, calls[0]])
        for number, made in enumerate(calls):
            assert wrong(task, with_call(calls, number, lambda one: setattr(one, "name", one.name + "x")))
            assert wrong(task, with_call(calls, number, lambda one: one.arguments.update(never_described=1)))
            for parameter in required(task, made):
                assert wrong(task, with_call(calls, number, lambda one, name=parameter: one.arguments.pop(name)))  # type: ignore[misc]
            for parameter in made.arguments:
                other = {"never": "this"}
                assert wrong(task, with_call(calls, number, lambda one, name=parameter, value=other: one.arguments.update({name: value})))  # type: ignore[misc]
    assert taken == WANTED


@shared
def test_a_gold_answer_written_as_python_is_read_as_the_same_calls() -> None:
    for _, task, calls in answered():
        names = {tool_name(function["name"]): function["name"] for function in task.data["functions"]}
        written = [f"{names[made.name]}({', '.join(f'{name}={value!r}' for name, value in made.arguments.items())})" for made in calls]
        if all(name.isidentifier() for made in calls for name in made.arguments) and "-" not in "".join(names):
            assert wrong(task, read_calls(f"[{', '.join(written)}]")) == "", task.id


# One function of our own.


def function(**types: str) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": kind.split(" of ")[0]} for name, kind in types.items()}
    for name, kind in types.items():
        if " of " in kind:
            properties[name]["items"] = {"type": kind.split(" of ")[1]}
    return {"name": "geo.f", "description": "", "parameters": {"type": "dict", "properties": properties, "required": ["a"]}}


def right(kind: str, allowed: list[Any], value: Any) -> bool:
    return not fault([Call("geo_f", {"a": value})], [function(a=kind)], [{"geo.f": {"a": allowed}}])


@pytest.mark.parametrize(
    ("kind", "allowed", "taken", "refused"),
    [
        ("integer", [5], [5], [5.0, "5", 6, True]),
        ("float", [5.0, 0.5], [5, 5.0, 0.5], ["5", 5.1, True]),
        ("float", [5], [5, 5.0], [6]),
        ("boolean", [True], [True], [1, "true", False]),
        ("string", ["New York, NY"], ["new york ny", "New-York, N.Y"], ["New York", ["New York, NY"], 5]),
        ("string", ["it's"], ['it"s'], ["its"]),
        ("any", ["x", 5], ["X"], [5]),
        ("any", [5, "x"], [5], [6]),
        ("array of integer", [[1, 2], [3]], [[1, 2], [3]], [[2, 1], [1], [1.0, 2], "[1, 2]"]),
        ("array of float", [[1.5, 2.0]], [[1.5, 2.0]], [[1.5, 2]]),
        ("array of string", [["New York", "b"]], [["new york", "B"]], [["b", "New York"]]),
        ("array of string", ["", ["b"]], [[], ["b"]], [["c"]]),
        ("tuple of float", [[1.5, 2.5]], [[1.5, 2.5], (1.5, 2.5)], [[2.5, 1.5]]),
        ("array of integer", [[1, 2]], [], [(1, 2)]),
        ("integer", ["n"], ["n"], ["N", "m"]),  # a variable stands for a number
        ("dict", [{"x": ["A b"], "y": ["", 2]}], [{"x": "ab"}, {"x": "A b", "y": 2}], [{"x": "ab", "y": 3}, {"y": 2}, {"x": "ab", "z": 1}]),
        ("array of dict", [[{"x": [1]}, {"x": [2]}]], [[{"x": 1}, {"x": 2}]], [[{"x": 2}, {"x": 1}], [{"x": 1}]]),
    ],
)
def test_values_are_taken_and_refused_as_the_benchmark_does(kind: str, allowed: list[Any], taken: list[Any], refused: list[Any]) -> None:
    assert [value for value in taken if not right(kind, allowed, value)] == []
    assert [value for value in refused if right(kind, allowed, value)] == []


def test_a_parameter_may_be_omitted_only_where_that_is_allowed() -> None:
    functions = [function(a="integer", b="integer")]
    assert fault([Call("geo.f", {"a": 1})], functions, [{"geo.f": {"a": [1], "b": ["", 2]}}]) == ""
    assert fault([Call("geo.f", {"a": 1})], functions, [{"geo.f": {"a": [1], "b": [2]}}]) == "geo.f: b is missing"
    assert fault([Call("geo.f", {"b": 2})], functions, [{"geo.f": {"a": ["", 1], "b": [2]}}]) == "geo.f: a is missing"
    assert fault([Call("geo.f", {"a": 1, "b": 2})], functions, [{"geo.f": {"a": [1]}}]) == "geo.f: b is not wanted"
    assert fault([], functions, [{"geo.f": {"a": [1]}}]) == "1 calls are wanted, 0 are made"


def test_two_equal_calls_do_not_stand_for_two_different_ones() -> None:
    functions, allowed = [function(a="integer")], [{"geo.f": {"a": [1]}}, {"geo.f": {"a": [2]}}]
    assert fault([Call("geo_f", {"a": 2}), Call("geo_f", {"a": 1})], functions, allowed) == ""
    assert fault([Call("geo_f", {"a": 1}), Call("geo_f", {"a": 1})], functions, allowed)


ODD: list[tuple[str, list[Any]]] = [
    ("array of dict", [[{"x": [1]}]]),
    ("array of string", ["v"]),
    ("dict", ["v"]),
    ("float", [[1]]),
    ("string", [{"x": [1]}]),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text("aB,", max_size=4)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it measures the machine
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)))
def test_no_value_breaks_the_metric(value: Any) -> None:
    for kind, allowed in ODD:
        assert right(kind, allowed, value) in (True, False)


# As an environment.


@shared
def test_irrelevance_wants_no_call_and_relevance_any() -> None:
    env = Functions(DATA)
    for split, quiet, loud in (("irrelevance", 1.0, 0.0), ("live_relevance", 0.0, 1.0)):
        task = env.tasks(split)[0]
        name = tool_name(task.data["functions"][0]["name"])
        for action, reward in (("I cannot.", quiet), (format_action(Call(name, {})), loud), ("<tool_call>{", quiet)):
            env.reset(seed=0, options={"task": task})
            assert env.step(action)[1:3] == (reward, True)


@shared
def test_the_first_action_is_the_answer() -> None:
    env = Functions(DATA)
    task = env.tasks("simple_python")[0]
    gold = (env.gold(task) or [])[0]
    env.reset(seed=0, options={"task": task})
    assert env.step(gold)[1:4] == (1.0, True, False)
    env.reset(seed=0, options={"task": task})
    _, reward, terminated, _, info = env.step(call("nothing"))
    assert (reward, terminated, info["metrics"]) == (0.0, True, {"turns_passed": 0.0})


@shared
def test_a_row_without_its_answers_is_named(tmp_path: Path) -> None:
    row = json.loads((DATA / "simple_python.jsonl").read_text().splitlines()[0])
    for change, why in (({"ground_truth": []}, "ground_truth"), ({"ground_truth": [{"no.such": {}}]}, "no.such is no one function of")):
        (tmp_path / "simple.jsonl").write_text(json.dumps(row | change) + "\n")
        tasks.cache_clear()
        with pytest.raises(AgentGymError, match=f"line 1: .*{why}"):
            tasks(tmp_path, "simple")


def test_a_description_becomes_a_json_schema() -> None:
    properties = {"type": {"type": "any"}, "p": {"type": "tuple", "items": {"type": "float"}, "optional": True}}
    assert schema({"type": "dict", "properties": properties, "required": ["p"]}) == {
        "type": "object",
        "required": ["p"],
        "properties": {"type": {}, "p": {"type": "array", "items": {"type": "number"}}},
    }


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f(a=1)]", [Call("f", {"a": 1})]),
        ("g.h(x='y', z=[-1.5, None]), f()", [Call("g.h", {"x": "y", "z": [-1.5, None]}), Call("f", {})]),
        ("```\n[f(a=New)]\n```", [Call("f", {"a": "New"})]),
    ],
)
def test_calls_are_read_as_models_without_tools_write_them(text: str, calls: list[Call]) -> None:
    assert read_calls(text) == calls


NO_CALLS = ("", "[]", "I cannot.", "[f(1)]", "[f(a=g())]", "[f(a=1), 2]", "f(a=1); f(a=2)", "[f(a={**x})]", "[f(a={[1]: 2})]", "f(" * 3000)
LONG = ("0x" + "f" * 6000, 2**64, -(2**63) - 1, [2**64])
TOO_MUCH = (*LONG, "[" * 70 + "]" * 70, "{1: " * 70 + "1" + "}" * 70, "(" + "(1, " * 70 + ")" * 71)


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_list_of_calls_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no Python|write calls|plain values"):
        read_calls(text)


@pytest.mark.parametrize("value", TOO_MUCH)
def test_what_no_tool_call_may_hold_is_refused_in_a_written_one(value: object) -> None:
    with pytest.raises(ValueError, match="64 "):
        read_calls(f"[f(a={value})]")


def test_the_largest_and_smallest_numbers_and_the_deepest_lists_of_a_tool_call_may_be_written() -> None:
    (read,) = read_calls(f"f(a={2**64 - 1}, b=-{2**63}, c={'[' * 60}{']' * 60}, d=True)")
    assert (read.arguments["a"], read.arguments["b"], read.arguments["d"]) == (2**64 - 1, -(2**63), True)
