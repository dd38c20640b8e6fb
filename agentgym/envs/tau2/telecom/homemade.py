"""A small provider of our own with three customers, whose tasks are combinations of faults: for training, and where no data are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from agentgym.envs.tau2.telecom.setting import TelecomRow
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict, freeze

SIZES = {"validation": 20, "test": 40}  # combinations of faults, each for every customer; all others are for training
MOST_FAULTS = 3
REFUEL_GB = 2.0
BILL = "B2001"
PLAN = {"plan_id": "P2001", "name": "Small", "data_limit_gb": 5.0, "price_per_month": 20.0, "data_refueling_price_per_gb": 4.0}
_RULES = (
    "Find the customer by phone number, look for every fault that explains the problem, have it mended, check, and {end}. A suspended line "
    "may be resumed once its overdue bills are paid: send a payment request, have it paid on the phone, resume the line, have the phone "
    "restarted. APN settings are reset on the phone, which is then restarted. Roaming needs the line's and the phone's. Data that are used "
    "up may be refuelled. A SIM card that is locked is for a human agent: transfer. Change nothing else."
)
TODAY = "Today is 2025-02-25."
POLICY = f"You are a phone company's support agent, with its records and the customer's phone. {TODAY} {_RULES.format(end='end')}"
GUIDED = (
    f"You are a phone company's support agent, with its records; the customer has the phone, and uses the tools that you name. {TODAY} "
    f"{_RULES.format(end='say goodbye')}"
)


@dataclass(frozen=True, slots=True)
class Customer:
    customer_id: str
    line_id: str
    name: str
    number: str
    birthday: str


CUSTOMERS = (
    Customer("C2001", "L2001", "Ines Mora", "555-010-1001", "1991-03-08"),
    Customer("C2002", "L2002", "Tom Adeyemi", "555-010-1002", "1979-07-21"),
    Customer("C2003", "L2003", "Lena Vogt", "555-010-1003", "1988-12-02"),
)
Step = tuple[str, str, dict[str, Any]]  # a side, a name, arguments; "LINE" stands for the customer's ids


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    breaks: tuple[Step, ...]
    mends: tuple[Step, ...]
    said: str = ""  # on the ticket


LINE: dict[str, Any] = {"LINE": True}
RESET: tuple[Step, ...] = (("user", "reset_apn_settings", {}), ("user", "reboot_device", {}))
ABROAD: Step = ("user", "set_user_location", {"abroad": True})
SERVICE = (
    Fault("airplane", (("user", "turn_airplane_mode_on", {}),), (("user", "toggle_airplane_mode", {}),)),
    Fault("sim", (("user", "unseat_sim_card", {}),), (("user", "reseat_sim_card", {}),)),
    Fault("apn", (("user", "break_apn_settings", {}),), RESET),
    Fault(
        "bill",
        (
            ("assistant", "suspend_line_for_overdue_bill", {**LINE, "new_bill_id": BILL, "contract_ended": False}),
            ("user", "simulate_network_search", {}),
        ),
        (
            ("assistant", "send_payment_request", {"CUSTOMER": True, "bill_id": BILL}),
            ("user", "make_payment", {}),
            ("assistant", "resume_line", LINE),
            ("user", "reboot_device", {}),
        ),
        "They are ready to pay what they owe.",
    ),
)
TRANSFER: Step = ("assistant", "transfer_to_human_agents", {"summary": "The SIM card is locked."})
LOCKED = Fault("locked", (("user", "lock_sim_card", {"mode": "pin"}),), (TRANSFER,))
DATA = (
    Fault("off", (("user", "turn_data_off", {}),), (("user", "toggle_data", {}),)),
    Fault("used", (("assistant", "set_data_usage", {**LINE, "data_used_gb": 5.1}),),
          (("assistant", "refuel_data", {**LINE, "gb_amount": REFUEL_GB}),), f"They are ready to pay for {REFUEL_GB} GB of data."),
    Fault("roaming", (ABROAD, ("assistant", "enable_roaming", LINE)), (("user", "toggle_roaming", {}),), "They are abroad."),
    Fault("line roaming", (ABROAD, ("user", "turn_roaming_on", {})), (("assistant", "enable_roaming", LINE),), "They are abroad."),
)  # fmt: skip
SLOW = (
    Fault("mode", (("user", "set_network_mode_preference", {"mode": "2g_only"}),),
          (("user", "set_network_mode_preference", {"mode": "4g_5g_preferred"}),)),
    Fault("saver", (("user", "turn_data_saver_mode_on", {}),), (("user", "toggle_data_saver_mode", {}),)),
    Fault("vpn", (("user", "break_vpn", {}),), (("user", "disconnect_vpn", {}),)),
)  # fmt: skip
MESSAGES = (
    Fault("mmsc", (("user", "break_apn_mms_setting", {}),), RESET),
    Fault("calling", (("user", "set_wifi_calling", {"enabled": True, "mms_over_wifi": True}),), (("user", "toggle_wifi_calling", {}),)),
    Fault("storage", (("user", "remove_app_permission", {"app_name": "messaging", "permission": "storage"}),),
          (("user", "grant_app_permission", {"app_name": "messaging", "permission": "storage"}),)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Goal:
    """What does not work, of which at least one of ``own`` is a cause; ``also`` may be others."""

    name: str
    complaint: str
    asserted: tuple[Step, ...]
    own: tuple[Fault, ...]
    also: tuple[Fault, ...] = ()


GOALS = (
    Goal("service", "The phone has no service.", (("user", "assert_service_status", {"expected_status": "connected"}),), SERVICE),
    Goal(
        "data",
        "Mobile data does not work, or is slow; it should be excellent.",
        (("user", "assert_internet_speed", {"expected_speed": 200, "expected_desc": "excellent"}),),
        (*DATA, *SLOW),
        SERVICE[:2],
    ),
    Goal(
        "mms",
        "Picture messages cannot be sent.",
        (("user", "assert_can_send_mms", {"expected_status": True}),),
        MESSAGES,
        (SERVICE[0], DATA[0], DATA[1], SLOW[0]),
    ),
)


@cache
def tables() -> FrozenDict:
    found: FrozenDict = freeze({
        "plans": {PLAN["plan_id"]: PLAN},
        "devices": {},
        "bills": {},
        "lines": {one.line_id: _line(one) for one in CUSTOMERS},
        "customers": {one.customer_id: _customer(one) for one in CUSTOMERS},
    })  # fmt: skip
    return found


@cache
def tasks() -> dict[str, tuple[Task, ...]]:
    """Tasks by split. No combination of a goal and faults is in two of them."""
    mixes = list(_mixes())
    Lineage.of(0, "tau2", "telecom").rng().shuffle(mixes)
    found, start = {}, 0
    for split, size in SIZES.items():
        found[split] = mixes[start : start + size]
        start += size
    by_split = {"train": mixes[start:], **found}
    return {split: tuple(_task(split, who, *mix) for mix in own for who in CUSTOMERS) for split, own in by_split.items()}


def _mixes() -> Iterator[tuple[Goal, tuple[Fault, ...]]]:
    for goal in GOALS:
        for count in range(1, MOST_FAULTS + 1):
            for faults in combinations((*goal.also, *goal.own), count):
                if any(fault in goal.own for fault in faults) and sum("roaming" in fault.name for fault in faults) < 2:
                    yield goal, faults
    for fault in SERVICE:
        yield GOALS[0], (fault, LOCKED)


def _task(split: str, who: Customer, goal: Goal, faults: tuple[Fault, ...]) -> Task:
    locked = LOCKED in faults
    mends = LOCKED.mends if locked else tuple(step for fault in faults for step in fault.mends)
    asserted: Sequence[Step] = (("user", "assert_service_status", {"expected_status": "no_service"}),) if locked else goal.asserted
    said = dict.fromkeys(fault.said for fault in faults if fault.said)
    known = f"The customer is {who.name}, phone number {who.number}."
    row = {
        "id": f"{goal.name}-{'+'.join(fault.name for fault in faults)}-{who.line_id}".replace(" ", "_"),
        "user_scenario": {"instructions": {"reason_for_call": goal.complaint, "known_info": " ".join([known, *said])}},
        "ticket": " ".join([goal.complaint, known, *said]),
        "initial_state": {
            "initialization_actions": [
                _set_up(who, ("user", "set_user_info", {"name": who.name, "phone_number": who.number})),
                *(_set_up(who, step) for fault in faults for step in fault.breaks),
            ]
        },
        "evaluation_criteria": {
            "actions": [{"requestor": side, "name": name, "arguments": _of(who, given), "compare_args": [] if locked else None}
                        for side, name, given in mends],
            "env_assertions": [_set_up(who, step) for step in asserted],
            "reward_basis": ["ENV_ASSERTION", "ACTION"] if locked else ["ENV_ASSERTION"],
        },
        "official_split": split,
    }  # fmt: skip
    return TelecomRow.model_validate(row).task()


def _set_up(who: Customer, step: Step) -> dict[str, Any]:
    return {"env_type": step[0], "func_name": step[1], "arguments": _of(who, step[2])}


def _of(who: Customer, given: dict[str, Any]) -> dict[str, Any]:
    ids = {"customer_id": who.customer_id} if "CUSTOMER" in given or "LINE" in given else {}
    ids |= {"line_id": who.line_id} if "LINE" in given else {}
    return ids | {name: value for name, value in given.items() if name not in ("CUSTOMER", "LINE")}


def _line(who: Customer) -> dict[str, Any]:
    return {
        "line_id": who.line_id,
        "phone_number": who.number,
        "status": "Active",
        "plan_id": PLAN["plan_id"],
        "data_used_gb": 1.5,
        "data_refueling_gb": 0.0,
        "roaming_enabled": False,
        "contract_end_date": "2026-12-31",
    }


def _customer(who: Customer) -> dict[str, Any]:
    return {
        "customer_id": who.customer_id,
        "full_name": who.name,
        "date_of_birth": who.birthday,
        "phone_number": who.number,
        "account_status": "Active",
        "line_ids": [who.line_id],
        "bill_ids": [],
    }
