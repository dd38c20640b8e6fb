"""ACEBench's agents: how an episode goes, with a user and without, by what it is judged, and the shared half."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym import AgentGymError, Call, Lineage, Outcome, Rollout, Start, Task, call, format_action
from agentgym.action import parse_action
from agentgym.envs.acebench import AceBench
from agentgym.envs.acebench.agents import NOBODY, OVER
from agentgym.envs.acebench.ends import reached, share_met, written
from agentgym.envs.acebench.solving import played
from agentgym.envs.acebench.tasks import tasks
from agentgym.envs.acebench.town import AGENT_EXAMPLES, TABLES
from agentgym.envs.acebench.users import FINISH, role, view
from agentgym.envs.acebench.world import World
from agentgym.envs.calls import read_calls
from agentgym.envs.tau.users import GREETING, InstructedUser, ReplayingUser
from agentgym.envs.user.users import Line, User, UserTurn, UserView
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.tools.completion import ScriptedCompletion

DATA = Path(__file__).parents[2] / "shared" / "data" / "acebench"
SIMULATORS = Path(os.environ.get("AGENTGYM_ACEBENCH_SIMULATORS", DATA / "simulators"))
shared = pytest.mark.skipif(
    not (DATA.is_dir() and (SIMULATORS / "travel.py").is_file()),
    reason=f"ACEBench is not at {DATA}, or its simulators not at {SIMULATORS} (AGENTGYM_ACEBENCH_SIMULATORS names another folder)",
)
AGENTS = ("agent_multi_step", "agent_multi_turn")
LOGIN = call("login_food_platform", username="Ada", password="heron")
NOTE = call("add_reminder", title="Feed", description="the cat", time="2024-06-11 18:00")


def started(id: str, user: User | None = None) -> AceBench:
    env = AceBench(user=user)
    (task,) = (task for split in AGENTS for task in env.tasks(split) if task.id == id)
    env.reset(seed=0, options={"task": task})
    return env


def play(env: AceBench, actions: Sequence[str]) -> tuple[float, dict[str, float]]:
    """To the end of the episode, which the last action or the limit is."""
    for action in actions:
        _, reward, terminated, truncated, info = env.step(action)
    assert terminated or truncated
    return float(reward), info["metrics"]


def gold(env: AceBench) -> list[str]:
    actions = env.gold(env.task)
    assert actions is not None
    return actions


# An episode.


@pytest.mark.parametrize("id", [row["id"] for split in AGENTS for row in AGENT_EXAMPLES[split]])
def test_the_known_calls_leave_the_apps_as_they_are_wanted(id: str) -> None:
    env = started(id)
    assert play(env, gold(env)) == (1.0, {"official": 1.0, "process": 1.0})


def test_each_call_of_the_known_ones_is_needed_but_for_those_that_only_look() -> None:
    needless = []
    for id in ("loaf", "choir", "later"):
        actions = gold(started(id))
        for number in range(len(actions) - 1):
            if play(started(id), [*actions[:number], *actions[number + 1 :]])[0]:
                needless.append(json.loads(actions[number].split("\n")[1])["name"])
    looks = ["view_messages_between_users", "get_earliest_message_id", "get_reservation_details", "get_flight_details"]
    assert needless == looks


def test_calls_may_be_written_as_text_and_several_at_once() -> None:
    env = started("loaf")
    observation, _, _, _, info = env.step("[turn_on_wifi(), login_food_platform(username='Ada', password='heron')]")
    assert info["messages"] == [{"role": "user", "content": observation}]
    assert observation.count('"status": true') == 2
    later = [written(parse_action(action).calls) for action in gold(env)[2:4]]
    assert play(env, [*later, FINISH])[0] == 1.0


def test_words_end_a_task_without_a_user_only_where_they_say_so_and_not_at_once() -> None:
    env = started("loaf")
    first = gold(env)[0]
    for words in (FINISH, "What shall I do?"):
        assert env.step(words)[:3] == (NOBODY, 0.0, False)
    assert env.step(first)[2] is False
    assert env.step(f"All done: {FINISH}.")[:3] == (OVER, 0.0, True)


def test_words_that_end_come_before_calls() -> None:
    env = started("loaf")
    *before, last, _ = gold(env)
    reward, metrics = play(env, [*before, f"I {FINISH} now. {last}"])
    assert (reward, metrics) == (0.0, {"official": 0.0, "process": 0.75})


def test_twenty_actions_are_the_most_and_what_is_done_by_then_counts() -> None:
    env = started("loaf")
    actions = [*gold(env)[:-1], *["Hm."] * 16]
    for action in actions[:-1]:
        assert env.step(action)[2:4] == (False, False)
    _, reward, terminated, truncated, _ = env.step(actions[-1])
    assert (reward, terminated, truncated) == (1.0, False, True)


def test_a_malformed_action_is_told_and_costs_a_turn() -> None:
    env = started("choir", ReplayingUser(["Hello."]))
    observation, _, terminated, _, info = env.step('<tool_call>{"name": ')
    assert (observation.startswith("Error: "), terminated, info["outcome"]) == (True, False, Outcome.MODEL_ERROR)
    assert env.step("")[4]["outcome"] == Outcome.MODEL_ERROR
    assert env.state.key(env.task) != started("choir").key()


def test_what_is_refused_is_an_error_of_a_tool() -> None:
    env = started("loaf")
    _, _, _, _, info = env.step(LOGIN)
    assert (info["outcome"], "Wi-Fi" in info["messages"][0]["content"]) == (Outcome.TOOL_ERROR, True)


@pytest.mark.parametrize(
    ("calls", "opened"),
    [
        ([Call("no_such", {}), Call("login_device", {})], False),
        ([Call("delete_message", {}), Call("login_device", {})], False),
        ([Call("delete_message", {"message_id": 1}), Call("login_device", {})], True),
        ([Call("get_latest_message_id", {}), Call("no_such", {}), Call("login_device", {})], True),
    ],
)
def test_in_a_conversation_nothing_is_called_after_a_call_that_breaks_down(calls: list[Call], opened: bool) -> None:
    env = started("choir")
    _, _, _, _, info = env.step(format_action(*calls))
    assert [(message["role"], message["name"]) for message in info["messages"]] == [("tool", one.name) for one in calls]
    alone = started("loaf")
    alone.step(format_action(Call("delete_reminder", {}), Call("turn_on_wifi", {})))
    found = [env.state.world.parts["BaseApi"]["logged_in"], alone.state.world.parts["BaseApi"]["wifi"]]  # type: ignore[union-attr]
    assert found == [opened, True]


def test_the_policy_is_told_the_rules_of_the_apps_that_the_task_has() -> None:
    told = {}
    for id in ("loaf", "choir", "later"):
        env = started(id)
        told[id] = env.opening()[0]["content"]
        assert [tool["function"]["name"] for tool in env.tool_specs] == [one["name"] for one in env.task.data["functions"]]
    assert all(FINISH in words for words in told.values())
    rules = {id: ("July" in words, "June" in words, "Nobody answers" in words) for id, words in told.items()}
    assert rules == {"loaf": (False, False, True), "choir": (False, True, False), "later": (True, False, False)}


def test_an_episode_goes_on_from_where_it_was_forked() -> None:
    env = started("choir", ReplayingUser(["Hello.", "Do.", "Thanks."]))
    actions = gold(env)
    for action in ("What can I do?", *actions[:3]):
        env.step(action)
    saved, key = env.snapshot(), env.key()
    first = play(env, actions[3:])
    other = AceBench(user=ReplayingUser(["Hello.", "Do.", "Thanks."]))
    other.restore(saved)
    assert (other.key(), play(other, actions[3:])) == (key, first)
    assert first[0] == 1.0


# The user.


def test_the_agent_reads_the_users_words_and_the_user_is_told_the_task() -> None:
    completion = ScriptedCompletion(["Hi there.", "The oldest.", FINISH])
    env = started("choir", InstructedUser(completion, role))
    assert env.opening()[1]["content"] == "Hi there."
    assert "Thank you, I shall sing" not in str(env.opening())
    assert env.step("Which one shall I delete?")[:3] == ("The oldest.", 0.0, False)
    env.step(call("login_device"))
    assert env.step("Anything else?")[:3] == (FINISH, 0.0, True)
    system, *heard = completion.asked[-1]
    assert "Thank you, I shall sing" in system["content"]
    said = [GREETING, "Hi there.", "Which one shall I delete?", "The oldest.", "Anything else?"]
    assert [message["content"] for message in heard] == said


def test_what_a_user_is_told_names_the_task_and_how_to_end() -> None:
    seen = view("You are Ben.", [Line("user", "Hello.")])
    assert [(line.speaker, line.text) for line in seen.dialogue] == [("agent", GREETING), ("user", "Hello.")]
    assert "You are Ben." in role(seen)
    assert FINISH in role(seen)


def test_the_user_ends_the_conversation_but_not_in_answer_to_the_first_action() -> None:
    env = started("later", ReplayingUser(["Hello.", FINISH, "Yes.", f"Thanks, {FINISH}."]))
    assert env.step("Hello?")[:3] == (FINISH, 0.0, False)
    assert env.step("Hello?")[:3] == ("Yes.", 0.0, False)
    *_, change, _ = gold(env)
    assert env.step(change)[2] is False
    assert env.step("It is done.")[:3] == (f"Thanks, {FINISH}.", 1.0, True)


class Silent:
    blocking = False

    def reply(self, view: UserView, rng: Any) -> UserTurn:
        return UserTurn("Hello." if len(view.dialogue) == 1 else " ")


class Busy(Silent):
    def reply(self, view: UserView, rng: Any) -> UserTurn:
        return UserTurn("Hello.", () if len(view.dialogue) == 1 else (Call("restart", {}),))


@pytest.mark.parametrize("user", [Silent(), Busy(), ReplayingUser(["Hello."]), ReplayingUser([])])
def test_an_episode_whose_user_fails_has_no_verdict(user: User) -> None:
    actors = {"agent": Scripted(lambda prompt: "Hi.")}
    rollout = Rollout(lambda: AceBench(user=user), Groups(1, "agent"), actors, None, Lineage.of(0, "test"))
    (leaf,) = asyncio.run(rollout.run([Start(AceBench().tasks("agent_multi_turn")[0])]))[0].leaves()
    assert (leaf.reward, leaf.end, leaf.outcome) == (None, "error", Outcome.INFRASTRUCTURE)
    assert leaf.error.startswith("UserFailure: ")


def test_a_user_has_no_part_in_a_task_of_many_steps() -> None:
    env = started("loaf", ReplayingUser([]))
    assert env.opening()[1]["content"] == env.task.data["wish"]
    assert env.step("Hello?")[0] == NOBODY


# What is right.


def test_what_was_done_besides_passes_the_program_but_earns_nothing() -> None:
    env = started("loaf")
    *calls, end = gold(env)
    assert play(env, [*calls, NOTE, end]) == (0.0, {"official": 1.0, "process": 1.0})


def test_who_calls_nothing_has_done_nothing_even_where_nothing_is_to_be_done() -> None:
    task = AceBench().tasks("agent_multi_turn")[1]
    ends = [{"Travel": World.start(TABLES, ["Travel"], task.data["device"]).saved()["Travel"]}]
    idle = Task("idle", "Nothing.", {"ends": ends, "milestones": []}, "agent_multi_turn", task.data)
    for actions, reward in ((["Hm.", FINISH], 0.0), ([call("get_user_details"), FINISH], 0.0), ([call("get_flight_details"), FINISH], 1.0)):
        env = AceBench()
        env.reset(seed=0, options={"task": idle})
        assert play(env, actions)[0] == reward
    assert AceBench().gold(idle) is None


def test_who_reaches_the_end_by_another_way_has_met_all_milestones() -> None:
    env = started("later")
    *_, change, end = gold(env)
    assert play(env, [change, end]) == (1.0, {"official": 1.0, "process": 1.0})


@pytest.mark.parametrize(("id", "share"), [("loaf", 1.0), ("choir", 0.0)])
def test_words_that_are_no_calls_count_as_a_milestone_only_where_they_are_not_for_a_user(id: str, share: float) -> None:
    env, words = started(id), "[get_products(merchant_name='Ada's')]"
    task = Task(id, "", {**env.task.answer, "milestones": [[words]]}, env.task.split, env.task.data)
    env.reset(seed=0, options={"task": task})
    assert play(env, [words, FINISH]) == (0.0, {"official": 0.0, "process": share})


INBOX = {"inbox": {"1": {"message": "a"}}}


@pytest.mark.parametrize(
    ("found", "wanted", "right", "official"),
    [
        ({"A": {"x": 1}}, [{"A": {"x": 1}}], True, True),
        ({"A": {"x": 1}}, [{"A": {"x": 2}}], False, False),
        ({"A": {"x": 1}}, [{"A": {"x": 1, "y": 2}}], True, True),
        ({"A": {"x": 1, "y": 2}}, [{"A": {"x": 1}}], False, False),
        ({"A": {"x": [1]}}, [{"A": {"x": [1, 2]}}], False, False),
        ({"A": INBOX}, [{"A": {"inbox": {}}}], False, True),
        ({"A": {"inbox": {}}}, [{"A": INBOX}], False, False),
        ({"A": {"inbox": {"1": {"message": "b"}}}}, [{"A": INBOX}], False, False),
        ({"A": {"x": 1}, "B": {"x": 1}}, [{"A": {"x": 1}}], False, False),
        ({"A": {"x": 1}, "B": {"x": 1}}, [{"A": {"x": 1}}, {"Bee": {"x": 2}}], True, True),
        ({"A": {"x": 1}, "B": {"x": 1}}, [{"Bee": {"x": 2}}, {"A": {"x": 2}}], False, False),
    ],
)
def test_an_end_is_compared_app_by_app(found: Any, wanted: Any, right: bool, official: bool) -> None:
    assert (reached(found, wanted), reached(found, wanted, official=True)) == (right, official)


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        (["[a()]", "[b(x='1')]", "[c()]"], 1.0),
        (["[a()]", "Hm.", '[b(x = "1")] ', "[c()]"], 1.0),
        (["[a()]", "[c()]"], 1 / 3),
        (["[c()]", "[b(x='1')]", "[a()]"], 1 / 3),
        (["[a(), b(x='1')]", "[c()]"], 0.0),
        (["[d()]"], 0.5),
        ([], 0.0),
    ],
)
def test_milestones_are_met_in_their_order_and_none_after_one_that_was_not(asked: list[str], share: float) -> None:
    assert share_met(asked, [["[a()]", "[b(x='1')]", "[c()]"], ["[d()]", "[e()]"]]) == pytest.approx(share)


def test_calls_are_written_as_milestones_are() -> None:
    calls = [Call("f", {"a": "Domino's", "b": [{"c": 1}]}), Call("g", {})]
    assert share_met([written(calls)], [["[f(a='Domino's', b=[{'c':1}]), g()]"]]) == 1.0


def test_an_end_to_which_no_calls_are_known_has_no_gold() -> None:
    env = AceBench()
    task = env.tasks("agent_multi_turn")[0]
    for ends in ([{"BaseApi": {"wifi": False, "logged_in": True}}, {"MessageApi": {"inbox": {}}}], [{"BaseApi": {}}, {"MessageApi": {}}]):
        assert env.gold(Task(task.id, "", {**task.answer, "ends": ends}, task.split, task.data)) is None


@pytest.mark.parametrize("id", ["loaf", "choir", "later"])
def test_gold_is_found_from_the_end_alone(id: str) -> None:
    env = started(id)
    for milestones in ([], [["[f(a='Ada's')]"], ["[login_device()]"]]):
        task = Task(id, "", {**env.task.answer, "milestones": milestones}, env.task.split, env.task.data)
        assert play(started(id), env.gold(task) or [])[0] == 1.0
    ways = [["[f(a='Ada's')]"], *env.task.answer["milestones"]]
    assert env.gold(Task(id, "", {**env.task.answer, "milestones": ways}, env.task.split, env.task.data)) == gold(env)


# Rows that do not fit.


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"involved_classes": ["Finance"]}, r"line 1: involved_classes\.0: "),
        ({"involved_classes": []}, "line 1: involved_classes: "),
        ({"ground_truth": []}, "line 1: ground_truth: "),
        ({"mile_stone": "x"}, "line 1: mile_stone"),
        ({"initial_config": {"BaseApi": {"wifi": "far"}}}, r"line 1: initial_config\.BaseApi\.wifi: "),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    (tmp_path / "agent_multi_step.jsonl").write_text(json.dumps({**AGENT_EXAMPLES["agent_multi_step"][0], **fields}) + "\n")
    with pytest.raises(AgentGymError, match=why):
        tasks(tmp_path, "agent_multi_step")


# The shared half, with the benchmark's own simulators.

LEADING = {  # tasks whose milestones, as they stand, lead to the known end
    *(f"agent_multi_step_{number}" for number in (2, 3, 8, 9, 19)),
    *(f"agent_multi_turn_{number}" for number in (1, 2, 3, 7, 18, 19, 21, 23)),
}


@shared
@pytest.mark.parametrize("split", AGENTS)
def test_known_calls_of_the_shared_half_earn_full_reward_and_pass_as_the_program_grades(split: str) -> None:
    env = AceBench(DATA, simulators=SIMULATORS)
    assert env.tasks(split)
    for task in env.tasks(split):
        env.reset(seed=0, options={"task": task})
        assert play(env, gold(env)) == (1.0, {"official": 1.0, "process": 1.0}), task.id


@shared
def test_milestones_of_the_shared_half_lead_to_the_known_ends_where_they_can() -> None:
    env, leading = AceBench(DATA, simulators=SIMULATORS), set()
    for task in (task for split in AGENTS for task in env.tasks(split)):
        for way in task.answer["milestones"]:
            try:
                calls = [one for stone in way for one in read_calls(stone)]
            except ValueError:  # a quote within quotes
                continue
            if reached(played(env._world(task), calls).saved(), task.answer["ends"], official=True):
                leading.add(task.id)
    assert leading == LEADING
