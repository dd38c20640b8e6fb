"""The APIs of a user: the account, and four tables of entries that belong to users."""

from __future__ import annotations

from typing import Any

from agentgym.envs.apibank.forms import Moment, Refused, refuse_empty, strict_moment

VERIFICATION = 970420
Entry = dict[str, Any]


class Desk:
    """``tables``: the benchmark's, by the names of their files."""

    def __init__(self, tables: dict[str, Any]) -> None:
        self.tables = tables

    def _entry(self, table: str, key: str) -> Any:
        """Raises `Refused` where there is none."""
        if key not in self.tables[table]:
            raise Refused(f"{table} has no {key!r}")
        return self.tables[table][key]

    def _user(self, token: str) -> str:
        """Whose token it is."""
        for name, account in self.tables["Account"].items():
            if account["token"] == token:
                return str(name)
        raise Refused("the token is nobody's")

    # The account.

    def get_user_token(self, username: str, password: str) -> Entry:
        """Gives the token of a user, which other tools ask for."""
        return {"token": self._account(username, "password", password)["token"]}

    def check_token(self, token: str) -> Entry:
        """Tells whose a token is."""
        return {"username": self._user(token)}

    def register_user(self, username: str, password: str, email: str) -> Entry:
        """Registers a user. Gives the new token."""
        if username in self.tables["Account"]:
            raise Refused("there is such a user")
        self.tables["Account"][username] = {"password": password, "email": email, "token": f"token of {username}"}
        return {"token": f"token of {username}"}

    def delete_account(self, token: str) -> Entry:
        """Deletes the account of a user."""
        del self.tables["Account"][self._user(token)]
        return {"status": "success"}

    def modify_password(self, token: str, old_password: str, new_password: str) -> Entry:
        """Changes the password of a user."""
        self._account(self._user(token), "password", old_password)["password"] = new_password
        return {"status": "success"}

    def forgot_password(
        self,
        status: str,
        username: str | None = None,
        email: str | None = None,
        verification_code: int | None = None,
        new_password: str | None = None,
    ) -> Any:
        """Sets a new password in two calls.

        First with the status "Forgot Password", the username and the email, which gives a verification code; then with the status
        "Verification Code", that code and the new password.
        """
        if status == "Forgot Password":
            self._account(username or "", "email", email)
            self.tables["Forgotten"] = username
            return VERIFICATION
        forgotten = self.tables.get("Forgotten")
        if status != "Verification Code" or forgotten is None or verification_code != VERIFICATION or new_password is None:
            raise Refused("the status is Forgot Password, and then Verification Code with the code and the new password")
        self.tables["Account"][forgotten]["password"] = new_password
        return "success"

    def _account(self, username: str, field: str, value: Any) -> Entry:
        account: Entry = self._entry("Account", username)
        if account[field] != value:
            raise Refused(f"the {field} is wrong")
        return account

    # What a user keeps. Of several entries that fit, the first is meant.

    def add_agenda(self, token: str, content: str, time: Moment, location: str) -> str:
        """Adds an item to the user's agenda."""
        refuse_empty(content)
        return self._add("Agenda", token, {"content": content, "time": strict_moment(time), "location": location})

    def delete_agenda(self, token: str, content: str, time: Moment, location: str) -> str:
        """Deletes an item of the user's agenda."""
        return self._delete("Agenda", self._find("Agenda", token, content=content, time=time and strict_moment(time)))

    def modify_agenda(self, token: str, content: str, time: Moment, location: str) -> str:
        """Changes an item of the user's agenda, which is found by its content or time."""
        found = self._find("Agenda", token, content=content, time=time and strict_moment(time))
        return self._change("Agenda", found, {"content": content, "time": time, "location": location})

    def query_agenda(self, token: str, content: str, time: Moment, location: str) -> Entry:
        """Gives an item of the user's agenda."""
        return self._entry_of("Agenda", self._find("Agenda", token, content=content, time=time and strict_moment(time)))

    def add_reminder(self, token: str, content: str, time: Moment) -> str:
        """Adds a reminder for the user."""
        refuse_empty(content)
        return self._add("Reminder", token, {"content": content, "time": strict_moment(time)})

    def delete_reminder(self, token: str, content: str, time: Moment) -> str:
        """Deletes a reminder of the user."""
        refuse_empty(content)
        return self._delete("Reminder", self._find("Reminder", token, content=content, time=strict_moment(time)))

    def modify_reminder(self, token: str, content: str, time: Moment) -> str:
        """Changes a reminder of the user, which is found by its content or time."""
        refuse_empty(content)
        found = self._find("Reminder", token, content=content, time=strict_moment(time))
        return self._change("Reminder", found, {"content": content, "time": time})

    def query_reminder(self, token: str, content: str, time: Moment) -> Entry:
        """Gives a reminder of the user."""
        refuse_empty(content)
        return self._entry_of("Reminder", self._find("Reminder", token, content=content, time=strict_moment(time)))

    def add_meeting(
        self, token: str, meeting_topic: str, start_time: Moment, end_time: Moment, location: str, attendees: list[str]
    ) -> str:
        """Adds a meeting of the user, with those who attend it."""
        refuse_empty(meeting_topic)
        times = {"start_time": strict_moment(start_time), "end_time": strict_moment(end_time)}
        return self._add("Meeting", token, {"meeting_topic": meeting_topic, **times, "location": location, "attendees": attendees})

    def delete_meeting(
        self, token: str, meeting_topic: str, start_time: Moment, end_time: Moment, location: str, attendees: list[str]
    ) -> str:
        """Deletes a meeting of the user."""
        return self._delete("Meeting", self._meeting(token, meeting_topic, start_time, end_time))

    def modify_meeting(
        self, token: str, meeting_topic: str, start_time: Moment, end_time: Moment, location: str, attendees: list[str]
    ) -> str:
        """Changes the topic and the time of a meeting of the user, which is found by its topic or its start."""
        changes = {"meeting_topic": meeting_topic} if meeting_topic else {}
        changes |= {"start_time": start_time, "end_time": end_time} if start_time else {}
        return self._change("Meeting", self._meeting(token, meeting_topic, start_time, end_time), changes)

    def query_meeting(
        self, token: str, meeting_topic: str, start_time: Moment, end_time: Moment, location: str, attendees: list[str]
    ) -> Entry:
        """Gives a meeting of the user."""
        return self._entry_of("Meeting", self._meeting(token, meeting_topic, start_time, end_time))

    def add_alarm(self, token: str, time: Moment) -> str:
        """Adds an alarm for the user."""
        return self._add("Alarm", token, {"time": strict_moment(time)})

    def delete_alarm(self, token: str, time: Moment) -> str:
        """Deletes an alarm of the user."""
        return self._delete("Alarm", self._find("Alarm", token, time=strict_moment(time)))

    def modify_alarm(self, token: str, from_time: Moment, to_time: Moment) -> str:
        """Sets an alarm of the user to another time."""
        return self._change("Alarm", self._find("Alarm", token, time=strict_moment(from_time)), {"time": strict_moment(to_time)})

    def query_alarm(self, token: str, time: Moment) -> Entry:
        """Gives an alarm of the user."""
        return self._entry_of("Alarm", self._find("Alarm", token, time=strict_moment(time)))

    def _meeting(self, token: str, topic: str, start: str, end: str) -> str:
        times = {"start_time": start and strict_moment(start)}
        if end:
            strict_moment(end)
        return self._find("Meeting", token, meeting_topic=topic, **times)

    def _find(self, table: str, token: str, **fields: str) -> str:
        """The key of the first of the user's entries that has one of the values."""
        user = self._user(token)
        for key, entry in self.tables[table].items():
            if entry["username"] == user and any(entry[name] == value for name, value in fields.items()):
                return str(key)
        raise Refused(f"{table} holds no such entry of {user}")

    def _entry_of(self, table: str, key: str) -> Entry:
        entry: Entry = self.tables[table][key]
        return entry

    def _add(self, table: str, token: str, entry: Entry) -> str:
        self.tables[table][f"added {len(self.tables[table])}"] = {"username": self._user(token), **entry}
        return "success"

    def _delete(self, table: str, key: str) -> str:
        del self.tables[table][key]
        return "success"

    def _change(self, table: str, key: str, changes: Entry) -> str:
        self.tables[table][key].update(changes)
        return "success"

