"""What the user can do with the phone: 15 tools that look and 15 that change. In solo tasks the agent has them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Protocol

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from agentgym.envs.tau2.telecom.phone import (
    Mode,
    Phone,
    data_works,
    mms_works,
    rebooted,
    searched,
    sim_status,
    speed,
    status_bar,
    with_airplane_mode,
    with_permission,
)
from agentgym.errors import ToolError
from agentgym.tool import Tool, is_tool, tool
from agentgym.tools.tables import freeze


class Apn(TypedDict, total=False):
    """What is left out stays as it is. ``apn_name`` "broken" finds no network."""

    apn_name: str
    mms_apn: str
    mmsc_url: str | None


class Holder(Protocol):
    """Who keeps the phone: it is read and replaced, never changed."""

    def phone(self) -> Phone: ...
    def put(self, phone: Phone) -> Phone: ...


class Handset:
    """The tools, by name, as methods that act on the phone of ``holder``. What changes something shows the status bar after it."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self.tools = {name: Tool(getattr(self, name)) for name, value in vars(Handset).items() if is_tool(value)}

    @tool(effect="read")
    def check_status_bar(self) -> str:
        """Look at the icons at the top of the screen: signal, network, data, Wi-Fi, VPN, battery."""
        return f"Status Bar: {status_bar(self._phone)}"

    @tool(effect="read")
    def check_network_status(self) -> str:
        """See airplane mode, signal, network type, mobile data and data roaming."""
        phone = self._phone
        return _lines(
            ("Airplane Mode", _on(phone.airplane_mode)),
            ("SIM Card Status", sim_status(phone)),
            ("Cellular Connection", phone.network_connection_status),
            ("Cellular Signal", phone.network_signal_strength),
            ("Cellular Network Type", phone.network_technology_connected),
            ("Mobile Data Enabled", _yes(phone.data_enabled)),
            ("Data Roaming Enabled", _yes(phone.roaming_enabled)),
            ("Wi-Fi Radio", _on(phone.wifi_enabled)),
            ("Wi-Fi Connected", _yes(phone.wifi_connected)),
        )

    @tool(effect="read")
    def check_network_mode_preference(self) -> str:
        """See which type of network the phone prefers."""
        return f"Network Mode Preference: {self._phone.network_mode_preference}"

    @tool(effect="read")
    def run_speed_test(self) -> str:
        """Measure the speed of mobile data."""
        found = speed(self._phone)
        return "Speed test failed: No Connection." if found is None else f"Speed test: {found[0]:.2f} Mbps ({found[1]})."

    @tool(effect="read")
    def check_sim_status(self) -> str:
        """See whether the SIM card is active, missing or locked."""
        words = {
            "active": "The SIM card is active and works.",
            "missing": "No SIM card is found in the phone.",
            "locked_pin": "The SIM card is locked with a PIN code.",
            "locked_puk": "The SIM card is locked with a PUK code.",
        }
        return words[sim_status(self._phone)]

    @tool(effect="read")
    def check_data_restriction_status(self) -> str:
        """See whether data saver mode is on."""
        return f"Data Saver mode is {_on(self._phone.data_saver_mode)}."

    @tool(effect="read")
    def check_apn_settings(self) -> str:
        """See the access point and the address for picture messages."""
        apn = self._phone.active_apn_settings
        return f"Current APN Name: {apn['apn_name']}\nMMSC URL (for picture messages): {apn['mmsc_url'] or 'Not Set'}"

    @tool(effect="read")
    def check_wifi_status(self) -> str:
        """See whether Wi-Fi is on, and connected."""
        phone = self._phone
        connected, signal = _yes(phone.wifi_connected), phone.wifi_signal_strength
        return f"Wi-Fi radio is {_on(phone.wifi_enabled)}. Connected: {connected}. Signal: {signal}."

    @tool(effect="read")
    def check_wifi_calling_status(self) -> str:
        """See whether calls go over Wi-Fi."""
        return f"Wi-Fi Calling is {_on(self._phone.wifi_calling_enabled)}."

    @tool(effect="read")
    def check_vpn_status(self) -> str:
        """See whether a VPN is connected, and how well it does."""
        phone = self._phone
        if phone.vpn_connected:
            return f"VPN is ON and connected. Performance: {phone.vpn_performance.capitalize()}."
        return "VPN is turned ON but not connected." if phone.vpn_enabled_setting else "VPN is OFF."

    @tool(effect="read")
    def check_installed_apps(self) -> str:
        """See which apps the phone has."""
        return f"Installed apps: {', '.join(sorted(self._phone.apps))}."

    @tool(effect="read")
    def check_app_status(self, app_name: str) -> str:
        """See an app's permissions."""
        return f"App: {app_name}\n{self.check_app_permissions(app_name)}"

    @tool(effect="read")
    def check_app_permissions(self, app_name: str) -> str:
        """See which permissions an app has."""
        granted = [name for name, given in self._permissions(app_name).items() if given]
        return f"Permissions of {app_name}: {', '.join(granted) or 'none'}."

    @tool(effect="read")
    def can_send_mms(self) -> str:
        """Try to send a picture with the messaging app."""
        return f"The messaging app can{'' if mms_works(self._phone) else 'not'} send MMS messages."

    @tool(effect="read")
    def check_payment_request(self) -> str:
        """See whether the provider asks for a payment."""
        request = self._phone.request
        if request is None:
            return "There is no payment request."
        return f"Payment request: bill {request['bill_id']}, ${request['amount']:.2f}."

    @tool
    def set_network_mode_preference(self, mode: Mode) -> str:
        """Choose which type of network the phone prefers."""
        return self._done(searched(replace(self._phone, network_mode_preference=mode)), f"The preferred network mode is now {mode}.")

    @tool
    def toggle_airplane_mode(self) -> str:
        """Turn airplane mode on or off. On, it drops all connections."""
        phone = with_airplane_mode(self._phone, not self._phone.airplane_mode)
        return self._done(phone, f"Airplane Mode is now {_on(phone.airplane_mode)}.")

    @tool
    def reseat_sim_card(self) -> str:
        """Take the SIM card out and put it in again."""
        return self._done(searched(replace(self._phone, sim_card_missing=False)), "The SIM card is in its place.")

    @tool
    def toggle_data(self) -> str:
        """Turn mobile data on or off."""
        phone = searched(replace(self._phone, data_enabled=not self._phone.data_enabled))
        return self._done(phone, f"Mobile Data is now {_on(phone.data_enabled)}.")

    @tool
    def toggle_roaming(self) -> str:
        """Turn data roaming on or off."""
        phone = searched(replace(self._phone, roaming_enabled=not self._phone.roaming_enabled))
        return self._done(phone, f"Data Roaming is now {_on(phone.roaming_enabled)}.")

    @tool
    def toggle_data_saver_mode(self) -> str:
        """Turn data saver mode on or off. On, it slows data."""
        phone = replace(self._phone, data_saver_mode=not self._phone.data_saver_mode)
        return self._done(phone, f"Data Saver Mode is now {_on(phone.data_saver_mode)}.")

    @tool
    def set_apn_settings(self, apn_settings: Apn) -> str:
        """Set the access point by hand."""
        phone = self._phone
        apn = freeze({**phone.active_apn_settings, **apn_settings})
        phone = searched(replace(phone, active_apn_settings=apn, apn_reset_pending=False))
        return self._done(phone, f"The APN is now {apn['apn_name']}.")

    @tool
    def reset_apn_settings(self) -> str:
        """Set the access point to its default, which takes effect when the phone is restarted."""
        return self._done(replace(self._phone, apn_reset_pending=True), "The APN settings will be reset at the next restart.")

    @tool
    def toggle_wifi(self) -> str:
        """Turn Wi-Fi on or off."""
        phone = self._phone
        if phone.airplane_mode:
            raise ToolError("Wi-Fi cannot be changed in airplane mode")
        phone = replace(phone, wifi_enabled=not phone.wifi_enabled, wifi_connected=False, wifi_signal_strength="none")
        return self._done(phone, f"Wi-Fi is now {_on(phone.wifi_enabled)}.")

    @tool
    def toggle_wifi_calling(self) -> str:
        """Turn calls over Wi-Fi on or off."""
        phone = replace(self._phone, wifi_calling_enabled=not self._phone.wifi_calling_enabled)
        return self._done(phone, f"Wi-Fi Calling is now {_on(phone.wifi_calling_enabled)}.")

    @tool
    def connect_vpn(self) -> str:
        """Connect to the VPN."""
        phone = self._phone
        if phone.vpn_connected:
            raise ToolError("the VPN is already connected")
        if not (data_works(phone) or phone.wifi_connected):
            raise ToolError("the VPN cannot connect without the internet")
        phone = replace(phone, vpn_enabled_setting=True, vpn_connected=True, vpn_performance="excellent")
        return self._done(phone, "The VPN is connected.")

    @tool
    def disconnect_vpn(self) -> str:
        """Disconnect the VPN."""
        if not self._phone.vpn_connected:
            raise ToolError("no VPN is connected")
        return self._done(replace(self._phone, vpn_enabled_setting=False, vpn_connected=False), "The VPN is disconnected.")

    @tool
    def grant_app_permission(self, app_name: str, permission: str) -> str:
        """Give an app a permission.

        Args:
            permission: sms, storage, phone or network.
        """
        if permission not in self._permissions(app_name):
            raise ToolError(f"there is no permission {permission!r}: sms, storage, phone and network are")
        phone = with_permission(self._phone, app_name, permission, True)
        return self._done(phone, f"The app {app_name} has the permission {permission} now.")

    @tool
    def reboot_device(self) -> str:
        """Restart the phone."""
        return self._done(rebooted(self._phone), "The phone has restarted.")

    @tool
    def make_payment(self) -> str:
        """Pay the bill that the provider asks to be paid."""
        phone = self._phone
        if phone.request is None:
            raise ToolError("there is no payment request")
        paid = f"Bill {phone.request['bill_id']}, ${phone.request['amount']:.2f}, is paid."
        return self._done(replace(phone, request=phone.request.set("paid", True)), paid)

    @property
    def _phone(self) -> Phone:
        return self._holder.phone()

    def _done(self, phone: Phone, message: str) -> str:
        return f"{message}\nStatus Bar: {status_bar(self._holder.put(phone))}"

    def _permissions(self, app_name: str) -> dict[str, bool]:
        if app_name not in self._phone.apps:
            raise ToolError(f"the phone has no app {app_name!r}")
        return dict(self._phone.apps[app_name])


@cache
def specs() -> tuple[dict[str, Any], ...]:
    """The tools as a model that plays the user is told of them, in OpenAI's form."""
    return tuple(Tool(value).spec for value in vars(Handset).values() if is_tool(value))


def _lines(*pairs: tuple[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in pairs)


def _on(state: bool) -> str:
    return "ON" if state else "OFF"


def _yes(state: bool) -> str:
    return "Yes" if state else "No"
