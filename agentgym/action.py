"""The canonical text of an action: optional ``<think>…</think>``, then words and ``<tool_call>{json}</tool_call>`` blocks.

Environments read and write this one form. A model with another wire format is bridged by its renderer (`agentgym.chat`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
DEEPEST = 64  # levels of arguments within arguments
EXAMPLE = '<tool_call>{"name": "…", "arguments": {…}}</tool_call>'


@dataclass(slots=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Action:
    """A parsed action. ``problem`` says in one sentence what was malformed first, and then ``calls`` is empty.

    ``content`` has all words outside of calls, malformed ones included; of a call that is not closed, its text.
    """

    text: str
    thought: str
    content: str
    calls: tuple[Call, ...]
    problem: str | None = None


def parse_action(text: str) -> Action:
    """Read the canonical text. Never raises: what is malformed is named in ``problem``."""
    thought, rest = "", text
    if "<think>" in text:
        if (match := _THOUGHT.match(text)) is not None:
            thought, rest = match.group(1).strip(), text[match.end() :]
        elif text.lstrip().startswith("<think>"):
            return Action(text, text.strip()[len("<think>") :], "", (), "The thought is not closed: </think> is missing.")
    calls: list[Call] = []
    content, position, problem = "", 0, None
    while (start := rest.find(_OPEN, position)) >= 0:
        end = rest.find(_CLOSE, start)
        if end < 0:
            problem = problem or f"The tool call is not closed: {_CLOSE} is missing."
            break
        if problem is None:
            call = _parse_call(rest[start + len(_OPEN) : end])
            if isinstance(call, str):
                problem = call
            else:
                calls.append(call)
        content += rest[position:start]
        position = end + len(_CLOSE)
    return Action(text, thought, (content + rest[position:]).strip(), () if problem else tuple(calls), problem)


def _parse_call(body: str) -> Call | str:
    try:
        value = orjson.loads(body)
    except ValueError as error:
        return f"The tool call is not JSON ({error})."
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return f"The tool call needs a name: {EXAMPLE}."
    if not isinstance(arguments := value.get("arguments", {}), dict):
        return f"The arguments of {name!r} must be a JSON object."
    if body.count("[") + body.count("{") > DEEPEST and is_deep(arguments):
        return f"The arguments of {name!r} are nested deeper than {DEEPEST} levels."
    return Call(name, arguments)


def is_deep(value: Any) -> bool:
    """Whether a JSON value is nested so deeply that writing it out again could fail."""
    level = [value]
    for _ in range(DEEPEST):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not (level := [value for values in inner for value in values]):
            return False
    return True


def format_action(*calls: Call, thought: str = "", content: str = "") -> str:
    """Write the canonical text; the inverse of `parse_action`."""
    parts = [f"<think>\n{thought}\n</think>"] if thought else []
    if content:
        parts.append(content)
    parts += [f"<tool_call>\n{_call_json(call)}\n</tool_call>" for call in calls]
    return "\n".join(parts)


def call(name: str, /, *, thought: str = "", **arguments: Any) -> str:
    """The canonical text of one tool call: ``call("search", query="Iceland")``."""
    return format_action(Call(name, arguments), thought=thought)


def _call_json(call: Call) -> str:
    text = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return text.replace(_CLOSE, "<\\/tool_call>")  # within a string, JSON reads \\/ as /
