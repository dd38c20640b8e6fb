"""What tasks of telecom set up before an episode, and what they assert at its end, by the benchmark's names [S2]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agentgym.envs.tau2.rows import Functions, Row
from agentgym.envs.tau2.telecom import crm
from agentgym.envs.tau2.telecom.phone import Phone, data_works, mms_works, searched, speed, with_airplane_mode, with_permission
from agentgym.tools.tables import FrozenDict

OnPhone = Callable[..., Phone]
OnTables = Callable[..., FrozenDict]


def _named(phone: Phone, name: str, phone_number: str) -> Phone:
    return replace(phone, name=name, phone_number=phone_number)


def _vpn_broken(phone: Phone) -> Phone:
    return replace(phone, vpn_enabled_setting=True, vpn_connected=True, vpn_performance="poor")


def _wifi_calling(phone: Phone, enabled: bool, mms_over_wifi: bool | None = None) -> Phone:
    over = phone.wifi_calling_mms_over_wifi if mms_over_wifi is None else mms_over_wifi
    return replace(phone, wifi_calling_enabled=enabled, wifi_calling_mms_over_wifi=over)


def _apn(phone: Phone, name: str, value: str | None) -> Phone:
    return searched(replace(phone, active_apn_settings=phone.active_apn_settings.set(name, value)))


def _roaming(enabled: bool) -> OnTables:
    def set_roaming(tables: FrozenDict, customer_id: str, line_id: str) -> FrozenDict:
        crm.line_of(tables, customer_id, line_id)
        return crm.with_line(tables, line_id, roaming_enabled=enabled)

    return set_roaming


def _data_usage(tables: FrozenDict, customer_id: str, line_id: str, data_used_gb: float) -> FrozenDict:
    crm.line_of(tables, customer_id, line_id)
    return crm.with_line(tables, line_id, data_used_gb=data_used_gb)


PHONE_SET_UP: Mapping[str, OnPhone] = {
    "set_user_info": _named,
    "set_user_location": lambda phone, abroad: replace(phone, abroad=abroad),
    "turn_airplane_mode_on": lambda phone: with_airplane_mode(phone, True),
    "turn_airplane_mode_off": lambda phone: with_airplane_mode(phone, False),
    "turn_data_on": lambda phone: searched(replace(phone, data_enabled=True)),
    "turn_data_off": lambda phone: searched(replace(phone, data_enabled=False)),
    "turn_roaming_on": lambda phone: searched(replace(phone, roaming_enabled=True)),
    "turn_roaming_off": lambda phone: searched(replace(phone, roaming_enabled=False)),
    "turn_data_saver_mode_on": lambda phone: replace(phone, data_saver_mode=True),
    "turn_data_saver_mode_off": lambda phone: replace(phone, data_saver_mode=False),
    "unseat_sim_card": lambda phone: searched(replace(phone, sim_card_missing=True)),
    "lock_sim_card": lambda phone, mode: searched(replace(phone, sim_card_status=f"locked_{mode}")),
    "break_apn_settings": lambda phone: _apn(phone, "apn_name", "broken"),
    "break_apn_mms_setting": lambda phone: _apn(phone, "mmsc_url", None),
    "break_vpn": _vpn_broken,
    "set_wifi_calling": _wifi_calling,
    "remove_app_permission": lambda phone, app_name, permission: with_permission(phone, app_name, permission, False),
    "set_network_mode_preference": lambda phone, mode: searched(replace(phone, network_mode_preference=mode)),
    "simulate_network_search": searched,
}
TABLES_SET_UP: Mapping[str, OnTables] = {
    "set_data_usage": _data_usage,
    "enable_roaming": _roaming(True),
    "disable_roaming": _roaming(False),
    "suspend_line_for_overdue_bill": crm.overdue,
}


def _fast(phone: Phone, expected_speed: float, expected_desc: str | None = None) -> bool:
    found = speed(phone)
    labelled = found is not None and (expected_desc is None or found[1].casefold() == expected_desc.casefold())
    return found is not None and found[0] >= expected_speed and labelled


def _refueled(tables: FrozenDict, customer_id: str, line_id: str, expected_amount: float) -> bool:
    return bool(abs(crm.line_of(tables, customer_id, line_id)["data_refueling_gb"] - expected_amount) < 1e-6)


def _settled(tables: FrozenDict, overdue_bill_id: str) -> bool:
    """A bill that is asked for and not paid yet is not settled."""
    return overdue_bill_id not in tables["bills"] or tables["bills"][overdue_bill_id]["status"] == "Paid"


def _overdue(tables: FrozenDict, customer_id: str, overdue_bill_id: str) -> bool:
    bills = {bill["bill_id"]: bill["status"] for bill in crm.bills_of(tables, customer_id)}
    return bills.get(overdue_bill_id) == "Overdue"


PHONE_ASSERTIONS: Mapping[str, Callable[..., bool]] = {
    "assert_mobile_data_status": lambda phone, expected_status: data_works(phone) is expected_status,
    "assert_internet_speed": _fast,
    "assert_internet_not_excellent": lambda phone: (found := speed(phone)) is None or found[1] != "Excellent",
    "assert_service_status": lambda phone, expected_status: phone.network_connection_status == expected_status,
    "assert_can_send_mms": lambda phone, expected_status: mms_works(phone) is expected_status,
    "assert_airplane_mode_status": lambda phone, expected_status: phone.airplane_mode is expected_status,
    "assert_mobile_roaming_status": lambda phone, expected_status: phone.roaming_enabled is expected_status,
    "assert_mobile_data_saver_mode_status": lambda phone, expected_status: phone.data_saver_mode is expected_status,
    "assert_mobile_data_usage_exceeded": lambda phone, expected_status=True: phone.usage_exceeded is expected_status,
}
TABLES_ASSERTIONS: Mapping[str, Callable[..., bool]] = {
    "assert_data_refueling_amount": _refueled,
    "assert_line_status": lambda tables, customer_id, line_id, expected_status: (
        crm.line_of(tables, customer_id, line_id)["status"] == expected_status
    ),
    "assert_no_overdue_bill": _settled,
    "assert_overdue_bill_exists": _overdue,
}
SET_UP: Functions = {"user": PHONE_SET_UP, "assistant": TABLES_SET_UP}
ASSERTIONS: Functions = {"user": PHONE_ASSERTIONS, "assistant": TABLES_ASSERTIONS}


class TelecomRow(Row):
    set_up = SET_UP
    assertions = ASSERTIONS
