"""Calls that are graded: functions as benchmarks describe them, calls written as Python, and texts as they are compared."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentgym.action import DEEPEST, Call
from agentgym.envs.syntax import expression_of
from agentgym.tool import Tool

Json = Mapping[str, Any]
TYPES = {
    "string": "string",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
    "object": "object",
}
KEPT = ("description", "enum", "default", "required", "minItems", "maxItems", "minimum", "maximum", "pattern", "format")
DEEPEST_VALUE = 32  # levels of an argument that a backend keeps
_IGNORED = re.compile(r"[ ,./\-_*^]")
_ODD = re.compile(r"[^a-zA-Z0-9_-]")


class Offer(Tool):
    """A function with a name, a description and parameters. Its arguments are passed on unchecked: they are graded."""

    def __init__(self, described: Json, run: Callable[[str, dict[str, Any]], Any]) -> None:
        self.name, self.description, self.parameters = described["name"], described["description"], described["parameters"]
        self.ends, self.effect = False, "write"
        self.function = lambda **arguments: run(self.name, arguments)

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        return arguments


def schema(described: Json) -> dict[str, Any]:
    """A benchmark's description of a value as a JSON schema. ``any``, and what a benchmark misspells, has no type."""
    kind = described.get("type")
    found: dict[str, Any] = {"type": TYPES[kind]} if isinstance(kind, str) and kind in TYPES else {}
    found |= {name: described[name] for name in KEPT if name in described}
    if "properties" in described:
        found["properties"] = {name: schema(part) for name, part in described["properties"].items()}
    if "items" in described:
        found["items"] = schema(described["items"])
    return found


def tool_name(name: str) -> str:
    """A function's name as tools may be named: dots become underscores."""
    return _ODD.sub("_", name)


def bare(value: Any) -> Any:
    """A text as it is compared: without case, spaces and ``,./-_*^``, its quotes alike. Anything else as it is."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it is written. An argument may hold further ones."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def read_written(text: str) -> Written:
    """One call. Raises `ValueError` for anything else."""
    value = _read(text)
    if not isinstance(value, Written):
        raise ValueError(f"{text!r} is no call")
    return value


def read_calls(text: str) -> list[Call]:
    """All calls of a text such as ``[f(a=1), g.h(b="x")]``, brackets or not, as models without tools are asked to write them.

    A bare name is a text. Raises `ValueError` where the text is none, or an argument has no name or is a call.
    """
    inside = text.strip().strip("`").strip()
    calls = _read(inside if inside.startswith("[") else f"[{inside}]")
    named = [call for call in calls if isinstance(call, Written) and not call.args and not _holds_call(call.kwargs)]
    if not named or len(named) < len(calls):
        raise ValueError("write calls as [name(parameter=value), …]")
    return [Call(call.name, call.kwargs) for call in named]


def calls_alone(text: str) -> list[Call]:
    """The calls of a text that holds nothing else, as `read_calls` reads them; none of any other text."""
    try:
        return read_calls(text)
    except ValueError:
        return []


def _read(text: str) -> Any:
    try:
        return _value(expression_of(text.strip()))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no Python: {error}") from error


def _value(node: ast.expr, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"a call holds values within values on no more than {DEEPEST} levels")
    match node:
        case ast.Constant(value=value) if not isinstance(value, bytes | complex) and value is not ...:
            return _of_64_bits(value)
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return _of_64_bits(-number)
        case ast.List(elts=parts):
            return [_value(part, depth + 1) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part, depth + 1) for part in parts)
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            pairs = zip(keys, values, strict=True)
            return {_value(key): _value(value, depth + 1) for key, value in pairs if key is not None}
        case ast.Call(func=function, args=args, keywords=keywords) if all(keyword.arg for keyword in keywords):
            kwargs = {str(keyword.arg): _value(keyword.value, depth + 1) for keyword in keywords}
            return Written(_name(function), tuple(_value(part, depth + 1) for part in args), kwargs)
        case _:
            raise ValueError(f"a call holds plain values, no {type(node).__name__}")


def _of_64_bits(value: Any) -> Any:
    """A constant as it is. A longer number is none that JSON's readers take, and Python does not write one of 4,300 digits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a call holds numbers of no more than 64 bits")
    return value


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("what is called is no name of a function")


def _holds_call(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_call, value.values()))
    return isinstance(value, Written) or (isinstance(value, list | tuple) and any(map(_holds_call, value)))


def is_too_deep(value: Any) -> bool:
    """Whether there are more levels than a state can be hashed with."""
    level = [value]
    for _ in range(DEEPEST_VALUE):
        level = [part for one in level if isinstance(one, dict | list) for part in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def as_text(result: Any) -> str:
    """What a backend gives, as benchmarks show it: a dict as JSON where it can be, all else as Python writes it."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError):
            pass
    return str(result)
