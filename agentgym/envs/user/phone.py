"""A phone, its line and the provider's customers: what its user can change, what only the provider can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentgym.action import Call
from agentgym.errors import ToolError
from agentgym.tool import Tool
from agentgym.tools.tables import FrozenDict

CONNECTED = "connected"
PLANS = {"Talk": 0, "Small": 5, "Large": 20}  # with the gigabytes that they begin with
PACK = 5  # gigabytes that can be added at once
STATUSES = ("airplane mode", "no SIM", "no service", "data is off", "no internet", CONNECTED)


@dataclass(frozen=True, slots=True)
class Device:
    """The user's side."""

    airplane: bool = False
    data: bool = True  # mobile data is on
    sim: bool = True  # it sits well
    stuck: bool = False  # until it is restarted


def status(device: Device, account: Mapping[str, Any]) -> str:
    """What the phone shows: the first thing that stands in the way. What is behind it shows only once that is mended."""
    if device.airplane:
        return "airplane mode"
    if not device.sim:
        return "no SIM"
    if account["blocked"] or device.stuck:
        return "no service"
    if not device.data:
        return "data is off"
    return CONNECTED if account["gb"] > 0 else "no internet"


def describe(account: Mapping[str, Any]) -> str:
    return f"plan {account['plan']}, {account['gb']} GB, {'blocked' if account['blocked'] else 'open'}"


Change = Callable[[Device], Device]


def airplane_mode(on: bool) -> Change:
    """Turn airplane mode on or off."""
    return lambda device: replace(device, airplane=on)


def mobile_data(on: bool) -> Change:
    """Turn mobile data on or off."""
    return lambda device: replace(device, data=on)


def reseat_sim() -> Change:
    """Take the SIM card out and put it in again."""
    return lambda device: replace(device, sim=True)


def restart() -> Change:
    """Restart the phone."""
    return lambda device: replace(device, stuck=False)


DEVICE_TOOLS = {function.__name__: Tool(function) for function in (airplane_mode, mobile_data, reseat_sim, restart)}


def use(device: Device, call: Call) -> Device:
    """The device after its user has used it. Raises `ToolError` for what it cannot do."""
    if (tool := DEVICE_TOOLS.get(call.name)) is None:
        raise ToolError(f"a phone has no {call.name!r}, only {', '.join(DEVICE_TOOLS)}")
    arguments = tool.read_arguments(call.arguments)
    if isinstance(arguments, str):
        raise ToolError(arguments)
    change: Change = tool.function(**arguments)
    return change(device)


def with_plan(accounts: FrozenDict, name: str, plan: str) -> FrozenDict:
    return accounts.set(name, {**accounts[name], "plan": plan, "gb": PLANS[plan]})
