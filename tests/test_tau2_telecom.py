"""tau2-bench's telecom: gold runs of both sides, planted mistakes, the phone's physics, the provider's records, and what joins them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tau2_bench import DATA, played, shared

from agentgym import AgentGymError, Task, call
from agentgym.action import parse_action
from agentgym.envs.check import check_env
from agentgym.envs.tau2.rows import read_tasks
from agentgym.envs.tau2.telecom import Telecom, TelecomSolo
from agentgym.envs.tau2.telecom.handset import specs
from agentgym.envs.tau2.telecom.homemade import tables
from agentgym.envs.tau2.telecom.phone import Phone, data_works, mms_works, searched, speed, status_bar, with_airplane_mode
from agentgym.envs.tau2.telecom.setting import PHONE_ASSERTIONS, PHONE_SET_UP, TABLES_ASSERTIONS, TABLES_SET_UP, TelecomRow

DONE = call("done")
ANA = {"customer_id": "C2001", "line_id": "L2001"}
NAMES = [spec["function"]["name"] for spec in specs()]
READS = [name for name in NAMES if name.startswith(("check", "run", "can"))]
TOGGLES = ["toggle_airplane_mode", "toggle_data", "toggle_roaming", "toggle_data_saver_mode", "toggle_wifi_calling", "reseat_sim_card",
           "reset_apn_settings", "reboot_device", "disconnect_vpn", "make_payment", "toggle_wifi"]  # fmt: skip


def solo(*steps: tuple[str, str, dict[str, Any]]) -> TelecomSolo:
    """A solo episode of Ines Mora's, in whose beginning these were set up."""
    env = TelecomSolo()
    task = env.tasks("train")[0]
    named = ("user", "set_user_info", {"name": "Ines Mora", "phone_number": "555-010-1001"})
    set_up = [{"env_type": side, "func_name": name, "arguments": given} for side, name, given in (named, *steps)]
    env.reset(seed=0, options={"task": replace(task, data={**task.data, "set_up": set_up})})
    return env


def does(env: TelecomSolo, name: str, **arguments: Any) -> str:
    return str(env.step(call(name, **arguments))[0])


def official(env: Telecom) -> list[Task]:
    return [task for split in env.splits if split not in ("train", "test") for task in env.tasks(split)]


@shared
@pytest.mark.parametrize("domain", [Telecom, TelecomSolo])
def test_every_official_task_begins_unsolved_and_its_gold_actions_earn_1(domain: Callable[..., Telecom]) -> None:
    env = domain(DATA)
    for task in official(env):
        env.reset(seed=0, options={"task": task})
        assert not all(env.metrics().values()), task.id
        actions = env.gold(task) or []
        answers, reward, ended = played(env, task, actions)
        assert (reward, ended) == (1.0, True), task.id
        assert not any("Error" in answer for answer in answers), task.id
        assert all(env.holds(one) for one in task.answer["env_assertions"]), task.id


@shared
def test_an_official_task_without_one_of_its_actions_is_lost() -> None:
    env, kept = TelecomSolo(DATA), dict[str, list[bool]]()
    for task in official(env):
        actions = env.gold(task) or []
        for place, action in enumerate(actions[:-1]):
            won = played(env, task, [*actions[:place], *actions[place + 1 :]])[1] == 1.0
            kept.setdefault(parse_action(action).calls[0].name, []).append(won)
    restarts = kept.pop("reboot_device")  # a later restart, or a SIM card that is put in again, makes up for one
    assert not any(won for rewards in kept.values() for won in rewards), kept
    assert sum(restarts) < len(restarts) / 2


@shared
def test_what_is_not_ended_or_ended_at_once_earns_0() -> None:
    env = TelecomSolo(DATA)
    for task in official(env):
        assert played(env, task, [DONE])[1:] == (0.0, True)
        assert played(env, task, (env.gold(task) or [])[:-1])[1:] == (0.0, False)
        assert env.stop("budget")[0] == 0.0


@shared
def test_the_agent_alone_has_a_ticket_and_otherwise_the_users_words() -> None:
    alone, talking = TelecomSolo(DATA), Telecom(DATA)
    task = official(alone)[0]
    alone.reset(options={"task": task})
    talking.reset(options={"task": task})
    scenario = task.data["scenario"]
    assert alone.task.prompt == task.prompt
    assert talking.task.prompt == f"{scenario['reason_for_call']} {scenario['known_info']}" != task.prompt
    assert {tool.name for tool in alone.tools} - {tool.name for tool in talking.tools} == {"done", *NAMES}
    assert len({env.system for env in (alone, talking, TelecomSolo(DATA, guide="workflow"), Telecom(DATA, guide="workflow"))}) == 4


