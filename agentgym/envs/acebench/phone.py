"""The phone of the tasks of agents: the device, its messages and reminders, and a platform that delivers food."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from agentgym.errors import ToolError

Json = dict[str, Any]


def done(words: str) -> Json:
    return {"status": True, "message": words}


class Device:
    """``saved``: the fields that are compared with the known ones at the end. ``parts``: the fields of all apps, by the app's name."""

    saved: ClassVar = ("wifi", "logged_in")

    def __init__(self, parts: Mapping[str, Json]) -> None:
        self.fields = parts["BaseApi"]

    def turn_on_wifi(self) -> Json:
        self.fields["wifi"] = True
        return done("The Wi-Fi is on.")

    def login_device(self) -> Json:
        self.fields["logged_in"] = True
        return done("You are logged in to the device.")


class Messages:
    saved: ClassVar = ("inbox",)

    def __init__(self, parts: Mapping[str, Json]) -> None:
        self.device, self.fields = parts["BaseApi"], parts["MessageApi"]

    def send_message(self, sender_name: Any, receiver_name: Any, message: Any) -> Json:
        _unlocked(self.device)
        if not self.device["wifi"]:
            raise ToolError("the Wi-Fi is off, so nothing can be sent")
        people, inbox = self.fields["user_list"], self.fields["inbox"]
        if len(inbox) >= self.fields["max_capacity"]:
            raise ToolError("the memory for messages is full: ask the user which message to delete")
        if sender_name not in people or receiver_name not in people:
            raise ToolError("one of the two people is not known")
        self.fields["message_id_counter"] += 1
        sender, receiver = people[sender_name]["user_id"], people[receiver_name]["user_id"]
        inbox[str(self.fields["message_id_counter"])] = {"sender_id": sender, "receiver_id": receiver, "message": message}
        return done(f"The message to {receiver_name} is sent.")

    def delete_message(self, message_id: Any) -> Json:
        _unlocked(self.device)
        _delete(self.fields["inbox"], message_id, "message")
        return done(f"Message {message_id} is deleted.")

    def view_messages_between_users(self, sender_name: Any, receiver_name: Any) -> Json:
        _unlocked(self.device)
        people = self.fields["user_list"]
        for name in (sender_name, receiver_name):
            if name not in people:
                raise ToolError(f"{name} is not known")
        ways = people[sender_name]["user_id"], people[receiver_name]["user_id"]
        found = [
            {"id": int(number), "sender": sender_name, "receiver": receiver_name, "message": one["message"]}
            for number, one in self.fields["inbox"].items()
            if (one["sender_id"], one["receiver_id"]) == ways
        ]
        return {"status": True, "messages": _some(found, "there are no messages from the one to the other")}

    def search_messages(self, user_name: Any, keyword: Any) -> Json:
        if user_name not in self.fields["user_list"]:
            raise ToolError(f"{user_name} is not known")
        user = self.fields["user_list"][user_name]["user_id"]
        found = [
            {"id": int(number), **{name: one[name] for name in ("sender_id", "receiver_id", "message")}}
            for number, one in self.fields["inbox"].items()
            if user in (one["sender_id"], one["receiver_id"]) and keyword.lower() in one["message"].lower()
        ]
        return {"status": True, "messages": _some(found, "no message holds these words")}

    def get_all_message_times_with_ids(self) -> Json:
        _unlocked(self.device)
        return {number: one["time"] for number, one in self.fields["inbox"].items()}

    def get_latest_message_id(self) -> Json:
        return self._furthest("latest", max)

    def get_earliest_message_id(self) -> Json:
        return self._furthest("earliest", min)

    def _furthest(self, kind: str, choose: Callable[..., str]) -> Json:
        """The first of those that are furthest. As in the benchmark, a message that was sent just now has no time, and none is found."""
        _unlocked(self.device)
        times = {number: datetime.strptime(one["time"], "%Y-%m-%d") for number, one in self.fields["inbox"].items()}
        if not times:
            raise ToolError("there are no messages")
        number = int(choose(times, key=times.__getitem__))
        return {**done(f"The {kind} message is {number}."), "message_id": number}


