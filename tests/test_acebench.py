"""ACEBench: known answers and planted mistakes of the shared half, the program's own figure beside the reward, and bad rows."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError, Call, Outcome, Prompt, Task, call, check_env, evaluate, format_action
from agentgym.action import parse_action
from agentgym.envs.acebench import AceBench
from agentgym.envs.acebench.examples import EXAMPLES
from agentgym.envs.acebench.grading import agrees, agrees_loosely, each_has_its_own, fault, scores, telling, tells
from agentgym.policies.scripted import Scripted

DATA = Path(__file__).parents[2] / "shared" / "data" / "acebench"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"ACEBench is not at {DATA}")
CATEGORIES = (
    *(f"normal_atom_{kind}" for kind in ("bool", "enum", "list", "number", "object_deep", "object_short")),
    *("normal_multi_turn_user_adjust", "normal_multi_turn_user_switch", "normal_preference", "normal_similar_api"),
    *("normal_single_turn_parallel_function", "normal_single_turn_single_function"),
    *("special_error_param", "special_incomplete", "special_irrelevant"),
)


def play(env: AceBench, task: Task, actions: list[str]) -> tuple[float, dict[str, float]]:
    env.reset(seed=0, options={"task": task})
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
    assert terminated
    return float(reward), info["metrics"]


def own(split: str, number: int = 0) -> tuple[AceBench, Task]:
    env = AceBench()
    return env, env.tasks(split)[number]


# The shared half.


@shared
def test_every_known_answer_earns_full_reward_and_passes_as_the_program_grades() -> None:
    env = AceBench(DATA)
    assert env.splits == (*CATEGORIES, "agent_multi_step", "agent_multi_turn")
    for task in (task for split in CATEGORIES for task in env.tasks(split)):
        actions = env.gold(task)
        assert actions is not None, task.id
        assert play(env, task, actions) == (1.0, {"official": 1.0, "process": 1.0}), task.id


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from leaves(part, (*path, key))
    if not isinstance(value, dict | list):
        yield path, value


def changed(arguments: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    arguments = copy.deepcopy(arguments)
    level: Any = arguments
    for key in path[:-1]:
        level = level[key]
    level[path[-1]] = value
    return arguments


def another(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "quite another"


def of_another_type(value: Any) -> Any:
    return str(value) + "." if isinstance(value, int | float) else 7


def mistakes(known: list[Call], names: list[str], rng: random.Random) -> Iterator[tuple[str, list[Call]]]:
    """Each kind of mistake, in one call."""
    wrong, *others = rng.sample(known, len(known))
    rest, name, arguments = list(others), wrong.name, wrong.arguments
    yield "no call", rest
    yield "one call more", [*known, known[0]]
    yield "name", [*rest, Call(rng.choice([one for one in names if one != name] or ["another"]), arguments)]
    yield "extra", [*rest, Call(name, {**arguments, "unheard_of": 1})]
    if arguments:
        missing = rng.choice(list(arguments))
        yield "missing", [*rest, Call(name, {key: value for key, value in arguments.items() if key != missing})]
    found = list(leaves(arguments))
    if found:
        path, value = rng.choice(found)
        yield "value", [*rest, Call(name, changed(arguments, path, another(value)))]
        yield "type", [*rest, Call(name, changed(arguments, path, of_another_type(value)))]


@shared
def test_planted_mistakes_in_calls_earn_nothing() -> None:
    env, rng, planted = AceBench(DATA), random.Random(0), Counter[str]()
    for task in (task for split in CATEGORIES[:12] for task in env.tasks(split)):
        first, *later = env.gold(task) or []
        names = [function["name"] for function in task.data["parts"][0]["functions"]]
        for kind, calls in mistakes(list(parse_action(first).calls), names, rng):
            assert play(env, task, [format_action(*calls) if calls else "I am done.", *later])[0] == 0.0, (task.id, kind)
            planted[kind] += 1
    assert planted.keys() == {"no call", "one call more", "name", "extra", "missing", "value", "type"}


@shared
def test_special_answers_without_the_set_phrase_or_with_another_name_or_value_earn_nothing() -> None:
    env = AceBench(DATA)
    for split in CATEGORIES[12:]:
        for task in env.tasks(split):
            (answer,) = env.gold(task) or []
            wanted = task.answer[0] or {}
            phrases = ("Missing necessary parameters", "There is incorrect value", "the limitations of the function")
            wrong = [*(answer.replace(phrase, "Sorry") for phrase in phrases if phrase in answer), "I cannot.", f"{answer}\n{call('f')}"]
            for name, parts in wanted.items():
                wrong += [answer.replace(f"({name})", new) for new in ("(another)", f"({name}, another)")]
                wrong += [answer.replace(f"({parts[0]}", f"(another, {parts[0]}")]
                wrong += [answer.replace(str(part), "another") for part in parts]
            assert [play(env, task, [text])[0] for text in wrong] == [0.0] * len(wrong), task.id


@shared
def test_an_evaluation_gives_the_official_accuracy_of_conversations_and_the_share_of_their_answers() -> None:
    env = AceBench(DATA)
    tasks = [task for task in env.tasks("normal_multi_turn_user_adjust") if len(task.answer) == 2][:4]
    gold = {task.id: env.gold(task) or [] for task in tasks}

    def act(prompt: Prompt) -> str:
        spoilt = prompt.tree.task.id == tasks[0].id and prompt.turn.depth == 0
        return "No." if spoilt else gold[prompt.tree.task.id][prompt.turn.depth]

    result, _ = asyncio.run(evaluate(partial(AceBench, DATA), Scripted(act), tasks))
    assert result.metrics["official"].estimate == result.success.average.estimate == pytest.approx(3 / 4)
    assert result.metrics["process"].estimate == pytest.approx(7 / 8)


# The metric.

FUNCTIONS = [{"name": "f.g", "parameters": {"properties": {}, "required": ["a"]}}]


@pytest.mark.parametrize(
    ("value", "wanted", "right", "official"),
    [
        ("New York City", "new-york", True, True),
        ("York", "New York", False, False),
        (["A b"], ["ab"], True, True),
        (["abc"], ["ab"], False, False),
        (["a", "b"], ["b", "a"], False, False),
        ({"k": "x, y"}, {"k": "X Y"}, True, True),
        ({"k": "x", "l": 1}, {"k": "x"}, False, False),
        ([{"k": "xy"}], [{"k": "x"}], True, True),
        (2, 1, False, True),
        (True, 1, False, False),
        (False, True, False, True),
        ("true", True, True, True),
        (1, 1.0, True, False),
        (1.0, 1, False, False),
        ("1", 1, False, False),
        ({"k": "1"}, {"k": 1}, False, True),
        ({"k": 12}, {"k": 1}, False, True),
        (None, "x", False, False),
        ("x", None, False, False),
    ],
)
def test_values_agree_by_their_kind(value: Any, wanted: Any, right: bool, official: bool) -> None:
    assert (agrees(value, wanted), agrees_loosely(value, wanted)) == (right, official)


@pytest.mark.parametrize(
    ("calls", "right", "official"),
    [
        ([Call("f_g", {"a": "x", "b": "y"}), Call("f.g", {"a": "z"})], True, True),
        ([Call("f_g", {"a": "z"}), Call("f_g", {"a": "x"})], False, True),
        ([Call("f_g", {"b": "y"}), Call("f_g", {"a": "z"})], False, False),
        ([Call("f_g", {"a": "x", "b": "y"})], False, False),
        ([Call("f_g", {}), Call("f_g", {"a": "z"})], False, False),
    ],
)
def test_calls_are_matched_in_any_order_and_the_program_lets_optional_parameters_go(calls: list[Call], right: bool, official: bool) -> None:
    wanted = {"f.g_1": {"a": "x", "b": "y"}, "f.g_2": {"a": "z"}}
    assert (not fault(calls, FUNCTIONS, wanted), not fault(calls, FUNCTIONS, wanted, official=True)) == (right, official)


BREAD = {"loaves": 2, "flour": "rye", "oven": {"degrees": 230}}


@pytest.mark.parametrize(
    ("number", "calls", "right"),
    [
        (0, [Call("ring_bell", {"room": "hall attic"}), Call("ring_bell", {"room": "nonsense"})], False),
        (0, [Call("ring_bell", {"room": "hall"}), Call("ring_bell", {"room": "hall"})], False),
        (0, [Call("ring_bell", {"room": "attic"}), Call("ring_bell", {"room": "the hall by the attic"})], True),
        (1, [Call("bake_bread", BREAD | {"flour": "wheat rye spelt"})], False),
        (1, [Call("bake_bread", BREAD | {"flour": "Rye"})], True),
    ],
)
def test_each_call_stands_for_one_and_no_value_for_all(number: int, calls: list[Call], right: bool) -> None:
    env, task = own("normal_single_turn_parallel_function", number)
    assert play(env, task, [format_action(*calls)])[0] == float(right)


def test_a_value_of_an_enumeration_is_compared_as_a_whole_wherever_it_stands() -> None:
    enum = {"type": "string", "enum": ["rye", "wheat"]}
    described = {"properties": {"a": enum, "b": {"type": "array", "items": {"type": "object", "properties": {"c": enum}}}}}
    assert agrees({"a": "rye", "b": [{"c": "wheat"}]}, {"a": "rye", "b": [{"c": "wheat"}]}, described)
    assert not agrees({"a": "rye or wheat", "b": []}, {"a": "rye", "b": []}, described)
    assert not agrees({"a": "rye", "b": [{"c": "rye or wheat"}]}, {"a": "rye", "b": [{"c": "rye"}]}, described)


@given(st.lists(st.sets(st.integers(0, 4)), max_size=5))
def test_calls_are_told_apart_wherever_they_can_be(fitting: list[set[int]]) -> None:
    can = any(all(one in fits for one, fits in zip(order, fitting, strict=True)) for order in permutations(range(5), len(fitting)))
    assert each_has_its_own([sorted(fits) for fits in fitting]) is can


JUNK = (
    "There is incorrect value (gold) flour Missing necessary parameters (loaves, flour, oven, room) bake_bread ring.bell; "
    "the limitations of the function"
)


@pytest.mark.parametrize(
    ("split", "text", "right"),
    [
        *((split, JUNK, False) for split in EXAMPLES if split.startswith("special_")),
        ("special_incomplete", "Missing necessary parameters (loaves, flour) for the api (bake_bread)", False),
        ("special_incomplete", "Missing necessary parameters (loaves) for the api (bake_bread, ring.bell)", False),
        ("special_incomplete", "Missing necessary parameters (loaves) for the api (bake_bread). Loaves of which flour?", True),
        ("special_error_param", "There is incorrect value (gold, rye) for the parameters (flour)", False),
        ("special_error_param", "There is incorrect value (gold) for the parameters (flour, loaves)", False),
        ("special_error_param", "I see: There is incorrect value ('gold') for the parameters (flour) in the conversation history.", True),
        ("special_irrelevant", "Due to the limitations of the function, I cannot. Missing necessary parameters (a) for the api (b)", False),
    ],
)
def test_one_set_sentence_with_its_own_names_is_right_and_a_text_for_all_tasks_is_not(split: str, text: str, right: bool) -> None:
    env, task = own(split)
    assert play(env, task, [text]) == (float(right), {"official": 1.0, "process": 1.0})


def test_several_parameters_are_told_in_any_order_in_one_sentence_or_two_and_functions_by_the_names_of_tools() -> None:
    wrong = {"device_id": ["ABC, 123"], "with": ["X (4)"]}
    assert tells("special_error_param", telling("special_error_param", dict(reversed(wrong.items()))), wrong)
    assert tells("special_error_param", "There is incorrect value (X (4), ABC, 123) for the parameters (with, device_id)", wrong)
    assert tells("special_incomplete", "Missing necessary parameters (b, a) for the api (ring_bell)", {"ring.bell": ["a", "b"]})


def test_the_program_refuses_a_call_that_gives_nothing_of_what_is_wanted() -> None:
    functions = [{"name": "f", "parameters": {"properties": {}, "required": []}}]
    assert fault([Call("f", {})], functions, {"f": {"a": 1, "b": 2}}, official=True)
    assert not fault([Call("f", {"a": 1})], functions, {"f": {"a": 1, "b": 2}}, official=True)


def test_the_program_asks_for_the_wrong_value_but_not_for_its_parameter() -> None:
    answer = telling("special_error_param", {"flour": ["gold"]}).replace("flour", "bread")
    assert not tells("special_error_param", answer, {"flour": ["gold"]})
    assert tells("special_error_param", answer, {"flour": ["gold"]}, official=True)


@pytest.mark.parametrize(
    ("normal", "special", "agent", "overall"), [(0.927, 0.933, 0.715, 0.896), (0.759, 0.447, 0.125, 0.578), (0.408, 0.127, 0.065, 0.280)]
)
def test_the_overall_score_is_that_which_is_published_for_its_groups(normal: float, special: float, agent: float, overall: float) -> None:
    played = {"normal_a": normal - 0.1, "normal_b": normal + 0.1, "special_a": special}
    assert "overall" not in scores(played)
    found = scores({**played, "agent_multi_step": agent})
    assert found["normal"] == pytest.approx(normal)
    assert found["overall"] == pytest.approx(overall, abs=6e-4)


# The environment.


def test_a_conversation_goes_on_as_it_was_recorded_and_all_its_answers_must_be_right() -> None:
    env, task = own("normal_multi_turn_user_switch")
    first, second = env.gold(task) or []
    env.reset(seed=0, options={"task": task})
    observation, _, terminated, _, _ = env.step("I bake nothing.")
    assert not terminated
    assert "[bake_bread(loaves=2" in str(observation)
    assert "Two loaves" not in str(observation)
    assert env.step(second)[1] == 0.0
    assert play(env, task, ["I bake nothing.", second]) == (0.0, {"official": 0.0, "process": 0.5})
    assert play(env, task, [first, second])[0] == 1.0


def test_calls_may_be_written_as_text_but_not_among_other_words() -> None:
    env, task = own("normal_single_turn_parallel_function")
    assert play(env, task, ["[ring.bell(room='attic'), ring.bell(room='hall')]"])[0] == 1.0
    assert play(env, task, ["Sure: [ring.bell(room='attic'), ring.bell(room='hall')]"])[0] == 0.0


@pytest.mark.parametrize("value", ["0x" + "f" * 6000, "[" * 150 + "]" * 150, "1e999", "{'a': " * 90 + "1" + "}" * 90, ".".join("a" * 5000)])
def test_no_written_value_leaves_an_answer_without_a_verdict(value: str) -> None:
    env, task = own("normal_single_turn_parallel_function", 1)
    for arguments in (f"loaves={value}, flour='rye', oven={{'degrees': 230}}", f"loaves=2, flour='rye', oven={{'degrees': {value}}}"):
        assert play(env, task, [f"[bake_bread({arguments})]"])[0] == 0.0


def test_a_malformed_action_is_a_wrong_answer_and_not_an_error() -> None:
    env, task = own("normal_single_turn_parallel_function")
    env.reset(seed=0, options={"task": task})
    _, reward, terminated, _, info = env.step('<tool_call>{"name": ')
    assert (reward, terminated, info["outcome"]) == (0.0, True, Outcome.MODEL_ERROR)


def test_the_policy_is_told_the_time_and_the_set_phrases_and_the_functions_as_json_schema() -> None:
    env, task = own("special_incomplete")
    _, info = env.reset(seed=0, options={"task": task})
    system = info["messages"][0]["content"]
    assert "2024-03-02" in system
    assert "Missing necessary parameters" in system
    assert [tool["function"]["name"] for tool in info["tools"]] == ["bake_bread", "ring_bell"]
    assert info["tools"][0]["function"]["parameters"]["properties"]["oven"]["type"] == "object"


@pytest.mark.long
def test_the_contract_holds() -> None:
    report = check_env(AceBench)
    assert [str(problem) for problem in report.problems] == []
    assert "gold" in report.passed


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab1 'é", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["degrees", "fan", "loaves"]), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["loaves", "flour", "oven"]), VALUES), VALUES)
def test_whatever_is_given_is_graded_and_what_is_wanted_agrees_with_itself(arguments: dict[str, Any], value: Any) -> None:
    env, task = own("normal_single_turn_parallel_function", 1)
    known = {"loaves": 2, "flour": "rye", "oven": {"degrees": 230}}
    reward, _ = play(env, task, [format_action(Call("bake_bread", arguments))])
    assert reward == float(arguments.keys() == known.keys() and agrees(arguments, known))
    if "NaN" not in json.dumps(value):
        assert agrees(value, value)


# Files that do not fit.


@pytest.mark.parametrize(
    ("split", "fields", "why"),
    [
        ("normal_similar_api", {"ground_truth": {"nope": {}}}, "line 1: row: .*nope is no function of bake_bread, ring.bell"),
        ("normal_similar_api", {"ground_truth": None}, "line 1: ground_truth: "),
        ("normal_similar_api", {"question": ""}, "line 1: question: "),
        ("normal_multi_turn_user_switch", {"id": "unnumbered"}, "line 1: id: "),
        ("special_incomplete", {"ground_truth": "loaves"}, "line 1: ground_truth: "),
        ("special_irrelevant", {"function": [{"name": "f"}]}, "line 1: function.0.description: "),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, split: str, fields: dict[str, Any], why: str) -> None:
    (tmp_path / f"{split}.jsonl").write_text(json.dumps({**EXAMPLES["normal_multi_turn_user_switch"][0], **fields}) + "\n")
    with pytest.raises(AgentGymError, match=why):
        AceBench(tmp_path).tasks(split)


def test_a_folder_without_its_files_is_told_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "agents.jsonl").write_text("{}\n")
    with pytest.raises(AgentGymError, match=r"holds no normal_\*\.jsonl, special_\*\.jsonl or agent_\*\.jsonl"):
        AceBench(tmp_path)


def test_a_function_described_with_arguments_or_with_numbered_calls_is_read(tmp_path: Path) -> None:
    row = copy.deepcopy(EXAMPLES["normal_single_turn_parallel_function"][0])
    row["function"][1]["arguments"] = row["function"][1].pop("parameters")
    (tmp_path / "normal_similar_api.jsonl").write_text(json.dumps(row) + "\n")
    env = AceBench(tmp_path)
    (task,) = env.tasks("normal_similar_api")
    assert play(env, task, env.gold(task) or [])[0] == 1.0