@pytest.mark.parametrize("domain", [Telecom, TelecomSolo])
def test_every_task_of_our_own_begins_unsolved_and_its_gold_actions_earn_1(domain: Callable[..., Telecom]) -> None:
    env = domain()
    for split in env.splits:
        for task in env.tasks(split)[::4]:
            env.reset(seed=0, options={"task": task})
            assert not all(env.metrics().values()), task.id
            assert played(env, task, env.gold(task) or [])[1:] == (1.0, True), task.id


def test_no_combination_of_faults_of_our_own_is_in_two_splits() -> None:
    env = TelecomSolo()
    mixes = [{task.id.rsplit("-", 1)[0] for task in env.tasks(split)} for split in env.splits]
    assert sum(map(len, mixes)) == len(set.union(*mixes))
    assert min(map(len, mixes)) >= 20


@pytest.mark.long
@pytest.mark.parametrize("domain", [Telecom, TelecomSolo])
def test_the_contract_holds(domain: Callable[..., Telecom]) -> None:
    def made() -> Telecom:
        env = domain()
        env.max_turns = env.max_calls = 10  # or the check takes half a minute
        return env

    check_env(made).raise_if_broken()


@given(st.lists(st.sampled_from([*TOGGLES, *READS[:3]]), max_size=12), st.lists(st.sampled_from(TOGGLES), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_fork_goes_on_as_its_origin(before: Sequence[str], after: Sequence[str]) -> None:
    one, other = solo(), TelecomSolo()
    for name in before:
        does(one, name)
    other.restore(one.snapshot())
    assert [does(one, name) for name in after] == [does(other, name) for name in after]
    assert one.key() == other.key()


@given(st.lists(st.sampled_from(TOGGLES), max_size=15))
@settings(max_examples=60, deadline=None)
def test_whatever_the_user_does_the_phone_is_consistent(names: Sequence[str]) -> None:
    env = solo()
    for name in names:
        does(env, name)
        phone = env.phone()
        connected = phone.network_connection_status == "connected"
        assert connected is (phone.network_technology_connected != "none") is (phone.network_signal_strength != "none")
        assert not (phone.airplane_mode and (connected or phone.wifi_enabled or phone.vpn_connected))
        assert (speed(phone) is not None) is data_works(phone)
        assert not mms_works(phone) or data_works(phone)
        assert status_bar(phone).startswith("✈️ Airplane Mode" if phone.airplane_mode else ("📶", "📵"))


@pytest.mark.parametrize(
    ("mode", "fields", "expected"),
    [
        ("2g_only", {}, (0.05, "Very Poor")),
        ("3g_only", {}, (1.5, "Poor")),
        ("4g_only", {}, (44.0, "Good")),
        ("4g_5g_preferred", {}, (275.0, "Excellent")),
        ("4g_5g_preferred", {"vpn_connected": True, "vpn_performance": "poor"}, (27.5, "Good")),
        ("4g_5g_preferred", {"vpn_connected": True}, (275.0, "Excellent")),
        ("4g_5g_preferred", {"data_saver_mode": True}, (55.0, "Good")),
        ("4g_only", {"data_saver_mode": True, "vpn_connected": True, "vpn_performance": "poor"}, (0.88, "Very Poor")),
        ("4g_5g_preferred", {"data_enabled": False}, None),
        ("4g_5g_preferred", {"usage_exceeded": True}, None),
        ("4g_5g_preferred", {"abroad": True, "roaming_enabled": True}, None),
        ("4g_5g_preferred", {"abroad": True, "roaming_allowed": True}, None),
        ("4g_5g_preferred", {"abroad": True, "roaming_enabled": True, "roaming_allowed": True}, (275.0, "Excellent")),
    ],
)
def test_speed_is_that_of_network_signal_vpn_and_data_saver(mode: str, fields: dict[str, Any], expected: tuple[float, str] | None) -> None:
    assert speed(searched(replace(Phone(network_mode_preference=mode), **fields))) == expected


@pytest.mark.parametrize(
    "broken",
    [
        {"sim_card_missing": True},
        {"sim_card_status": "locked_pin"},
        {"airplane_mode": True},
        {"line_active": False},
        {"active_apn_settings": Phone().active_apn_settings.set("apn_name", "broken")},
    ],
)
def test_without_sim_radio_line_or_apn_there_is_no_service(broken: dict[str, Any]) -> None:
    phone = replace(Phone(), **broken)
    assert phone.network_connection_status == "connected"  # until it looks for a network
    assert searched(phone).network_connection_status == "no_service"
    assert speed(searched(phone)) is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("turn_data_off", {}),
        ("set_network_mode_preference", {"mode": "2g_only"}),
        ("set_wifi_calling", {"enabled": True, "mms_over_wifi": True}),
        ("break_apn_mms_setting", {}),
        ("remove_app_permission", {"app_name": "messaging", "permission": "sms"}),
        ("remove_app_permission", {"app_name": "messaging", "permission": "storage"}),
    ],
)
def test_pictures_need_data_and_more(name: str, arguments: dict[str, Any]) -> None:
    assert mms_works(Phone())
    assert not mms_works(PHONE_SET_UP[name](Phone(), **arguments))
    assert mms_works(PHONE_SET_UP["set_wifi_calling"](Phone(), enabled=True, mms_over_wifi=False))


