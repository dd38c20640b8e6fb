"""API-Bank: true calls and planted mistakes of the shared half, the APIs against what they recorded, and how each compares."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentGymError, Call, Outcome, Prompt, Task, call, check_env, evaluate, format_action
from agentgym.envs.apibank import ApiBank, level_accuracy
from agentgym.envs.apibank.apis import Apis
from agentgym.envs.apibank.checks import (
    ELSEWHERE,
    FREE,
    METHODS,
    SEARCHER,
    WORDS,
    arguments_of,
    found_tools,
    is_right,
    outcome,
    replayed,
    search,
    tool_of,
)
from agentgym.envs.apibank.examples import EXAMPLES
from agentgym.envs.apibank.overlap import rouge_l
from agentgym.envs.apibank.tasks import CHANGED, READ_ONLY
from agentgym.policies.scripted import Scripted

DATA = Path(__file__).parents[2] / "shared" / "data" / "api-bank"
shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"API-Bank is not at {DATA}")
Turn = dict[str, Any]
DRAWN = ("AppointmentRegistration", "RegisterUser")  # numbers and tokens, by chance
OTHER_TABLES = ("CancelTimedSwitch", "QueryScene")  # recorded on tables that are not those of the benchmark's folder


def recorded() -> Iterator[tuple[list[Turn], Turn]]:
    """Each true call, and those before it in its dialogue."""
    for file in sorted(DATA.glob("level-*.jsonl")):
        for line in file.open():
            calls = [turn for turn in json.loads(line)["turns"] if turn["role"] == "API"]
            yield from ((calls[:number], turn) for number, turn in enumerate(calls))


def tables_of(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "init_database").glob("*.json")}


def play(env: ApiBank, task: Task, actions: list[str]) -> tuple[float, dict[str, float]]:
    env.reset(seed=0, options={"task": task})
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
    assert terminated
    return float(reward), info["metrics"]


def own(split: str, answers: bool = False) -> tuple[ApiBank, Task]:
    env = ApiBank(answers=answers)
    return env, env.tasks(split)[0]


# The shared half.


@shared
@pytest.mark.parametrize("answers", [False, True])
def test_every_true_call_is_right_and_every_true_answer_is_the_same(answers: bool) -> None:
    env = ApiBank(DATA, answers=answers)
    for split in env.splits:
        found = []
        for task in env.tasks(split):
            reward, metrics = play(env, task, env.gold(task))
            assert (reward, metrics.get("rouge_l", 1.0)) == (1.0, 1.0), task.id
            found.append(metrics)
        assert level_accuracy(found) == 1.0


@shared
def test_calls_written_with_texts_for_numbers_and_lists_are_right_too() -> None:
    tables = tables_of(DATA)
    for before, turn in recorded():
        assert is_right(Call(turn["api_name"], turn["param_dict"]), before, turn, tables), turn


@shared
def test_the_apis_give_what_was_recorded() -> None:
    tables, equal = tables_of(DATA), 0
    for before, turn in recorded():
        name = turn["api_name"]
        if name in ELSEWHERE or name in OTHER_TABLES:
            continue
        found = outcome(name, arguments_of(turn), replayed(before, tables))
        assert found is not None, turn
        assert name in DRAWN or found == (turn["result"]["output"],), turn
        equal += name not in DRAWN
    assert equal > 100


@shared
def test_planted_mistakes_are_wrong() -> None:
    tables, planted = tables_of(DATA), Counter[str]()
    for before, turn in recorded():
        name, true = turn["api_name"], arguments_of(turn)
        compared = [key for key in true if key not in FREE.get(name, ())]
        wrong = [("name", Call("GetToday" if name != "GetToday" else "Wiki", true)), ("extra", Call(name, {**true, "unheard_of": "x"}))]
        wrong += [("missing", Call(name, {key: value for key, value in true.items() if key != missing})) for missing in compared]
        wrong += [("value", Call(name, {**true, key: _another(true[key])})) for key in compared]
        wrong += [("token", Call(name, {**true, "token": "nobody's"}))] if "token" in true and name not in OTHER_TABLES else []
        for kind, mistake in wrong:
            assert not is_right(mistake, before, turn, tables), (kind, mistake, true)
            planted[kind] += 1
    assert planted.keys() == {"name", "extra", "missing", "value", "token"}


def _another(value: Any) -> Any:
    if isinstance(value, bool | int):
        return not value if isinstance(value, bool) else value + 1
    return ["nothing"] if isinstance(value, list) else "none"


@shared
def test_two_searches_of_three_find_the_recorded_tool_by_words() -> None:
    searches = [turn for _, turn in recorded() if turn["api_name"] == SEARCHER]
    found = [search(turn["param_dict"]["keywords"]) == found_tools(turn)[-1] for turn in searches]
    assert sum(found) >= 0.6 * len(found)


# How calls are compared.

TABLES: dict[str, Any] = {
    **{name: {} for name in (*CHANGED, *READ_ONLY)},
    "Account": {"ida": {"password": "heron", "token": "t", "email": "i@e.org"}, "bo": {"password": "p", "token": "b", "email": "b@e.org"}},
    "Agenda": {"1": {"content": "see the old dentist", "time": "2023-01-02 10:00:00", "location": "town", "username": "ida"}},
    "Stock": {"AAPL": {"2023-01-02": 1.5}},
    "Wiki": {"moon": {"url": "u", "summary": "s", "content": "c"}, "sun": {"url": "v", "summary": "w", "content": "x"}},
    "Scenes": {"night": [{"name": "light", "description": "d"}]},
}


def turn(name: str, output: Any, /, **given: Any) -> Turn:
    return {"role": "API", "api_name": name, "result": {"input": given, "output": output, "exception": None}}


AGENDA = {"token": "t", "content": "see the old dentist", "time": "2023-01-02 10:00:00", "location": "town"}
MEETING = {
    "token": "t", "meeting_topic": "a b c", "start_time": "2023-01-02 10:00:00", "end_time": "2023-01-02 11:00:00", "location": "hall",
    "attendees": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("true", "changes", "right"),
    [
        (turn("AddAgenda", "success", **AGENDA), {"content": "see the dentist"}, True),
        (turn("AddAgenda", "success", **AGENDA), {"content": "see dentist"}, False),
        (turn("AddAgenda", "success", **AGENDA), {"token": "b"}, True),
        (turn("AddAgenda", "success", **AGENDA), {"token": "nobody's"}, False),
        (turn("AddAgenda", "success", **AGENDA), {"time": "2023-01-02 10:00"}, False),
        (turn("DeleteAgenda", "success", **AGENDA), {"content": "x", "location": "y"}, True),
        (turn("DeleteAgenda", "success", **AGENDA), {"token": "b"}, False),
        (turn("AddMeeting", "success", **MEETING), {"meeting_topic": "a b"}, True),
        (turn("AddMeeting", "success", **MEETING), {"attendees": "['x']"}, True),
        (turn("AddMeeting", "success", **MEETING), {"attendees": ["y"]}, False),
        (turn("QueryStock", 1.5, stock_code="AAPL", date="2023-01-02"), {"stock_code": " aapl", "date": "2023-1-2"}, True),
        (turn("QueryStock", 1.5, stock_code="AAPL", date="2023-01-02"), {"date": "Monday"}, False),
        (turn("Calculator", 6.0, formula="(1 + 2)*2"), {"formula": "(1+2) * 2"}, True),
        (turn("Calculator", 6.0, formula="(1 + 2)*2"), {"formula": "3 * 2"}, False),
        (turn("Wiki", {"url": "u", "summary": "s"}, keyword="Moon"), {"keyword": "moon "}, True),
        (turn("Wiki", {"url": "u", "summary": "s"}, keyword="Moon"), {"keyword": "sun"}, False),
        (turn("QueryScene", [], name="Night"), {"name": "night"}, True),
        (turn("ModifyScene", "success", name="night", devices=[{"name": "a", "description": "d"}]), {"devices": [{"name": "b"}]}, False),
        (turn("Translate", "Hallo", src="hello", tgt_lang="de"), {"tgt_lang": "German"}, True),
        (turn("Translate", "Hallo", src="hello", tgt_lang="de"), {"tgt_lang": "fr"}, False),
        (turn("TimedSwitch", "success", device_id="1", time="2023-01-02 10:00:00", on=True), {"on": "True"}, True),
        (turn("TimedSwitch", "success", device_id="1", time="2023-01-02 10:00:00", on=True), {"on": "False"}, False),
        (turn("BookHotel", "1", hotel_name="h", check_in_time="2023-01-02", check_out_time="2023-01-03", room_count=1, adult_count=2,
              child_count=0), {"room_count": "1"}, True),
        (turn("ToolSearcher", {"name": "Calculator"}, keywords="sums"), {"keywords": "calculator"}, True),
        (turn("ToolSearcher", {"name": "Calculator"}, keywords="sums"), {"keywords": "hotel"}, False),
    ],
)  # fmt: skip
def test_each_api_compares_as_its_own_program_does(true: Turn, changes: dict[str, Any], right: bool) -> None:
    asked = Call(true["api_name"], {**arguments_of(true), **changes})
    assert is_right(asked, [], true, TABLES) is right


def test_a_call_acts_on_what_the_dialogue_has_changed_and_the_first_tables_stay_as_they_are() -> None:
    before = [turn("RegisterUser", {"token": "recorded"}, username="new", password="p", email="e")]
    added, tables = turn("AddAgenda", "success", **{**AGENDA, "token": "recorded"}), copy.deepcopy(TABLES)
    shorter = Call("AddAgenda", {**AGENDA, "token": "recorded", "content": "see the dentist"})
    assert is_right(shorter, before, added, tables)
    assert not is_right(shorter, [], added, tables)
    assert tables == TABLES


def test_every_api_is_described_and_compared_by_parameters_that_it_has() -> None:
    for name in METHODS | ELSEWHERE:
        parameters = tool_of(name).parameters["properties"]
        assert tool_of(name).description, name
        assert {*FREE.get(name, ()), *((WORDS[name],) if name in WORDS else ())} <= parameters.keys(), name
    assert len(METHODS | ELSEWHERE) == 53


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("1-:[{'\" a", max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "value", "description"]), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(METHODS | ELSEWHERE)), st.data())
def test_whatever_is_called_is_graded(name: str, data: st.DataObject) -> None:
    parameters = tool_of(name).parameters["properties"]
    given_, true = ({key: data.draw(JSON) for key in parameters} for _ in range(2))
    known = turn(name, {"name": "Calculator"}, **true)
    assert is_right(Call(name, true), [], known, TABLES) or "NaN" in json.dumps(true)
    assert is_right(Call(name, given_), [known], known, TABLES) in (True, False)
    assert outcome(name, given_, Apis(copy.deepcopy(TABLES))) is None or name in METHODS


@pytest.mark.parametrize(
    ("name", "given_"),
    [
        ("Calculator", {"formula": "1/0"}),
        ("Calculator", {"formula": "2**9"}),
        ("Calculator", {"formula": "1\0"}),
        ("Calculator", {"formula": "(" * 5000}),
        ("Calculator", {"formula": "1+" * 5000 + "1"}),
        ("RecordHealthData", {"user_id": "a", "time": "2023-01-02 10:00:00", "health_data": [{"name": [], "value": 1}]}),
        ("RecordHealthData", {"user_id": "a", "time": "2023-01-02 10:00:00", "health_data": [{"value": 1}]}),
        ("AddScene", {"name": "x", "devices": [{}]}),
        ("AddAlarm", {"token": "t", "time": "2023-01-02 10:00"}),
        ("AddAlarm", {"token": ["t"], "time": 1}),
        ("BookHotel", {}),
    ],
)
def test_a_hostile_call_is_refused(name: str, given_: dict[str, Any]) -> None:
    assert outcome(name, given_, Apis(copy.deepcopy(TABLES))) is None


HEX = "0x" + "f" * 6000


@pytest.mark.parametrize("value", [HEX, f"[{HEX}]", "[" * 150 + "]" * 150, "1e999", "2+3j", "b'x'", "{1}"])
def test_a_number_that_cannot_be_written_is_wrong_and_no_error(value: str) -> None:
    for name in sorted(METHODS | ELSEWHERE):
        for key in tool_of(name).parameters["properties"]:
            for true in (1, ["x"]):
                known = turn(name, {"name": "Calculator"}, **{key: true})
                assert is_right(Call(name, {key: value}), [], known, TABLES) in (True, False)


# The overlap of words.


@pytest.mark.parametrize(
    ("text", "overlap"),
    [("the alarm is set", 1.0), ("is set", 2 / 3), ("set is alarm the", 1 / 4), ("", 0.0), ("no", 0.0), ("the x alarm y is z set", 8 / 11)],
)
def test_the_overlap_is_that_of_the_longest_common_course(text: str, overlap: float) -> None:
    assert rouge_l("the alarm is set", text) == pytest.approx(overlap)


@given(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), st.lists(st.sampled_from("abc"), max_size=8).map(" ".join))
def test_the_overlap_is_symmetric_and_full_for_equal_words_alone(first: str, second: str) -> None:
    assert rouge_l(first, second) == rouge_l(second, first)
    assert (rouge_l(first, second) == 1.0) is (first == second != "")


# The environment.


def test_the_dialogue_goes_on_as_it_was_recorded_whatever_is_called() -> None:
    env, task = own("level-1-given-desc")
    _, info = env.reset(seed=0, options={"task": task})
    assert [tool["function"]["name"] for tool in info["tools"]] == ["GetUserToken", "AddAlarm"]
    assert "password heron" in info["messages"][1]["content"]
    assert "t-ida" not in info["messages"][1]["content"]
    observation, _, terminated, _, _ = env.step(call("AddAlarm", token="t", time="now"))
    assert not terminated
    assert 'GetUserToken(username=\'ida\', password=\'heron\') gave {"token":"t-ida"}' in str(observation)
    _, reward, terminated, _, info = env.step((env.gold(task))[1])
    assert (reward, terminated, info["metrics"]["call_accuracy"]) == (0.5, True, 0.5)


def test_what_the_searcher_finds_is_offered_from_then_on_and_by_a_fork() -> None:
    env, task = own("level-2-toolsearcher")
    env.reset(seed=0, options={"task": task})
    before = env.snapshot()
    assert [tool.name for tool in env.tools] == [SEARCHER]
    env.step(env.gold(task)[0])
    assert [tool.name for tool in env.tools] == [SEARCHER, "Calculator"]
    env.restore(before)
    assert [tool.name for tool in env.tools] == [SEARCHER]


def test_answers_are_asked_for_after_calls_and_do_not_change_the_reward() -> None:
    env, task = own("level-1-given-desc", answers=True)
    token, alarm, answer = env.gold(task)
    assert answer == "Your alarm is set to seven."
    reward, metrics = play(env, task, [token, alarm, "The alarm is set."])
    assert reward == 1.0
    assert metrics["rouge_l"] == pytest.approx(2 * 2 / 10)  # "alarm is"


def test_no_written_call_leaves_an_episode_without_a_verdict() -> None:
    env = ApiBank()
    for value in (HEX, "[" * 150 + "]" * 150, "1e999", ".".join("a" * 5000)):
        env.reset(seed=0, options={"task": "alarm"})
        assert env.step(f"[GetUserToken(username={value}, password='heron')]")[2] is False
        env.restore(env.snapshot())


def test_one_call_is_asked_for_and_text_may_hold_it() -> None:
    env, task = own("level-1-given-desc")
    token, alarm = env.gold(task)
    written = "[GetUserToken(username='ida', password='heron')]"
    assert play(env, task, [written, alarm])[0] == 1.0
    for wrong in (f"{token}\n{token}", "I do not know.", format_action(Call("getusertoken", {"username": "ida", "password": "heron"}))):
        assert play(env, task, [wrong, alarm])[0] == 0.5
    env.reset(seed=0, options={"task": task})
    assert env.step('<tool_call>{"name": ')[4]["outcome"] == Outcome.MODEL_ERROR


@shared
def test_the_accuracy_of_a_level_counts_calls_not_dialogues() -> None:
    env = ApiBank(DATA)
    tasks = sorted(env.tasks(env.splits[0]), key=lambda task: -len(env.gold(task)))[:1] + list(env.tasks(env.splits[1])[:2])
    gold = {task.id: env.gold(task) for task in tasks}
    calls = sum(map(len, gold.values()))

    def act(prompt: Prompt) -> str:
        spoilt = prompt.tree.task.id == tasks[0].id and prompt.turn.depth == 0
        return "No." if spoilt else gold[prompt.tree.task.id][prompt.turn.depth]

    result, episodes = asyncio.run(evaluate(partial(ApiBank, DATA), Scripted(act), tasks))
    assert level_accuracy([episode.metrics for episode in episodes]) == pytest.approx((calls - 1) / calls)
    assert result.metrics["right_calls"].estimate / result.metrics["calls"].estimate == pytest.approx((calls - 1) / calls)


def test_the_contract_holds() -> None:
    report = check_env(ApiBank)
    assert [str(problem) for problem in report.problems] == []
    assert "gold" in report.passed


# Files that do not fit.


def written(folder: Path, *turns: Turn) -> Path:
    (folder / "init_database").mkdir()
    for name in (*CHANGED, *READ_ONLY):
        (folder / "init_database" / f"{name}.json").write_text("{}")
    rows = [{"id": "one", "turns": list(turns)}, {"id": "two", "turns": EXAMPLES["level-1-given-desc"][0]["turns"]}]
    (folder / "level-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"role": "API", "api_name": "Nope", "result": {"input": {}, "output": 1}}, "line 1: turns.1.API.api_name: .*no API 'Nope'"),
        ({"role": "API", "api_name": SEARCHER, "result": {"input": {}, "output": [1]}}, "line 1: turns.1.API: .*a known API"),
        ({"role": "Robot", "text": "x"}, "line 1: turns.1: "),
        ({"role": "AI"}, "line 1: turns.1.AI.text: "),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, wrong: Turn, why: str) -> None:
    with pytest.raises(AgentGymError, match=why):
        ApiBank(written(tmp_path, {"role": "User", "text": "x"}, wrong)).tasks("level-1")


def test_a_dialogue_without_a_call_is_no_task(tmp_path: Path) -> None:
    env = ApiBank(written(tmp_path, {"role": "User", "text": "x"}))
    assert [task.id for task in env.tasks("level-1")] == ["two"]


def test_a_folder_that_lacks_something_is_told_what(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AgentGymError, match=r"Account\.json cannot be read .*give API-Bank's folder"):
        ApiBank(tmp_path / "empty")
    (written(tmp_path) / "init_database" / "Stock.json").write_text("{")
    with pytest.raises(AgentGymError, match=r"Stock\.json is not JSON"):
        ApiBank(tmp_path)
