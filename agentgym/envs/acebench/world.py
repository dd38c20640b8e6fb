"""What the tasks of agents play in, as a value: a call gives its answer, and the world after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentgym.action import Call
from agentgym.envs.acebench.phone import Device, Food, Messages, Reminders
from agentgym.envs.acebench.travel import Travel
from agentgym.envs.calls import as_text, is_too_deep
from agentgym.errors import AgentGymError, ToolError
from agentgym.tools.tables import FrozenDict

APPS: Mapping[str, type[Any]] = {
    "BaseApi": Device,
    "MessageApi": Messages,
    "ReminderApi": Reminders,
    "FoodPlatform": Food,
    "Travel": Travel,
}
FUNCTIONS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    name: (owner, function)
    for owner, app in APPS.items()
    for name, function in vars(app).items()
    if inspect.isfunction(function) and not name.startswith("_")
}


@dataclass(frozen=True, slots=True)
class Answer:
    """``broken``: where the benchmark's program raises an error, and does not merely refuse. ``unknown``: there is no such function."""

    text: str
    how: Literal["done", "refused", "broken", "unknown"] = "done"


@dataclass(frozen=True, slots=True)
class World:
    """``apps``: those that are there. ``parts``: by an app's name, all its fields, as `tables` of a simulator and a task give them."""

    apps: tuple[str, ...]
    parts: FrozenDict

    @classmethod
    def start(cls, tables: FrozenDict, apps: Sequence[str], device: Mapping[str, Any]) -> World:
        """``device``: the fields of the device, and who is ``logged_in_users`` of the food platform."""
        of_device = {name: device[name] for name in Device.saved}
        parts = tables.set("BaseApi", of_device).set(["FoodPlatform", "logged_in_users"], device["logged_in_users"])
        return cls(tuple(apps), parts.set(["FoodPlatform", "orders"], []))

    def has(self, name: str) -> bool:
        """Whether a function can be called. All apps of the phone can switch on its device."""
        owner, _ = FUNCTIONS.get(name, ("", None))
        return owner in self.apps or (owner == "BaseApi" and any(app != "Travel" for app in self.apps))

    def answer(self, call: Call) -> tuple[Answer, World]:
        """What a call gives, and the world after it. As in the benchmark, one that breaks down midway leaves what it has changed."""
        if not self.has(call.name):
            return Answer(f"Error during execution: there is no function {call.name}", "unknown"), self
        if any(isinstance(value, dict) for value in call.arguments.values()) or is_too_deep(call.arguments):
            return _broken("no parameter is a dict, or a list of many levels"), self
        owner, function = FUNCTIONS[call.name]
        parts = {name: self.parts[name].to_plain() for name in {owner, "BaseApi"}}
        try:
            answer = Answer(as_text(function(APPS[owner](parts), **call.arguments)))
        except ToolError as error:
            answer = Answer(as_text({"status": False, "message": str(error)}), "refused")
        except Exception as error:  # whatever a policy passes, the benchmark answers with the error
            answer = _broken(str(error))
        try:
            return answer, replace(self, parts=self.parts.set(owner, parts[owner]))
        except AgentGymError as error:  # a dict whose keys are no texts, as no JSON has it
            return _broken(str(error)), self

    def saved(self) -> dict[str, dict[str, Any]]:
        """By app, the fields that are compared with the known ones."""
        return {name: {field: _plain(self.parts[name][field]) for field in APPS[name].saved} for name in self.apps}


def _broken(why: str) -> Answer:
    return Answer(f"Error during execution: {why}", "broken")


def _plain(value: Any) -> Any:
    return value.to_plain() if hasattr(value, "to_plain") else value
