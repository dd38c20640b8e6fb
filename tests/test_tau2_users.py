"""Users of tau2-bench's tasks: they speak and use the phone, the agent sees only what they say, and their faults are nobody's reward."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from tau2_bench import DATA, airline_folder, retail_folder, shared

from agentgym import Call, call
from agentgym.envs.tau.users import STOP, InstructedUser, ReplayingUser
from agentgym.envs.tau2.airline import Tau2Airline
from agentgym.envs.tau2.retail import Tau2Retail
from agentgym.envs.tau2.telecom import Telecom
from agentgym.envs.tau2.telecom.handset import specs
from agentgym.envs.tau2.users import ENOUGH, MOST_DEEDS, OUT_OF_SCOPE, STOPS, TRANSFERRED, ObedientUser, role, role_with_phone
from agentgym.envs.user.phone import Device
from agentgym.envs.user.users import UserFailure, UserTurn, UserView
from agentgym.tools.completion import Said, ScriptedCompletion

AIRPLANE = "service-airplane-L2001"


def talking(*answers: Said | str, task: str = AIRPLANE) -> tuple[Telecom, ScriptedCompletion]:
    completion = ScriptedCompletion(answers)
    env = Telecom(user=InstructedUser(completion, role_with_phone, specs()))
    split = next(split for split in env.splits if any(one.id == task for one in env.tasks(split)))
    env.reset(seed=0, options={"task": task, "split": split})
    return env, completion


def uses(name: str, **arguments: Any) -> Said:
    return Said(calls=(Call(name, arguments),))


def test_what_the_user_does_with_the_phone_is_done_and_hidden() -> None:
    env, _ = talking("No service here.", uses("toggle_airplane_mode"), uses("check_status_bar"), "It says excellent.", f"Thanks. {STOP}")
    assert env.phone().airplane_mode
    observation, _, _, _, info = env.step("Please turn airplane mode off.")
    assert observation == "It says excellent."
    assert "toggle" not in str(info["messages"])
    assert not env.phone().airplane_mode
    assert [call.name for call in env.state.calls] == ["toggle_airplane_mode", "check_status_bar"]
    assert env.step("Goodbye.")[:3] == (f"Thanks. {STOP}", 1.0, True)


def test_a_model_that_plays_the_user_reads_what_its_phone_showed_and_its_errors() -> None:
    wrong = uses("grant_app_permission", app_name="maps", permission="sms")
    env, completion = talking("Help.", wrong, uses("fly"), uses("check_sim_status"), "It works.")
    env.step("And now?")
    shown = [message["content"] for message in completion.asked[-1] if message["role"] == "tool"]
    assert shown == ["Error: The phone has no app 'maps'", "Error: No tool named 'fly'", "The SIM card is active and works."]
    made = [message["tool_calls"][0] for message in completion.asked[-1] if "tool_calls" in message]
    answered = [message["tool_call_id"] for message in completion.asked[-1] if message["role"] == "tool"]
    assert [one["id"] for one in made] == answered
    assert orjson.loads(made[0]["function"]["arguments"]) == {"app_name": "maps", "permission": "sms"}


@pytest.mark.parametrize("odd", [2**64, float("nan"), orjson.loads("[" * 100 + "]" * 100), orjson.loads("[" * 500 + "]" * 500)])
def test_a_model_whose_call_cannot_be_written_down_is_asked_again_and_then_at_fault(odd: Any) -> None:
    wrong = uses("grant_app_permission", app_name=odd, permission="sms")
    env, _ = talking("Help.", wrong, uses("check_sim_status"), "It works.", wrong, wrong, wrong)
    assert env.step("And now?")[0] == "It works."
    assert [made.name for made in env.state.calls] == ["check_sim_status"]
    with pytest.raises(UserFailure, match="3 times"):
        env.step("And now?")


def test_a_user_is_told_its_scenario_who_it_is_and_how_to_end() -> None:
    env, completion = talking("Help.")
    told = completion.asked[0][0]["content"]
    assert all(stop in told for stop in STOPS)
    assert env.task.data["scenario"]["reason_for_call"] in told
    view = UserView("goal", {}, "A shy person.", Device(), "", ())
    assert "shy" in role(view)
    assert role_with_phone(view).startswith(f"{role(view)}\n")


@pytest.mark.parametrize("stop", [STOP, TRANSFERRED, OUT_OF_SCOPE])
def test_each_of_three_words_of_the_user_ends_the_conversation(stop: str, tmp_path: Path) -> None:
    env = Tau2Retail(retail_folder(tmp_path), ReplayingUser(["Hello.", "Yes.", f"Well. {stop}"]))
    env.reset(seed=0)
    assert env.step(call("transfer_to_human_agents", summary="?"))[2] is False
    assert env.step("Really?")[2] is False
    assert env.step("YOU ARE BEING TRANSFERRED.")[1:3] == (1.0, True)


class Restless:
    blocking = False

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        return UserTurn("Hi.") if len(view.dialogue) == 1 else UserTurn(actions=(Call("reboot_device", {}),))


class Hasty:
    blocking = False

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        acts = (Call("toggle_data", {}),) if view.dialogue[-1].speaker == "agent" and len(view.dialogue) > 1 else ()
        return UserTurn("Done." if not acts else "I do.", acts)


def test_who_acts_and_speaks_at_once_acts_first_and_then_speaks_again() -> None:
    env = Telecom(user=Hasty())
    env.reset(seed=0)
    assert env.step("Now.")[0] == "Done."
    assert [line.text for line in env.state.dialogue if line.speaker == "user"] == ["Done.", "Done."]


def test_an_obedient_user_does_so_much_and_then_tells_so_that_no_words_of_the_agent_leave_an_episode_without_a_verdict() -> None:
    env = Telecom()
    env.reset(seed=0)
    told = env.step("check_status_bar " * 3 * MOST_DEEDS)[0]
    assert told.count("check_status_bar: Status Bar") == MOST_DEEDS - 1
    assert env.step("Goodbye.")[2] is True


def test_a_user_that_does_things_without_end_is_stopped_and_asks_for_one_at_a_time() -> None:
    env = Telecom(user=Restless())
    env.reset(seed=0)
    assert env.step("Restart it.")[:3] == (ENOUGH, 0.0, False)
    assert len(env.state.calls) == MOST_DEEDS
    assert env.state.dialogue[-1].text == ENOUGH


def test_a_user_that_opens_no_conversation_is_at_fault() -> None:
    restless = InstructedUser(ScriptedCompletion(lambda *_: uses("reboot_device")), role_with_phone, specs())
    with pytest.raises(UserFailure, match="30 things and more"):
        Telecom(user=restless).reset(seed=0)
    mute = Telecom(user=ReplayingUser([" "]))
    with pytest.raises(UserFailure, match="says and does nothing"):
        mute.reset(seed=0)


def test_an_obedient_user_does_what_it_hears_named_in_that_order_and_tells() -> None:
    env = Telecom()
    env.reset(seed=0, options={"task": AIRPLANE, "split": next(s for s in env.splits if AIRPLANE in [t.id for t in env.tasks(s)])})
    assert env.task.prompt == "The phone has no service. The customer is Ines Mora, phone number 555-010-1001."
    told = env.step("Use toggle_airplane_mode, then `set_network_mode_preference(mode='3g_only')` and check_app_permissions(messaging).")[0]
    first, second, third = str(told).split("\n", 4)[0], str(told).split("\n")[2], str(told).split("\n")[-1]
    assert first == "toggle_airplane_mode: Airplane Mode is now OFF."
    assert second == "set_network_mode_preference: The preferred network mode is now 3g_only."
    assert third == "check_app_permissions: Permissions of messaging: sms, storage, phone."
    assert env.step("Do you like it?")[0] == "What shall I do with my phone?"
    assert env.step("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.")[0] == TRANSFERRED


def test_an_obedient_user_reads_long_words_fast() -> None:
    env = Telecom()
    env.reset(seed=0)
    for odd in ("check_status_bar(" * 6000, f"set_network_mode_preference({'a' * 100_000})", f"toggle_data({'a ' * 50_000})"):
        assert "check_status_bar: " in env.step(f"check_status_bar {odd}")[0]


def test_an_obedient_user_answers_with_the_error_of_what_it_cannot_do() -> None:
    env = Telecom()
    env.reset(seed=0)
    assert env.step("connect_vpn and set_network_mode_preference(9g)")[0].count("Error: ") == 2


def test_a_talk_forks_in_the_middle() -> None:
    one, other = Telecom(), Telecom()
    one.reset(seed=0)
    one.step("toggle_data")
    other.restore(one.snapshot())
    assert one.step("toggle_data and check_status_bar")[0] == other.step("toggle_data and check_status_bar")[0]
    assert one.key() == other.key()


def test_replies_and_deeds_are_remembered_in_a_file(tmp_path: Path) -> None:
    for answers in (("Help.", uses("check_sim_status"), "It is active."), ()):
        user = InstructedUser(ScriptedCompletion(answers), role_with_phone, specs())
        env = Telecom(user=user, cache=tmp_path / "user.jsonl")
        env.reset(seed=0)
        assert (env.task.prompt, env.step("Look.")[0]) == ("Help.", "It is active.")


@shared
def test_gold_actions_in_a_conversation_earn_what_they_earn_alone(tmp_path: Path) -> None:
    user = ReplayingUser(["Hello.", "Thanks.", STOP])
    alone, env = Tau2Airline(DATA), Tau2Airline(DATA, user)
    for task in alone.tasks("base"):
        env.reset(seed=0, options={"task": task})
        assert env.task.prompt == "Hello."
        replies = [env.step(action) for action in alone.gold(task) or [] if '"done"' not in action]
        while env.ended is None:
            replies.append(env.step("Anything else?"))
        assert replies[-1][1:3] == (1.0, True), task.id
    assert env.gold(task) is None
    assert Tau2Airline(airline_folder(tmp_path), ObedientUser(specs())).blocking is False
