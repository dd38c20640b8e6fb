"""Calls written as Python, such as ``f(a=1, b=[g(2)])``: read with a parser, never evaluated."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from agentgym.action import Call


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
    """All calls of a text such as ``[f(a=1), g.h(b="x")]``, brackets or not: the form in which BFCL asks models without tools to answer.

    A bare name is a text, as in the benchmark. Raises `ValueError` where the text is none, or an argument has no name or is a call.
    """
    inside = text.strip().strip("`").strip()
    calls = _read(inside if inside.startswith("[") else f"[{inside}]")
    named = [call for call in calls if isinstance(call, Written) and not call.args and not _holds_call(call.kwargs)]
    if not named or len(named) < len(calls):
        raise ValueError("write calls as [name(parameter=value), …]")
    return [Call(call.name, call.kwargs) for call in named]


def _read(text: str) -> Any:
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no Python: {error}") from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if not isinstance(value, bytes | complex) and value is not ...:
            return value
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=parts):
            return [_value(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {key.value: _value(value) for key, value in zip(keys, values, strict=True) if isinstance(key, ast.Constant)}
        case ast.Call(func=function, args=args, keywords=keywords) if all(keyword.arg for keyword in keywords):
            kwargs = {str(keyword.arg): _value(keyword.value) for keyword in keywords}
            return Written(_name(function), tuple(_value(part) for part in args), kwargs)
        case _:
            raise ValueError(f"a call holds plain values, no {type(node).__name__}")


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
