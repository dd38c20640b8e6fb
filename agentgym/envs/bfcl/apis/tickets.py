"""A queue of support tickets."""

from __future__ import annotations

from agentgym.envs.bfcl.apis.base import Api, Json

EDITABLE = ("title", "description", "status", "priority")


class TicketAPI(Api):
    ticket_queue: list[Json]
    ticket_counter: int
    current_user: str | None

    def ticket_login(self, username: str, password: str) -> Json:
        if not username or not password:
            return {"success": False}
        self.current_user = username
        return {"success": True}

    def ticket_get_login_status(self) -> Json:
        return {"login_status": bool(self.current_user)}

    def logout(self) -> Json:
        if not self.current_user:
            return {"success": False}
        self.current_user = None
        return {"success": True}

    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> Json:
        if not self.current_user:
            return {"error": "User not authenticated. Please log in to create a ticket."}
        if not 1 <= priority <= 5:
            return {"error": "Invalid priority. Priority must be between 1 and 5."}
        ticket = {
            "id": self.ticket_counter,
            "title": title,
            "description": description,
            "status": "Open",
            "priority": priority,
            "created_by": self.current_user,
        }
        self.ticket_queue.append(ticket)
        self.ticket_counter += 1
        return ticket

    def get_ticket(self, ticket_id: int) -> Json:
        ticket = self._find(ticket_id)
        return _unknown(ticket_id) if ticket is None else ticket

    def close_ticket(self, ticket_id: int) -> Json:
        ticket = self._find(ticket_id)
        if ticket is None:
            return _unknown(ticket_id)
        if ticket["status"] == "Closed":
            return {"error": f"Ticket with ID {ticket_id} is already closed."}
        ticket["status"] = "Closed"
        return {"status": f"Ticket {ticket_id} has been closed successfully."}

    def resolve_ticket(self, ticket_id: int, resolution: str) -> Json:
        ticket = self._find(ticket_id)
        if ticket is None:
            return _unknown(ticket_id)
        if ticket["status"] == "Resolved":
            return {"error": f"Ticket with ID {ticket_id} is already resolved."}
        ticket |= {"status": "Resolved", "resolution": resolution}
        return {"status": f"Ticket {ticket_id} has been resolved successfully."}

    def edit_ticket(self, ticket_id: int, updates: Json) -> Json:
        ticket = self._find(ticket_id)
        if ticket is None:
            return _unknown(ticket_id)
        if odd := [name for name in updates if name not in EDITABLE]:
            return {"error": f"Invalid fields for update: {', '.join(odd)}"}
        ticket |= {name: value for name, value in updates.items() if value is not None}
        return {"status": f"Ticket {ticket_id} has been updated successfully."}

    def get_user_tickets(self, status: str | None = None) -> list[Json]:
        if not self.current_user:
            return [{"error": "User not authenticated. Please log in to view tickets."}]
        mine = [ticket for ticket in self.ticket_queue if ticket["created_by"] == self.current_user]
        return [ticket for ticket in mine if not status or ticket["status"].lower() == status.lower()]

    def _find(self, ticket_id: int) -> Json | None:
        return next((ticket for ticket in self.ticket_queue if ticket["id"] == ticket_id), None)


def _unknown(ticket_id: object) -> Json:
    return {"error": f"Ticket with ID {ticket_id} not found."}
