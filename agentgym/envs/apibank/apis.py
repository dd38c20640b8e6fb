"""The benchmark's APIs over its tables, in our own program: what a call gives, and the tables after it.

Source: API-Bank (arXiv 2304.08244), the APIs of its program [S]. A refused call raises `Refused`, in words of our own.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from agentgym.envs.apibank.desk import Desk
from agentgym.envs.apibank.forms import DAY, Day, Moment, Refused, day_of, folded, moment_of, month_and_day, read_date, refuse_empty
from agentgym.envs.syntax import expression_of

TODAY = "2023-03-31"
_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
Named = list[dict[str, Any]]


class Apis(Desk):
    """All APIs of the benchmark but for those that ask the network. Tables are changed in place."""

    # Money and stocks.

    def open_bank_account(self, account: str, password: str, name: str) -> str:
        """Opens a bank account for a person, of whom name is the name."""
        opened = self.tables.setdefault("Opened", {"test": {}})
        if account in opened:
            return "failed"
        opened[account] = {"password": password, "name": name}
        return "success"

    def query_balance(self, token: str) -> Any:
        """Gives the balance of the user's bank account."""
        return self._entry("Bank", self._user(token))["balance"]

    def query_stock(self, stock_code: str, date: Day) -> Any:
        """Gives the price of a stock on a day."""
        prices = self._entry("Stock", stock_code.upper().strip())
        if (day := day_of(date)) not in prices:
            raise Refused("there is no price of that day")
        return prices[day]

    # Health.

    def query_health_data(self, user_id: str, start_time: Moment, end_time: Moment) -> Any:
        """Gives what was recorded of a user's health in a span of time."""
        start, end = moment_of(start_time), moment_of(end_time)
        records = [one for one in self._entry("HealthData", user_id.upper().strip()) if start <= moment_of(one["time"]) <= end]
        if not records:
            raise Refused("nothing was recorded in that time")
        return records

    def record_health_data(self, user_id: str, time: Moment, health_data: Named) -> str:
        """Records data of a user's health, such as [{"name": "heart_rate", "value": "80"}]."""
        names = [one["name"] for one in health_data]
        if not names or len(set(names)) < len(names):
            raise Refused("give data, each once")
        refuse_empty(user_id)
        moment, values = moment_of(time), {one["name"]: one["value"] for one in health_data}
        records = self.tables["HealthData"].setdefault(user_id.upper().strip(), [])
        for record in records:
            if record["time"] == moment:
                record.update(values)
                return "success"
        records.append({"time": moment, **values})
        return "success"

    def symptom_search(self, symptom: str) -> Any:
        """Names the diseases that a symptom may point to, and describes them."""
        return [{key: one[key] for key in ("name", "description")} for one in self._entry("Symptom", folded(symptom))]

    def emergency_knowledge(self, symptom: str) -> Any:
        """Names the diseases that a symptom may point to, and the first aid for each."""
        return [{key: one[key] for key in ("name", "aid")} for one in self._entry("Symptom", folded(symptom))]

    def appointment_registration(self, patient_name: str, date: Day, doctor_name: str) -> str:
        """Registers a patient's appointment with a doctor of the hospital. Gives the number of the appointment."""
        refuse_empty(patient_name, doctor_name)
        patient, day = patient_name.strip(), day_of(date)
        if any(one["patient_name"] == patient and day_of(one["date"]) == day for one in self.tables["Appointments"].values()):
            raise Refused("the patient has an appointment on that day")
        number = str(10000000 + len(self.tables["Appointments"]))
        self.tables["Appointments"][number] = {"patient_name": patient, "date": day, "doctor_name": doctor_name.strip()}
        return number

    def query_registration(self, patient_name: str, date: Day) -> Any:
        """Gives a patient's appointments in the hospital on a day."""
        patient, day = patient_name.strip(), day_of(date)
        found = {
            number: one
            for number, one in self.tables["Appointments"].items()
            if one["patient_name"] == patient and day_of(one["date"]) == day
        }
        if not found:
            raise Refused("there is no such appointment")
        return found

    def modify_registration(
        self, appointment_id: str, new_appointment_date: Day | None = None, new_appointment_doctor: str | None = None
    ) -> str:
        """Changes the day or the doctor, or both, of an appointment in the hospital."""
        one = self._entry("Appointments", appointment_id.strip())
        new = {
            "date": None if new_appointment_date is None else day_of(new_appointment_date),
            "doctor_name": None if new_appointment_doctor is None else new_appointment_doctor.strip(),
        }
        changes = {name: value for name, value in new.items() if value is not None}
        if not changes or any(value in ("", one[name]) for name, value in changes.items()):
            raise Refused("nothing is changed")
        one.update(changes)
        return "success"

    def cancel_registration(self, appointment_id: str) -> str:
        """Cancels an appointment in the hospital by its number."""
        self._entry("Appointments", appointment_id.strip())
        del self.tables["Appointments"][appointment_id.strip()]
        return "success"

    # The house.

    def add_scene(self, name: str, devices: Named) -> str:
        """Adds a scene of the smart home: devices such as [{"name": "light", "description": "Smart light in the hall"}]."""
        refuse_empty(name)
        if folded(name) in self.tables["Scenes"]:
            raise Refused("there is such a scene")
        self.tables["Scenes"][folded(name)] = devices_of(devices)
        return "success"

    def delete_scene(self, name: str) -> str:
        """Deletes a scene of the smart home."""
        self._entry("Scenes", folded(name))
        del self.tables["Scenes"][folded(name)]
        return "success"

    def modify_scene(self, name: str, devices: Named) -> str:
        """Gives a scene of the smart home other devices, such as [{"name": "light", "description": "Smart light in the hall"}]."""
        self._entry("Scenes", folded(name))
        self.tables["Scenes"][folded(name)] = devices_of(devices)
        return "success"

    def query_scene(self, name: str) -> Any:
        """Gives the devices of a scene of the smart home."""
        return self._entry("Scenes", folded(name))

    def timed_switch(self, device_id: str, time: Moment, on: bool) -> str:
        """Sets a time at which a device of the smart home is switched on or off."""
        refuse_empty(device_id)
        times = self.tables["TimeSwitch"].setdefault(folded(device_id), [])
        times[:] = [one for one in times if one["time"] != moment_of(time)] + [{"time": moment_of(time), "on": on}]
        return "success"

    def cancel_timed_switch(self, device_id: str, time: Moment) -> str:
        """Cancels a time at which a device of the smart home is switched."""
        times = self._entry("TimeSwitch", folded(device_id))
        if all(one["time"] != moment_of(time) for one in times):
            raise Refused("nothing is switched then")
        times[:] = [one for one in times if one["time"] != moment_of(time)]
        return "success"

    # Knowledge.

    def get_today(self) -> str:
        """Gives the date of today."""
        return TODAY

    def calculator(self, formula: str) -> float:
        """Calculates with whole numbers, + - * / and brackets, such as (1 + 2) * 3."""
        try:
            return _value(expression_of(formula.strip()))
        except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            raise Refused(f"no formula: {error}") from error

    def query_history_today(self, date: str) -> list[str]:
        """Tells what happened on a day, such as 03-31, in history."""
        events = self._entry("History", month_and_day(date))
        return ["Title: {Title}, Date: {Date}, Description: {Description}".format_map(one) for one in events]

    def wiki(self, keyword: str) -> Any:
        """Gives the address and the summary of Wikipedia's page on a keyword."""
        page = self._entry("Wiki", folded(keyword.replace("_", " ")))
        return {"url": page["url"], "summary": page["summary"]}

    def document_qa(self, url: str, question: str) -> str:
        """Answers a question about the document at an address that ends with .txt."""
        refuse_empty(question)
        self._entry("QuestionAnswering", url.strip())
        return "The question is too difficult to answer."  # the benchmark looks for the question where it never is

    def speech_recognition(self, url: str) -> Any:
        """Gives the words of the recording at an address that ends with .wav."""
        return self._entry("SpeechRecognition", url.strip())

    def play_music(self, music_name: str) -> str:
        """Plays music."""
        refuse_empty(music_name)
        return f"music://{folded(music_name)}"

    # Travel and letters.

    def book_hotel(
        self, hotel_name: str, check_in_time: Day, check_out_time: Day, room_count: int, adult_count: int, child_count: int
    ) -> str:
        """Books rooms of a hotel, at least two for more than two adults. Gives the number of the order."""
        if adult_count > 2 and room_count == 1:
            raise Refused("more than two adults need two rooms")
        first, last, orders = read_date(check_in_time, DAY), read_date(check_out_time, DAY), self.tables["Hotel"]
        for one in orders.values():
            taken = read_date(one["check_in_time"], DAY), read_date(one["check_out_time"], DAY)
            if one["hotel_name"] == hotel_name and (taken[0] <= first < taken[1] or taken[0] < last <= taken[1]):
                raise Refused("the hotel is full then")
        number = str(len(orders) + 1)
        orders[number] = {"hotel_name": hotel_name, "check_in_time": check_in_time, "check_out_time": check_out_time}
        return number

    def send_email(self, receiver: str, subject: str, content: str) -> str:
        """Sends an email."""
        refuse_empty(receiver, subject, content)
        return "success"