def test_the_status_bar_shows_what_is_on() -> None:
    assert status_bar(Phone()) == "📶³ Good | 5G | 📱 Data Enabled | 🔋 80%"
    saving = replace(Phone(), data_saver_mode=True, vpn_connected=True, wifi_enabled=True)
    assert status_bar(saving) == "📶³ Good | 5G | 📱 Data Enabled | 🔽 Data Saver | 📡 Enabled | 🔒 VPN Connected | 🔋 80%"
    assert status_bar(with_airplane_mode(saving, True)) == "✈️ Airplane Mode | 🔋 80%"
    assert status_bar(searched(replace(Phone(), sim_card_missing=True))) == "📵 No Signal | 📱 Data Enabled | 🔋 80%"


def test_an_apn_is_reset_at_the_next_restart_alone() -> None:
    env = solo(("user", "break_apn_settings", {}))
    assert "📵 No Signal" in does(env, "reset_apn_settings")
    assert "📵 No Signal" in does(env, "toggle_roaming")
    assert "📶⁴ Excellent" in does(env, "reboot_device")


def test_a_bill_is_asked_for_on_one_side_and_paid_on_the_other() -> None:
    env = solo(("assistant", "suspend_line_for_overdue_bill", {**ANA, "new_bill_id": "B1", "contract_ended": True}))
    bill = env.state.tables["bills"]["B1"]
    assert (bill["status"], bill["issue_date"], bill["due_date"], bill["total_due"]) == ("Overdue", "2025-01-01", "2025-01-15", 20.0)
    assert env.state.tables["lines"]["L2001"]["contract_end_date"] == "2025-01-31"
    assert does(env, "make_payment") == "Error: There is no payment request"
    does(env, "send_payment_request", customer_id="C2001", bill_id="B1")
    assert does(env, "send_payment_request", customer_id="C2001", bill_id="B1") == "Error: Bill B1 already awaits payment"
    assert does(env, "check_payment_request") == "Payment request: bill B1, $20.00."
    assert not TABLES_ASSERTIONS["assert_no_overdue_bill"](env.state.tables, "B1")
    does(env, "make_payment")
    assert TABLES_ASSERTIONS["assert_no_overdue_bill"](env.state.tables, "B1")
    assert does(env, "check_payment_request") == "There is no payment request."
    assert "📵 No Signal" in does(env, "reboot_device")
    resumed = json.loads(does(env, "resume_line", **ANA))["line"]
    assert (resumed["status"], resumed["suspension_start_date"]) == ("Active", None)
    assert "📶⁴ Excellent" in does(env, "reboot_device")


def test_data_are_refuelled_onto_a_draft_bill() -> None:
    env = solo(("assistant", "set_data_usage", {**ANA, "data_used_gb": 5.0}))
    assert does(env, "run_speed_test") == "Speed test failed: No Connection."
    assert does(env, "refuel_data", **ANA, gb_amount=0) == "Error: The amount of data must be more than 0 GB"
    assert json.loads(does(env, "refuel_data", **ANA, gb_amount=2))["charge"] == 8.0
    assert json.loads(does(env, "refuel_data", **ANA, gb_amount=0.5))["new_data_refueling_gb"] == 2.5
    (bill,) = json.loads(does(env, "get_bills_for_customer", customer_id="C2001"))
    assert (bill["status"], bill["period_start"], bill["total_due"], len(bill["line_items"])) == ("Draft", "2025-03-01", 10.0, 2)
    usage = json.loads(does(env, "get_data_usage", **ANA))
    assert (usage["data_used_gb"], usage["data_limit_gb"], usage["data_refueling_gb"]) == (5.0, 5.0, 2.5)
    assert usage["cycle_end_date"] == "2025-02-28"
    assert "Excellent" in does(env, "run_speed_test")