class Reminders:
    saved: ClassVar = ("reminder_list",)

    def __init__(self, parts: Mapping[str, Json]) -> None:
        self.device, self.fields = parts["BaseApi"], parts["ReminderApi"]

    def view_reminder_by_title(self, title: Any) -> Json:
        _unlocked(self.device)
        found = [one for one in self.fields["reminder_list"].values() if one["title"] == title]
        return {"status": True, "reminder": _some(found, f"no reminder has the title {title!r}")[0]}

    def view_all_reminders(self) -> Json:
        names = ("title", "description", "time", "notified")
        found = [{name: one[name] for name in names} for one in self.fields["reminder_list"].values()]
        return {"status": True, "reminders": _some(found, "there are no reminders")}

    def add_reminder(self, title: Any, description: Any, time: Any) -> Json:
        _unlocked(self.device)
        reminders = self.fields["reminder_list"]
        if len(reminders) >= self.fields["max_capacity"]:
            raise ToolError("the memory for reminders is full")
        number = self.fields["reminder_id_counter"] = self.fields["reminder_id_counter"] + 1
        reminders[str(number)] = {"reminder_id": number, "title": title, "description": description, "time": time, "notified": False}
        return done(f"The reminder {title!r} is noted.")

    def delete_reminder(self, reminder_id: Any) -> Json:
        _unlocked(self.device)
        _delete(self.fields["reminder_list"], reminder_id, "reminder")
        return done(f"Reminder {reminder_id} is deleted.")


class Food:
    saved: ClassVar = ("users", "logged_in_users", "orders")

    def __init__(self, parts: Mapping[str, Json]) -> None:
        self.device, self.fields = parts["BaseApi"], parts["FoodPlatform"]

    def login_food_platform(self, username: Any, password: Any) -> Json:
        if not self.device["wifi"]:
            raise ToolError("the Wi-Fi is off, so nobody can log in")
        if username not in self.fields["users"]:
            raise ToolError(f"{username} has no account")
        if self.fields["users"][username]["password"] != password:
            raise ToolError("the password is wrong")
        if username in self.fields["logged_in_users"]:
            raise ToolError(f"{username} is logged in already")
        self.fields["logged_in_users"].append(username)
        return done(f"{username} is logged in to the food platform.")

    def view_logged_in_users(self) -> Json:
        return {"status": True, "logged_in_users": _some(self.fields["logged_in_users"], "nobody is logged in to the food platform")}

    def check_balance(self, user_name: Any) -> float:
        """0 for who has no account."""
        return self.fields["users"][user_name]["balance"] if user_name in self.fields["users"] else 0.0

    def get_products(self, merchant_name: Any) -> list[Json]:
        if merchant_name not in self.fields["merchant_list"]:
            raise ToolError(f"{merchant_name} is no merchant")
        menu: list[Json] = self.fields["merchant_list"][merchant_name]["menu"]
        return menu

    def add_food_delivery_order(self, username: Any, merchant_name: Any, items: Any) -> Json:
        if username not in self.fields["logged_in_users"]:
            raise ToolError(f"{username} is not logged in to the food platform")
        menu = self.get_products(merchant_name)
        ordered = [_ordered(item, menu, merchant_name) for item in items]
        total: float = sum((item["price_per_unit"] * item["quantity"] for item in ordered), 0.0)
        account = self.fields["users"][username]
        if total > account["balance"]:
            raise ToolError("the balance is too low for this order")
        account["balance"] -= total
        order = {"user_name": username, "merchant_name": merchant_name, "items": ordered, "total_price": total}
        self.fields["orders"].append(order)
        return done(f"{merchant_name} delivers. In all it costs {total} yuan.")

    def view_orders(self, user_name: Any) -> Json:
        found = [order for order in self.fields["orders"] if order["user_name"] == user_name]
        return {"status": True, "orders": _some(found, f"{user_name} has ordered nothing")}

    def search_orders(self, keyword: Any) -> Json:
        found = [
            order
            for order in self.fields["orders"]
            if any(keyword.lower() in name.lower() for name in (order["merchant_name"], *(item["product"] for item in order["items"])))
        ]
        return {"status": True, "orders": _some(found, "no order holds these words")}


def _unlocked(device: Json) -> None:
    if not device["logged_in"]:
        raise ToolError("the device is not logged in")


def _delete(rows: dict[str, Any], number: Any, kind: str) -> None:
    """Rows are numbered. Whatever equals a number, such as 4.0, stands for it; a text does not."""
    keys = {int(key): key for key in rows}
    if number not in keys:
        raise ToolError(f"no {kind} has the ID {number}")
    del rows[keys[number]]


def _some(found: list[Any], otherwise: str) -> list[Any]:
    if not found:
        raise ToolError(otherwise)
    return found


def _ordered(item: Any, menu: list[Json], merchant: str) -> Json:
    product, quantity = item.get("product"), item.get("quantity", 1)
    if not isinstance(quantity, int) or quantity <= 0:
        raise ToolError(f"{quantity} is no number of {product}")
    for one in menu:
        if one["product"] == product:
            return {"product": product, "quantity": quantity, "price_per_unit": one["price"]}
    raise ToolError(f"{merchant} sells no {product}")
