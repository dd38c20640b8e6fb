"""Messages between the people of a workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json

SEED = 200191
NOBODY = {"error": "No user is currently logged in."}


class MessageAPI(Api):
    """``inbox``: what was sent, each as one receiver with one text."""

    generated_ids: list[int]
    user_count: int
    user_map: dict[str, str]
    inbox: list[Json]
    message_count: int
    current_user: str | None

    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        return super().start(tables, {"random_seed": SEED, **config})

    def list_users(self) -> Json:
        return {"user_list": list(self.user_map)}

    def get_user_id(self, user: str) -> Json:
        return {"user_id": self.user_map[user]} if user in self.user_map else {"error": f"User '{user}' not found in the workspace."}

    def message_login(self, user_id: str) -> Json:
        if user_id not in self.user_map.values():
            return {"login_status": False, "message": f"User ID '{user_id}' not found."}
        self.current_user = user_id
        return {"login_status": True, "message": f"User '{user_id}' logged in successfully."}

    def message_get_login_status(self) -> Json:
        return {"login_status": bool(self.current_user)}

    def send_message(self, receiver_id: str, message: str) -> Json:
        if not self.current_user:
            return NOBODY
        if receiver_id not in self.user_map.values():
            return {"error": f"Receiver ID '{receiver_id}' not found."}
        number = self._new_id()
        self.inbox.append({receiver_id: message})
        self.message_count += 1
        sent = f"Message sent to '{receiver_id}' successfully."
        return {"sent_status": True, "message_id": {"new_id": number}, "message": sent}

    def delete_message(self, receiver_id: str) -> Json:
        if not self.current_user:
            return NOBODY
        for number in reversed(range(len(self.inbox))):
            if receiver_id in self.inbox[number]:
                del self.inbox[number]
                deleted = f"Receiver {receiver_id}'s latest message deleted successfully."
                return {"deleted_status": True, "receiver_id": receiver_id, "message": deleted}
        return {"error": f"Receiver ID {receiver_id} not found."}

    def view_messages_sent(self) -> Json:
        if not self.current_user:
            return NOBODY
        sent: dict[str, list[Any]] = {}
        for message in self.inbox:
            for receiver, text in message.items():
                sent.setdefault(receiver, []).append(text)
        return {"messages": sent}

    def add_contact(self, user_name: str) -> Json:
        if user_name in self.user_map:
            return {"error": f"User name '{user_name}' already exists."}
        self.user_count += 1
        user_id = f"USR{self.user_count:03d}"
        if user_id in self.user_map.values():
            return {"error": f"User ID '{user_id}' already exists."}
        self.user_map[user_name] = user_id
        return {"added_status": True, "user_id": user_id, "message": f"Contact '{user_name}' added successfully."}

    def search_messages(self, keyword: str) -> Json:
        if not self.current_user:
            return NOBODY
        sent = [(receiver, text) for message in self.inbox for receiver, text in message.items()]
        return {"results": [{"receiver_id": receiver, "message": text} for receiver, text in sent if keyword.lower() in text.lower()]}

    def get_message_stats(self) -> Json:
        if not self.current_user:
            return NOBODY
        receivers = {receiver for message in self.inbox for receiver in message}
        return {"stats": {"received_count": len(self.inbox), "total_contacts": len(receivers)}}

    def _new_id(self) -> int:
        while True:
            number: int = self._draw(10000, 99999)
            if number not in self.generated_ids:
                self.generated_ids = sorted([*self.generated_ids, number])  # a set, for the benchmark
                return number