class Network:
    """APIs whose answers come from machines elsewhere, or from what is not among the tables: described only."""

    def tool_searcher(self, keywords: str) -> Any:
        """Searches for a tool by keywords. Gives its description, and how to get a user's token where it needs one."""

    def search_engine(self, keyword: str) -> Any:
        """Searches the web by a keyword."""

    def dictionary(self, keyword: str) -> Any:
        """Gives the meanings of a word."""

    def image_caption(self, url: str) -> Any:
        """Describes the picture at an address that ends with .jpg, .jpeg or .png."""

    def translate(self, src: str, src_lang: str | None = None, tgt_lang: str | None = None) -> Any:
        """Translates a text, src, into another language; into English where none is given."""


def rename(tables: dict[str, Any], name: str, arguments: Mapping[str, Any], output: Any) -> None:
    """Give what a call has just made the name that it had in the recorded call, where that was drawn at random."""
    if name == "RegisterUser" and output is not None:
        tables["Account"][arguments["username"]]["token"] = output["token"]
    if name == "AppointmentRegistration" and output is not None:
        tables["Appointments"][output] = tables["Appointments"].popitem()[1]


def devices_of(devices: Named) -> Named:
    """Devices as they are kept: sorted, their names folded."""
    kept = [{**one, "name": folded(one["name"]), "description": str(one["description"]).strip()} for one in devices]
    if len({one["name"] for one in kept}) < len(kept):
        raise Refused("a device is named twice")
    return sorted(kept, key=lambda one: one["name"])


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return float(number)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left), _value(right))
        case _:
            raise Refused("a formula has whole numbers, + - * / and brackets")
