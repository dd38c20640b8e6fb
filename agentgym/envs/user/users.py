"""Who the user is: the protocol, any model behind an OpenAI-compatible endpoint, and replies remembered in a file."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

from agentgym.action import Call, format_action, parse_action
from agentgym.envs.user.phone import DEVICE_TOOLS, Device, use
from agentgym.errors import AgentGymError, InfrastructureError, ToolError
from agentgym.snapshot import state_digest

if TYPE_CHECKING:
    from agentgym.tools.completion import Completes

TRIES = 3  # of a model that says nothing, or nothing that makes sense


class UserFailure(InfrastructureError):
    """The user failed, not the agent: the episode has no verdict, and the user has the blame."""

    blames = "user"


@dataclass(frozen=True, slots=True)
class Line:
    """Of a dialogue: what somebody said, what the user did with the device (a call's text), or what that showed then."""

    speaker: Literal["agent", "user", "deed", "device"]
    text: str


@dataclass(frozen=True, slots=True)
class UserView:
    """All that a user knows. It opened the dialogue; the last line is the agent's, or the device's after the user's own deed."""

    goal: str
    knowledge: Mapping[str, str]
    persona: str
    device: Device
    status: str
    dialogue: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What a user says, or the calls of device tools with which it acts first: then it is asked again."""

    text: str = ""
    actions: tuple[Call, ...] = field(default=())


class User(Protocol):
    blocking: bool  # True: it waits for something

    def reply(self, view: UserView, rng: Random) -> UserTurn: ...


class ModelUser:
    """A model with function calling, which gets the device's tools. Raises `UserFailure` where it fails three times in a row."""

    blocking = True

    def __init__(self, completion: Completes) -> None:
        self.completion = completion

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        messages = [{"role": "system", "content": _role(view)}, *_messages(view)]
        specs = [tool.spec for tool in DEVICE_TOOLS.values()]
        why = ""
        for _ in range(TRIES):
            said = self.completion.complete(messages, specs, seed=rng.getrandbits(31))
            why = said.problem or _fault(said.calls, view.device) or ("" if said.calls or said.text else "it says nothing")
            if not why:
                return UserTurn("" if said.calls else said.text, said.calls)
        raise UserFailure(f"the simulated user failed {TRIES} times to answer: {why}. Choose another model for it")


class CachedUser:
    """What ``inner`` replied once, it replies again to the same dialogue. ``file`` has a JSON line for each reply, and grows.

    All that have one ``file`` share its replies within a process, each those of its own ``model``: the name of who replies.
    """

    def __init__(self, inner: User, file: str | Path, model: str = "") -> None:
        self.inner, self.model = inner, model
        self.blocking = inner.blocking
        self._memory = memory(Path(file).resolve())

    def reply(self, view: UserView, rng: Random) -> UserTurn:
        key = state_digest(self.model, view)
        known = self._memory.known.get(key)
        return self._memory.keep(key, self.inner.reply(view, rng)) if known is None else known


class Memory:
    """Replies by a hash of who heard what, and the file that holds them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = _read(file) if file.exists() else {}
        self._lock = threading.Lock()

    def keep(self, key: str, turn: UserTurn) -> UserTurn:
        """The first reply, which counts: another episode may have come to the same place meanwhile."""
        with self._lock:
            if key not in self.known:
                row = {"key": key, "text": turn.text, "actions": [[call.name, call.arguments] for call in turn.actions]}
                with self.file.open("ab") as file:
                    file.write(orjson.dumps(row) + b"\n")
                self.known[key] = turn
            return self.known[key]


memory = cache(Memory)  # one of each file, so that the episodes of a group read each other's replies


def _read(file: Path) -> dict[str, UserTurn]:
    known: dict[str, UserTurn] = {}
    content = file.read_bytes()
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = orjson.loads(line)
            known[row["key"]] = UserTurn(row["text"], tuple(Call(*call) for call in row["actions"]))
        except (ValueError, TypeError, KeyError) as error:
            raise AgentGymError(f"{file}, line {number} is no remembered reply ({error}): delete the line") from error
    if content and not content.endswith(b"\n"):  # who wrote the last line was killed: what follows must not be glued to it
        os.truncate(file, content.rfind(b"\n") + 1)
    return known


def _fault(calls: tuple[Call, ...], device: Device) -> str:
    """What is wrong with a user's deeds; empty if nothing."""
    try:
        for call in calls:
            device = use(device, call)
    except ToolError as error:
        return str(error)
    return ""


def _role(view: UserView) -> str:
    known = "\n".join(f"- your {name}: {value}" for name, value in view.knowledge.items())
    return (
        f"You play a customer who talks to a support agent. {view.goal}\nYou are {view.persona}. You know:\n{known}\n"
        f"Your phone shows now: {view.status}.\n"
        "Tell what you are asked for, and no more; invent nothing. Use your phone with the tools, only as the agent tells you to, then "
        "say in a sentence what it shows. Speak as the customer alone. Say goodbye only when your phone is connected."
    )


def _messages(view: UserView) -> list[dict[str, Any]]:
    """The dialogue with the roles turned round: to the user's model, the agent is the one who asks."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hello, what can I do for you?"}]
    for number, line in enumerate(view.dialogue):
        match line.speaker:
            case "agent":
                messages.append({"role": "user", "content": line.text})
            case "user":
                messages.append({"role": "assistant", "content": line.text})
            case "deed":
                (call,) = parse_action(line.text).calls
                function = {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()}
                calls = [{"type": "function", "id": f"deed_{number}", "function": function}]
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            case "device":
                messages.append({"role": "tool", "tool_call_id": f"deed_{number - 1}", "content": f"It shows: {line.text}"})
    return messages


def can_be_noted(call: Call) -> bool:
    """Whether a deed can be written into the dialogue and read again: servers let through deeper lists, longer numbers and NaN."""
    try:
        orjson.dumps(call.arguments)
        return parse_action(format_action(call)).calls == (call,)
    except (TypeError, ValueError, RecursionError):
        return False


def deed(call: Call) -> Line:
    return Line("deed", format_action(call))
