"""The user's phone in tau2-bench's telecom: what it stands in, what its network gives it, and what then works [S2]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from agentgym.tools.tables import FrozenDict, freeze

Mode = Literal["4g_5g_preferred", "4g_only", "3g_only", "2g_only"]
Speed = Literal["Very Poor", "Poor", "Fair", "Good", "Excellent"]
TECHNOLOGIES = {"4g_5g_preferred": "5G", "4g_only": "4G", "3g_only": "3G", "2g_only": "2G"}
SURROUNDINGS = {"2G": "poor", "3G": "fair", "4G": "good", "5G": "excellent"}  # signals
MBPS = {"2G": (0.1, 0.4), "3G": (1.0, 5.0), "4G": (10.0, 100.0), "5G": (50.0, 500.0)}
SIGNAL_FACTORS = {"poor": 0.2, "fair": 0.5, "good": 0.8, "excellent": 1.0}
POOR_VPN, DATA_SAVER = 0.1, 0.2  # factors of the speed
LABELS: tuple[tuple[float, Speed], ...] = ((1, "Very Poor"), (5, "Poor"), (25, "Fair"), (100, "Good"))
SIGNAL_ICONS = {"none": "📵 No Signal", "poor": "📶¹ Poor", "fair": "📶² Fair", "good": "📶³ Good", "excellent": "📶⁴ Excellent"}
APN = freeze({"apn_name": "internet", "mms_apn": "mms", "mmsc_url": "http://mms.example.com"})
APPS = freeze({
    "messaging": {"sms": True, "storage": True, "phone": True, "network": False},
    "browser": {"sms": False, "storage": True, "phone": False, "network": True},
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phone:
    """Settings and network state by the benchmark's names, then who holds it and where, then what the provider lets it do.

    ``apps``: by name, their permissions. ``request``: a bill that the provider asks to be paid: ``bill_id``, ``amount`` and ``paid``.
    """

    sim_card_status: str = "active"
    sim_card_missing: bool = False
    airplane_mode: bool = False
    network_signal_strength: str = "good"
    network_technology_connected: str = "5G"
    network_connection_status: str = "connected"
    battery_level: int = 80
    data_enabled: bool = True
    roaming_enabled: bool = False
    network_mode_preference: str = "4g_5g_preferred"
    wifi_enabled: bool = False
    wifi_connected: bool = False
    wifi_signal_strength: str = "none"
    wifi_calling_enabled: bool = False
    wifi_calling_mms_over_wifi: bool = False
    data_saver_mode: bool = False
    vpn_enabled_setting: bool = False
    vpn_connected: bool = False
    vpn_performance: str = "excellent"
    active_apn_settings: FrozenDict = APN
    default_apn_settings: FrozenDict = APN
    apn_reset_pending: bool = False
    apps: FrozenDict = APPS
    name: str = ""
    phone_number: str = ""
    abroad: bool = False
    line_active: bool = True
    roaming_allowed: bool = False
    usage_exceeded: bool = False
    request: FrozenDict | None = None


def phone_of(device: dict[str, Any]) -> Phone:
    """The phone of ``user_db.toml``. Raises `TypeError` or `KeyError` where it has other fields."""
    fields = dict(device)
    apps = {name: app["permissions"] for name, app in fields.pop("app_statuses").items()}
    apn = freeze(fields.pop("active_apn_settings"))
    return Phone(**fields, apps=freeze(apps), active_apn_settings=apn, default_apn_settings=apn)


def searched(phone: Phone) -> Phone:
    """The phone after it has looked for a network."""
    if not _finds_network(phone):
        return _on_network(phone, "no_service", "none", "none")
    technology = TECHNOLOGIES[phone.network_mode_preference]
    return _on_network(phone, "connected", technology, SURROUNDINGS[technology])


def rebooted(phone: Phone) -> Phone:
    if phone.apn_reset_pending:
        phone = replace(phone, active_apn_settings=phone.default_apn_settings, apn_reset_pending=False)
    return searched(phone)


def with_airplane_mode(phone: Phone, on: bool) -> Phone:
    """Turning it on drops Wi-Fi and VPN as well, and turning it off does not bring them back."""
    if on:
        phone = replace(phone, wifi_enabled=False, wifi_connected=False, wifi_signal_strength="none", vpn_connected=False)
    return searched(replace(phone, airplane_mode=on))


def with_permission(phone: Phone, app_name: str, permission: str, granted: bool) -> Phone:
    return replace(phone, apps=phone.apps.set((app_name, permission), granted))


def sim_status(phone: Phone) -> str:
    return "missing" if phone.sim_card_missing else phone.sim_card_status


def data_works(phone: Phone) -> bool:
    """Whether there is mobile data, however slow."""
    has_network = phone.network_connection_status == "connected" and phone.network_signal_strength != "none"
    may_roam = phone.roaming_enabled and phone.roaming_allowed
    allowed = phone.data_enabled and not phone.usage_exceeded and (may_roam or not phone.abroad)
    return has_network and allowed and not phone.airplane_mode


def speed(phone: Phone) -> tuple[float, Speed] | None:
    """Mbps, and what they are called; None without mobile data."""
    if not data_works(phone):
        return None
    least, most = MBPS[phone.network_technology_connected]
    factor = SIGNAL_FACTORS[phone.network_signal_strength]
    factor *= POOR_VPN if phone.vpn_connected and phone.vpn_performance == "poor" else 1.0
    factor *= DATA_SAVER if phone.data_saver_mode else 1.0
    mbps = round((least + most) / 2 * factor, 2)
    return mbps, next((label for below, label in LABELS if mbps < below), "Excellent")


def mms_works(phone: Phone) -> bool:
    permissions = phone.apps.get("messaging", {})
    over_wifi = phone.wifi_calling_enabled and phone.wifi_calling_mms_over_wifi
    ready = bool(phone.active_apn_settings["mmsc_url"]) and permissions.get("storage", False) and permissions.get("sms", False)
    return bool(data_works(phone) and phone.network_technology_connected != "2G" and not over_wifi and ready)


def status_bar(phone: Phone) -> str:
    if phone.airplane_mode:
        parts = ["✈️ Airplane Mode"]
    else:
        parts = [SIGNAL_ICONS[phone.network_signal_strength]]
        if phone.network_technology_connected != "none":
            parts.append(phone.network_technology_connected)
        parts.append("📱 Data Enabled" if phone.data_enabled else "📵 Data Disabled")
        if phone.data_enabled and phone.data_saver_mode:
            parts.append("🔽 Data Saver")
    if phone.wifi_enabled:
        parts.append("📡 Connected" if phone.wifi_connected else "📡 Enabled")
    if phone.vpn_connected:
        parts.append("🔒 VPN Connected")
    return " | ".join([*parts, f"🔋 {phone.battery_level}%"])


def _on_network(phone: Phone, status: str, technology: str, signal: str) -> Phone:
    return replace(
        phone, network_connection_status=status, network_technology_connected=technology, network_signal_strength=signal
    )


def _finds_network(phone: Phone) -> bool:
    radio = not phone.airplane_mode and phone.line_active
    return radio and sim_status(phone) == "active" and phone.active_apn_settings["apn_name"] != "broken"
