"""The provider's customers, lines, plans, devices and bills: functions that take the tables and give those after them [S2]."""

from __future__ import annotations

import calendar
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from agentgym.envs.tau2.telecom.phone import Phone
from agentgym.errors import ToolError
from agentgym.tools.tables import FrozenDict

TODAY = date(2025, 2, 25)
DAYS_TO_PAY = 14
MOST_GB = 1000  # added at once [R]
TABLES = {"customers": "customer_id", "lines": "line_id", "plans": "plan_id", "devices": "device_id", "bills": "bill_id"}
TABLE_OF_LETTER = {"L": "lines", "D": "devices", "B": "bills", "C": "customers", "P": "plans"}


def customer(tables: FrozenDict, customer_id: str) -> Any:
    if customer_id not in tables["customers"]:
        raise ToolError(f"Customer with ID {customer_id} not found")
    return tables["customers"][customer_id]


def line_of(tables: FrozenDict, customer_id: str, line_id: str) -> Any:
    if line_id not in customer(tables, customer_id)["line_ids"]:
        raise ToolError(f"Line {line_id} not found for customer {customer_id}")
    return tables["lines"][line_id]


def plan_of(tables: FrozenDict, line: Any) -> Any:
    return tables["plans"][line["plan_id"]]


def bills_of(tables: FrozenDict, customer_id: str) -> list[Any]:
    """The newest first."""
    bills = [tables["bills"][bill] for bill in customer(tables, customer_id)["bill_ids"]]
    return sorted(bills, key=lambda bill: str(bill["issue_date"]), reverse=True)


def by_phone(tables: FrozenDict, phone_number: str) -> Any:
    """The customer whose own number it is, or one of whose lines has it."""
    for found in tables["customers"].values():
        numbers = [found["phone_number"], *(tables["lines"][line]["phone_number"] for line in found["line_ids"])]
        if phone_number in numbers:
            return found
    raise ToolError(f"Customer with phone number {phone_number} not found")


def with_line(tables: FrozenDict, line_id: str, **fields: Any) -> FrozenDict:
    for name, value in fields.items():
        tables = tables.set(("lines", line_id, name), value)
    return tables


def suspended(tables: FrozenDict, customer_id: str, line_id: str) -> FrozenDict:
    if (status := line_of(tables, customer_id, line_id)["status"]) != "Active":
        raise ToolError(f"line {line_id} is {status}: only an active line can be suspended")
    return with_line(tables, line_id, status="Suspended", suspension_start_date=TODAY.isoformat())


def resumed(tables: FrozenDict, customer_id: str, line_id: str) -> FrozenDict:
    if (status := line_of(tables, customer_id, line_id)["status"]) not in ("Suspended", "Pending Activation"):
        raise ToolError(f"line {line_id} is {status}: only a suspended line, or one that waits for activation, can be resumed")
    return with_line(tables, line_id, status="Active", suspension_start_date=None)


def requested(tables: FrozenDict, customer_id: str, bill_id: str) -> FrozenDict:
    """The tables after a customer is asked to pay a bill, one at a time."""
    bills = bills_of(tables, customer_id)
    if bill_id not in [bill["bill_id"] for bill in bills]:
        raise ToolError(f"Bill {bill_id} not found for customer {customer_id}")
    if waiting := [bill["bill_id"] for bill in bills if bill["status"] == "Awaiting Payment"]:
        raise ToolError(f"bill {waiting[0]} already awaits payment")
    return tables.set(("bills", bill_id, "status"), "Awaiting Payment")


def refueled(tables: FrozenDict, customer_id: str, line_id: str, gb_amount: float) -> tuple[FrozenDict, float, float]:
    """The tables, the line's refuelled gigabytes and the charge, which is an item of the customer's draft bill."""
    line = line_of(tables, customer_id, line_id)
    if gb_amount <= 0:
        raise ToolError("the amount of data must be more than 0 GB")
    if not gb_amount <= MOST_GB:  # nor is it NaN
        raise ToolError(f"the amount of data must be no more than {MOST_GB} GB")
    refueling = line["data_refueling_gb"] + gb_amount
    charge = round(gb_amount * plan_of(tables, line)["data_refueling_price_per_gb"], 2)
    tables, draft = _draft(with_line(tables, line_id, data_refueling_gb=refueling), customer_id)
    item = _item(f"Data refueling of line {line_id}: {gb_amount} GB", charge, TODAY, "Data Refueling")
    tables = tables.append(("bills", draft, "line_items"), item)
    total = round(tables["bills"][draft]["total_due"] + charge, 2)
    return tables.set(("bills", draft, "total_due"), total), refueling, charge