def test_records_are_found_or_refused_in_the_benchmarks_words() -> None:
    env = solo()
    assert json.loads(does(env, "get_customer_by_phone", phone_number="555-010-1001"))["customer_id"] == "C2001"
    assert len(json.loads(does(env, "get_customer_by_name", full_name="ines MORA", dob="1991-03-08"))) == 1
    assert does(env, "get_customer_by_name", full_name="Ines Mora", dob="1991-03-09") == "[]"
    assert does(env, "get_customer_by_id", customer_id="C9") == "Error: Customer with ID C9 not found"
    assert does(env, "resume_line", customer_id="C2001", line_id="L2002") == "Error: Line L2002 not found for customer C2001"
    assert does(env, "get_details_by_id", id="X1") == "Error: Unknown ID format or type: X1"
    assert json.loads(does(env, "get_details_by_id", id="P2001"))["data_limit_gb"] == 5.0
    assert does(env, "enable_roaming", **ANA) == "Roaming enabled successfully"
    assert does(env, "enable_roaming", **ANA) == "Roaming was already enabled"
    assert env.phone().roaming_allowed
    assert does(env, "suspend_line", **ANA, reason="lost").startswith('{"message"')
    assert does(env, "suspend_line", **ANA, reason="lost").startswith("Error: Line L2001 is Suspended")
    assert does(env, "grant_app_permission", app_name="maps", permission="sms") == "Error: The phone has no app 'maps'"


def test_every_named_function_and_assertion_works_on_what_it_is_given() -> None:
    flags: dict[str, Any] = {"assert_mobile_data_status": True, "assert_can_send_mms": True, "assert_airplane_mode_status": False,
                             "assert_mobile_roaming_status": False, "assert_mobile_data_saver_mode_status": False,
                             "assert_mobile_data_usage_exceeded": False, "assert_service_status": "connected"}  # fmt: skip
    for name, value in flags.items():
        assert PHONE_ASSERTIONS[name](Phone(), expected_status=value)
        assert not PHONE_ASSERTIONS[name](Phone(), expected_status="no_service" if value == "connected" else not value)
    fast = PHONE_ASSERTIONS["assert_internet_speed"]
    assert fast(Phone(), expected_speed=200, expected_desc="excellent")
    assert not fast(Phone(), expected_speed=250, expected_desc="excellent")
    assert not fast(Phone(), expected_speed=200, expected_desc="good")
    assert PHONE_ASSERTIONS["assert_internet_not_excellent"](replace(Phone(), data_saver_mode=True))
    owing = TABLES_SET_UP["suspend_line_for_overdue_bill"](tables(), **ANA, new_bill_id="B1", contract_ended=False)
    assert TABLES_ASSERTIONS["assert_overdue_bill_exists"](owing, customer_id="C2001", overdue_bill_id="B1")
    assert TABLES_ASSERTIONS["assert_line_status"](owing, **ANA, expected_status="Suspended")
    for setting in ("data", "roaming", "airplane_mode", "data_saver_mode"):
        on, off = PHONE_SET_UP[f"turn_{setting}_on"], PHONE_SET_UP[f"turn_{setting}_off"]
        assert on(Phone()) == on(off(Phone())) != off(Phone()) == off(on(Phone()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"func_name": "turn_into_gold"}, "there is no 'turn_into_gold' for 'user'"),
        ({"arguments": {"mode": "x"}}, "turn_data_off: got an unexpected keyword argument 'mode'"),
        ({"env_type": "assistant"}, "there is no 'turn_data_off' for 'assistant'"),
    ],
)
def test_a_row_that_asks_for_what_there_is_not_is_named(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    row = {"id": "a", "user_scenario": {"instructions": {}}, "evaluation_criteria": {"reward_basis": ["ENV_ASSERTION"]}}
    action = {"env_type": "user", "func_name": "turn_data_off", "arguments": {}} | change
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(row | {"initial_state": {"initialization_actions": [action]}}))
    with pytest.raises(AgentGymError, match=f"line 1: row: Value error, {why}"):
        read_tasks(file, TelecomRow)


def test_a_file_that_is_missing_or_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("")
    with pytest.raises(AgentGymError, match=r"main_policy.md is missing"):
        Telecom(tmp_path)
    for file in ("main_policy.md", "tech_support_manual.md", "db.toml", "user_db.toml"):
        (tmp_path / file).write_text("")
    with pytest.raises(AgentGymError, match="is of another version"):
        Telecom(tmp_path)


def test_odd_arguments_are_answered() -> None:
    env = solo()
    before = env.state.tables
    for amount in ("nan", "inf", "-inf", 10**30, 1000.5, 0, -1, "x", [None], None):
        assert does(env, "refuel_data", **ANA, gb_amount=amount).startswith("Error: ")
    assert env.state.tables == before
    assert "Added 1000.0 GB" in does(env, "refuel_data", **ANA, gb_amount=1000)
    assert does(env, "get_bills_for_customer", customer_id="C2001", limit=-3) == "[]"
    assert does(env, "set_apn_settings", apn_settings={"apn_name": "broken"}).endswith("🔋 80%")
    assert env.phone().network_connection_status == "no_service"


def test_solo_has_no_user() -> None:
    with pytest.raises(AgentGymError, match="solo= has no user"):
        Telecom(solo=True, url="http://x", model="m")
