"""Conversations in OpenAI's form as trees of one episode, to be learnt by `agentgym.trainers.cloning.clone`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, Field, field_validator, model_validator

from agentgym.action import Call, format_action
from agentgym.chat import Chat
from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.recipe import validated
from agentgym.turn import Message, Turn, TurnTree

Row = Mapping[str, Any] | str | bytes  # a conversation, or a line of JSON that holds one


class Rejected(NamedTuple):
    row: int  # from 1
    reason: str


def read_messages(path: str | Path) -> Iterator[bytes]:
    """The lines of a file of JSON lines, read as they are asked for."""
    try:
        with open(path, "rb") as lines:
            yield from lines
    except OSError as error:
        raise AgentGymError(f"{path} cannot be read: {error.strerror}") from error


def trees_of_messages(rows: Iterable[Row], chat: Chat, max_tokens: int | None = None) -> tuple[list[TurnTree], list[Rejected]]:
    """A tree for each row ``{"messages": [...], "tools": [...]}``, its turns the assistant's messages; and the rows that cannot be learnt.

    ``rows`` may be a ``datasets.Dataset``, a list, or what `read_messages` gives. ``tools`` may be missing, or JSON text, as may the
    arguments of calls. What comes after the last message of the assistant is left out, and blank lines are no rows. Nothing is
    sampled, and nothing has a reward. Rejected: what is no such row, a conversation in which the assistant says nothing, or nothing at one
    place, one whose history the chat template rewrites, and one of more than ``max_tokens``.
    """
    trees: list[TurnTree] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str | bytes) and not row.strip():
            continue
        try:
            tree = _tree(number, row, chat)
            if max_tokens is not None and (length := tree.turns[-1].length) > max_tokens:
                raise AgentGymError(f"{length} tokens, of {max_tokens} at most")
            trees.append(tree)
        except Exception as error:  # a chat template may raise anything at a conversation that it was not made for
            said = str(error) if isinstance(error, AgentGymError) else f"the chat format cannot write it ({type(error).__name__}: {error})"
            rejected.append(Rejected(number, said))
    return trees, rejected


class Function(BaseModel):
    name: str
    arguments: dict[str, Any] = {}

    @field_validator("arguments", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return _bare(value) if not isinstance(value, str) else _json(value) if value else {}


class ToolCall(BaseModel):
    function: Function


class Said(BaseModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []
    name: str | None = None
    tool_call_id: str | None = None

    @field_validator("content", "reasoning_content", "tool_calls", mode="before")
    @classmethod
    def read(cls, value: Any, info: Any) -> Any:
        return ([] if info.field_name == "tool_calls" else "") if value is None else value

    def action(self) -> str:
        calls = [Call(call.function.name, call.function.arguments) for call in self.tool_calls]
        return format_action(*calls, thought=self.reasoning_content, content=self.content)

    def reply(self) -> Message:
        return self.model_dump(include={"role", "content", "name", "tool_call_id"}, exclude_none=True)


class Conversation(BaseModel):
    messages: list[Said] = Field(min_length=1)
    tools: list[dict[str, Any]] = []

    @model_validator(mode="before")
    @classmethod
    def read_row(cls, value: Any) -> Any:
        return dict(value) if isinstance(value, Mapping) else _json(value) if isinstance(value, str | bytes) else value

    @field_validator("tools", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return _bare(_json(value) if isinstance(value, str) and value else value or [])


def _tree(number: int, row: Row, chat: Chat) -> TurnTree:
    talk = validated(Conversation, row, "the row")
    places = [place for place, said in enumerate(talk.messages) if said.role == "assistant"]
    if not places:
        raise AgentGymError("no message is the assistant's")
    opening = [said.reply() for said in talk.messages[: places[0]]]
    asked = next((message["content"] for message in opening if message["role"] == "user"), "")
    tree = TurnTree(f"messages/{number}", Task(f"row {number}", asked))
    tree.tools = talk.tools
    ids = chat.open(opening, tree.tools)
    turn = tree.add(Turn(-1, None, "env", 0, ids=ids, replies=opening))
    for place, following in zip(places, [*places[1:], None], strict=True):
        replies = [said.reply() for said in talk.messages[place + 1 : following]] if following else []
        turn = tree.add(_turn(chat, turn, place, talk.messages[place].action(), replies, following is None))
    return tree


def _turn(chat: Chat, before: Turn, place: int, action: str, replies: list[Message], last: bool) -> Turn:
    if not action.strip():
        raise AgentGymError(f"messages.{place}: the assistant says nothing")
    ids = chat.write(action)
    if chat.stop_ids & set(ids[:-1]):
        raise AgentGymError(f"messages.{place}: the assistant's words hold the token that ends a message")
    bridge = [] if last else chat.bridge(before.ids, ids, replies)
    if bridge is None:
        raise AgentGymError(f"messages.{place}: the chat template rewrites what was said before")
    turn = Turn(-1, before, "teacher", 0, ids=ids + bridge, action_tokens=len(ids), action=action, replies=replies)
    turn.end, turn.reward = ("done", None) if last else (None, 0.0)
    return turn


def _json(text: str | bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def _bare(value: Any) -> Any:
    """Without the nulls that a table adds where other rows have a field that this one has not."""
    if isinstance(value, Mapping):
        return {name: _bare(inner) for name, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value
