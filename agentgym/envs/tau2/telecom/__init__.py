"""``agentgym/Tau2Telecom-v0`` and ``agentgym/Tau2TelecomSolo-v0``: tau2-bench's telecom, where agent and user each hold one half."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentgym.action import Call, format_action
from agentgym.envs.judging import Judge
from agentgym.envs.tau.data import Domain
from agentgym.envs.tau.users import InstructedUser, chosen
from agentgym.envs.tau2 import Tau2Env, Tau2State
from agentgym.envs.tau2.rows import domain_folder, read_tasks, text_of
from agentgym.envs.tau2.telecom import crm, homemade
from agentgym.envs.tau2.telecom.handset import Handset, specs
from agentgym.envs.tau2.telecom.phone import Phone, phone_of
from agentgym.envs.tau2.telecom.setting import ASSERTIONS, SET_UP, TelecomRow
from agentgym.envs.tau2.users import ObedientUser, role_with_phone
from agentgym.envs.user.users import User
from agentgym.errors import AgentGymError, ToolError
from agentgym.task import Task
from agentgym.tool import Tool, tool
from agentgym.tools.tables import FrozenDict, freeze

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

Guide = Literal["manual", "workflow"]


class Telecom(Tau2Env):
    """Mend a customer's phone connection: the agent has the provider's records, the user the phone. See `Tau2Env` for judge and reward.

    ``data``: tau2-bench's folder; None: a provider of our own with a few hundred tasks. The user is an `ObedientUser` by default, which
    goes by rules; ``user``, or ``url`` and ``model`` as in `agentgym.envs.tau.users`, give another. The agent sees what the user says, not
    what it does. With ``solo`` there is no user: the agent has a ticket, the phone's tools too, and ends with ``done``.
    ``guide``: which of the benchmark's two guides to repairs the agent is given.
    """

    folder = "telecom"
    table_names = tuple(crm.TABLES)
    calculate = None  # type: ignore[assignment]  # the benchmark has no such tool here

    def __init__(
        self,
        data: str | Path | None = None,
        user: User | None = None,
        *,
        solo: bool = False,
        guide: Guide = "manual",
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
        judge: Judge | None = None,
    ) -> None:
        if solo and any(given is not None for given in (user, url, model, cache)):
            raise AgentGymError("solo= has no user: leave user=, url=, model= and cache= out")
        self.handset = Handset(self)
        domain, self._new_phone = _own(solo) if data is None else _load(data, solo, guide)
        if user is None and url is None and not solo:
            user = _obedient()
        found = chosen(user, url, model, key, cache, _with_phone)
        self._start(domain, found, judge, tuple(self.handset.tools.values()) if solo else ())

    def opened(self, task: Task) -> Tau2State:
        tables, phone = self.domain.tables, self._new_phone
        for done in task.data["set_up"]:
            change = SET_UP[done["env_type"]][done["func_name"]]
            try:
                if done["env_type"] == "user":
                    phone = change(phone, **done["arguments"])
                else:
                    tables = change(tables, **done["arguments"])
            except (AgentGymError, KeyError) as error:
                raise AgentGymError(f"task {task.id!r} cannot be set up: {done['func_name']}: {error}") from error
            tables, phone = crm.synchronised(tables, phone)
        return Tau2State(tables, device=phone)

    def holds(self, assertion: Mapping[str, Any]) -> bool:
        side = self.state.device if assertion["env_type"] == "user" else self.state.tables
        return bool(ASSERTIONS[assertion["env_type"]][assertion["func_name"]](side, **assertion["arguments"]))

    def user_tools(self) -> Mapping[str, Tool]:
        return self.handset.tools

    def gold(self, task: Task) -> list[str] | None:
        """The task's own actions: those of the user are told to an `ObedientUser`. None with any other user."""
        if self.user is None:
            return super().gold(task)
        if not isinstance(self.user, ObedientUser):
            return None
        actions = [_told(one) if one["requestor"] == "user" else Call(one["name"], one["arguments"]) for one in task.answer["actions"]]
        return [format_action(call) for call in (*actions, Call("respond", {"content": "Goodbye."}))]

    def phone(self) -> Phone:
        phone: Phone = self.state.device
        return phone

    def put(self, phone: Phone) -> Phone:
        """Replace the phone, and let both sides know of each other."""
        self._settle(self.state.tables, phone)
        return self.phone()

    @tool(effect="read")
    def get_customer_by_phone(self, phone_number: str) -> str:
        """Find a customer by phone number: the customer's own or that of a line."""
        return _shown(crm.by_phone(self.state.tables, phone_number))

    @tool(effect="read")
    def get_customer_by_id(self, customer_id: str) -> str:
        """Show a customer's record."""
        return _shown(crm.customer(self.state.tables, customer_id))

    @tool(effect="read")
    def get_customer_by_name(self, full_name: str, dob: str) -> str:
        """Find customers by name and date of birth.

        Args:
            dob: such as 1990-01-31.
        """
        wanted = (full_name.lower(), dob)
        customers = self.state.tables["customers"].values()
        return json.dumps([one.to_plain() for one in customers if (one["full_name"].lower(), one["date_of_birth"]) == wanted])

    @tool(effect="read")
    def get_details_by_id(self, id: str) -> str:
        """Show the record of a line, device, bill, customer or plan.

        Args:
            id: begins with L, D, B, C or P.
        """
        if (table := crm.TABLE_OF_LETTER.get(id[:1])) is None:
            raise ToolError(f"Unknown ID format or type: {id}")
        if id not in self.state.tables[table]:
            raise ToolError(f"{table.removesuffix('s').capitalize()} with ID {id} not found")
        return _shown(self.state.tables[table][id])

    @tool(effect="read")
    def get_bills_for_customer(self, customer_id: str, limit: int = 12) -> str:
        """Show a customer's bills, the newest first.

        Args:
            limit: the most that are shown.
        """
        return json.dumps([bill.to_plain() for bill in crm.bills_of(self.state.tables, customer_id)[: max(0, limit)]])

    @tool(effect="read")
    def get_data_usage(self, customer_id: str, line_id: str) -> str:
        """Show how much data a line has used in this month, and how much it may use."""
        line = crm.line_of(self.state.tables, customer_id, line_id)
        limit = crm.plan_of(self.state.tables, line)["data_limit_gb"]
        usage = {"line_id": line_id, "data_used_gb": line["data_used_gb"], "data_limit_gb": limit}
        end = crm.last_of_month(crm.TODAY).isoformat()
        return json.dumps({**usage, "data_refueling_gb": line["data_refueling_gb"], "cycle_end_date": end})

    @tool
    def suspend_line(self, customer_id: str, line_id: str, reason: str) -> str:
        """Suspend an active line."""
        self._settle(crm.suspended(self.state.tables, customer_id, line_id))
        return self._line_changed(line_id, f"Line suspended. Reason: {reason}")

    @tool
    def resume_line(self, customer_id: str, line_id: str) -> str:
        """Resume a line that is suspended or waits for activation."""
        self._settle(crm.resumed(self.state.tables, customer_id, line_id))
        return self._line_changed(line_id, "Line resumed")

    @tool
    def send_payment_request(self, customer_id: str, bill_id: str) -> str:
        """Ask the customer to pay a bill. Only one bill at a time can await payment."""
        self._settle(crm.requested(self.state.tables, customer_id, bill_id))
        return f"Payment request sent for bill {bill_id}"

    @tool
    def enable_roaming(self, customer_id: str, line_id: str) -> str:
        """Allow a line to roam."""
        return self._set_roaming(customer_id, line_id, True)

    @tool
    def disable_roaming(self, customer_id: str, line_id: str) -> str:
        """Allow a line to roam no more."""
        return self._set_roaming(customer_id, line_id, False)

    @tool
    def refuel_data(self, customer_id: str, line_id: str, gb_amount: float) -> str:
        """Add data to a line, for this month, at the price of its plan.

        Args:
            gb_amount: gigabytes, more than 0.
        """
        tables, refueling, charge = crm.refueled(self.state.tables, customer_id, line_id, gb_amount)
        self._settle(tables)
        message = f"Added {gb_amount} GB of data for ${charge:.2f}"
        return json.dumps({"message": message, "new_data_refueling_gb": refueling, "charge": charge})

    def _settle(self, tables: FrozenDict, phone: Phone | None = None) -> None:
        tables, phone = crm.synchronised(tables, phone or self.phone())
        self.state = replace(self.state, tables=tables, device=phone)

    def _set_roaming(self, customer_id: str, line_id: str, enabled: bool) -> str:
        word = "enabled" if enabled else "disabled"
        if crm.line_of(self.state.tables, customer_id, line_id)["roaming_enabled"] is enabled:
            return f"Roaming was already {word}"
        self._settle(crm.with_line(self.state.tables, line_id, roaming_enabled=enabled))
        return f"Roaming {word} successfully"

    def _line_changed(self, line_id: str, message: str) -> str:
        return json.dumps({"message": message, "line": self.state.tables["lines"][line_id].to_plain()})


