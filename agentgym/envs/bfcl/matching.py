"""BFCL's metric for single answers: whether calls are among those that are allowed, by name, parameters, types and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym.action import Call
from agentgym.envs.calls import Json, bare, tool_name

TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
MAY_BE_OMITTED = ""  # among the values that are allowed


def fault(calls: Sequence[Call], functions: Sequence[Json], allowed: Sequence[Json]) -> str:
    """What is wrong with ``calls``, in one sentence; empty where they are right.

    ``functions`` are described as the benchmark describes them. ``allowed``: for each call that must be made ``{name: {parameter:
    [values]}}``, where "" among the values says that the parameter may be omitted. The order of calls does not count.

    Source: The Berkeley Function Calling Leaderboard, ast_checker of its program [S]: values of a parameter of type float may be whole,
    but not those within a list; strings are compared without case, spaces and ``,./-_*^``; a value of the type that the first allowed
    value has is right also where the description says another type; calls are matched to what is allowed in order, the first that fits.
    """
    if len(calls) != len(allowed):
        return f"{len(allowed)} calls are wanted, {len(calls)} are made"
    left = list(calls)
    for wanted in allowed:
        faults = [_fault_of_call(call, functions, wanted) for call in left]
        if "" not in faults:
            return faults[0]
        del left[faults.index("")]
    return ""


def _fault_of_call(call: Call, functions: Sequence[Json], wanted: Json) -> str:
    name, allowed = next(iter(wanted.items()))
    parameters = next((function for function in functions if function["name"] == name), functions[0])["parameters"]
    if call.name not in (name, tool_name(name)):
        return f"{call.name} is called, not {name}"
    if missing := [parameter for parameter in parameters.get("required", ()) if parameter not in call.arguments]:
        return f"{name}: {missing[0]} is missing"
    for parameter, value in call.arguments.items():
        if parameter not in parameters["properties"] or parameter not in allowed:
            return f"{name}: {parameter} is not wanted"
        if not _right(value, parameters["properties"][parameter], allowed[parameter]):
            return f"{name}: {parameter} is none of {allowed[parameter]!r}"
    missing = [parameter for parameter, values in allowed.items() if parameter not in call.arguments and MAY_BE_OMITTED not in values]
    return f"{name}: {missing[0]} is missing" if missing else ""


def _right(value: Any, schema: Json, allowed: Sequence[Any]) -> bool:
    expected: Any = TYPES[schema["type"]]  # a type; as such, comparing it would narrow ``value``
    inner = TYPES.get(schema.get("items", {}).get("type", "")) if expected is list else None
    if schema["type"] == "tuple" and isinstance(value, tuple):
        value = list(value)
    listed = _type_of(allowed)
    if type(value) is not expected and not (expected is float and type(value) is int):
        return type(value) is listed and value in allowed
    if inner is not None and not any(_holds(value, inner, option) for option in allowed):
        return False
    if listed not in (None, expected):
        return value in allowed
    if expected is dict:
        return any(_right_dict(value, option) for option in allowed if option != MAY_BE_OMITTED)
    if inner is dict:
        return any(_right_dicts(value, option) for option in allowed)
    if expected is list:
        return _bare_texts(value) in [_bare_texts(option or []) for option in allowed]
    return bare(value) in map(bare, allowed)


def _type_of(allowed: Sequence[Any]) -> type | None:
    """That of the first value that is no leave to omit."""
    return next((type(value) for value in allowed if value != MAY_BE_OMITTED), None)


def _holds(values: Sequence[Any], inner: type, option: Any) -> bool:
    """Whether all have the type ``inner``, or that of the first of ``option``."""
    return not isinstance(option, list) or all(type(value) in (inner, _type_of(option)) for value in values)


def _right_dict(value: Any, option: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(option, dict):
        return False
    right = all(key in option and bare(part) in map(bare, option[key]) for key, part in value.items())
    return right and all(key in value or MAY_BE_OMITTED in options for key, options in option.items())


def _right_dicts(values: Sequence[Any], options: Sequence[Any]) -> bool:
    return len(values) == len(options) and all(
        _right_dict(value, option) for value, option in zip(values, options, strict=True)
    )


def _bare_texts(values: Any) -> Any:
    return [bare(value) for value in values] if isinstance(values, list) else values