def overdue(tables: FrozenDict, customer_id: str, line_id: str, new_bill_id: str, contract_ended: bool) -> FrozenDict:
    """The tables where last month's bill is not paid and the line is suspended for it."""
    line = line_of(tables, customer_id, line_id)
    end = TODAY.replace(day=1) - timedelta(days=1)
    plan = plan_of(tables, line)
    item = _item(f"{plan['name']} - Line {line['phone_number']}", plan["price_per_month"], end.replace(day=1), "Plan Charge")
    bill = _bill(new_bill_id, customer_id, end.replace(day=1), "Overdue") | {"total_due": plan["price_per_month"], "line_items": [item]}
    tables = suspended(_with_bill(tables, bill), customer_id, line_id)
    return with_line(tables, line_id, contract_end_date=end.isoformat()) if contract_ended else tables


def synchronised(tables: FrozenDict, phone: Phone) -> tuple[FrozenDict, Phone]:
    """Both sides after what they know of each other: the line's state on the phone, what was paid at the provider's."""
    line = next((line for line in tables["lines"].values() if line["phone_number"] == phone.phone_number), None)
    if line is None:
        return tables, phone
    used, most = line["data_used_gb"], plan_of(tables, line)["data_limit_gb"] + line["data_refueling_gb"]
    known = {"line_active": line["status"] == "Active", "roaming_allowed": line["roaming_enabled"], "usage_exceeded": used >= most}
    phone = replace(phone, **known)
    if phone.request is not None and phone.request["paid"]:
        tables = tables.set(("bills", phone.request["bill_id"], "status"), "Paid")
        phone = replace(phone, request=None)
    bills = bills_of(tables, by_phone(tables, phone.phone_number)["customer_id"])
    waiting = next((bill for bill in bills if bill["status"] == "Awaiting Payment"), None)
    if waiting is not None and phone.request is None:
        request = FrozenDict({"bill_id": waiting["bill_id"], "amount": waiting["total_due"], "paid": False})
        phone = replace(phone, request=request)
    return tables, phone


def last_of_month(day: date) -> date:
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])


def _draft(tables: FrozenDict, customer_id: str) -> tuple[FrozenDict, str]:
    """The customer's draft bill; where there is none, a new one for next month."""
    for bill in bills_of(tables, customer_id):
        if bill["status"] == "Draft":
            return tables, bill["bill_id"]
    numbers = [int(bill[1:]) for bill in tables["bills"] if bill[1:].isdigit()]
    new = _bill(f"B{max(numbers, default=1000) + 1}", customer_id, last_of_month(TODAY) + timedelta(days=1), "Draft")
    return _with_bill(tables, new), new["bill_id"]


def _bill(bill_id: str, customer_id: str, start: date, status: str) -> dict[str, Any]:
    """One without items, of the month that begins at ``start``."""
    return {
        "bill_id": bill_id,
        "customer_id": customer_id,
        "period_start": start.isoformat(),
        "period_end": last_of_month(start).isoformat(),
        "issue_date": start.isoformat(),
        "total_due": 0.0,
        "due_date": (start + timedelta(days=DAYS_TO_PAY)).isoformat(),
        "status": status,
        "line_items": [],
    }


def _with_bill(tables: FrozenDict, bill: dict[str, Any]) -> FrozenDict:
    tables = tables.set(("bills", bill["bill_id"]), bill)
    return tables.append(("customers", bill["customer_id"], "bill_ids"), bill["bill_id"])


def _item(description: str, amount: float, day: date, item_type: str) -> dict[str, Any]:
    return {"description": description, "amount": amount, "date": day.isoformat(), "item_type": item_type}