class TelecomSolo(Telecom):
    """`Telecom` without a user: ``agentgym eval tau2-telecom-solo`` plays it, and a policy can be trained on it."""

    def __init__(self, data: str | Path | None = None, *, guide: Guide = "manual", judge: Judge | None = None) -> None:
        super().__init__(data, solo=True, guide=guide, judge=judge)


def _with_phone(completion: Completes) -> InstructedUser:
    return InstructedUser(completion, role_with_phone, specs())


@cache
def _obedient() -> ObedientUser:
    """One for all environments of a process: it remembers nothing."""
    return ObedientUser(specs())


@cache
def _own(solo: bool) -> tuple[Domain, Phone]:
    return Domain(homemade.tables(), homemade.POLICY if solo else homemade.GUIDED, homemade.tasks()), Phone()


@cache
def _load(data: str | Path, solo: bool, guide: Guide) -> tuple[Domain, Phone]:
    """Read once in a process. Raises `AgentGymError` that names a missing file, or one that does not fit."""
    folder = domain_folder(data, "telecom")
    ending = "_solo.md" if solo else ".md"
    repairs = "tech_support_manual.md" if guide == "manual" else f"tech_support_workflow{ending}"  # there is one manual for both
    policy = f"{text_of(folder / f'main_policy{ending}')}\n\n{text_of(folder / repairs)}"
    records, device = _toml(folder / "db.toml"), _toml(folder / "user_db.toml")
    try:
        tables = {table: {record[id]: record for record in records[table]} for table, id in crm.TABLES.items()}
        phone = phone_of(device["device"])
    except (KeyError, TypeError) as error:
        raise AgentGymError(f"{folder}: db.toml or user_db.toml is of another version ({error}): give those of tau2-bench") from error
    return Domain(freeze(tables), policy, read_tasks(folder / "tasks.jsonl", TelecomRow)), phone


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(file))
    except tomllib.TOMLDecodeError as error:
        raise AgentGymError(f"{file} is not TOML ({error})") from error


def _shown(record: FrozenDict) -> str:
    return json.dumps(record.to_plain())


def _told(action: Mapping[str, Any]) -> Call:
    """What an `ObedientUser` does, said to it."""
    arguments = ", ".join(f'{name}="{value}"' for name, value in action["arguments"].items())
    return Call("respond", {"content": f"Please use {action['name']}({arguments})."})
