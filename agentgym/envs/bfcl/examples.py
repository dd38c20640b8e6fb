"""An answer that BFCL's metric for single answers allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.action import Call
from agentgym.envs.bfcl.matching import MAY_BE_OMITTED, fault
from agentgym.envs.calls import Json, tool_name


def example(functions: Sequence[Json], allowed: Sequence[Json]) -> list[Call] | None:
    """The calls with the first value that is allowed for each parameter; None where the metric allows no answer at all."""
    calls = [_call(functions, *next(iter(wanted.items()))) for wanted in allowed]
    return None if fault(calls, functions, allowed) else calls


def _call(functions: Sequence[Json], name: str, allowed: Mapping[str, Sequence[Any]]) -> Call:
    parameters = next(function for function in functions if function["name"] == name)["parameters"]
    values = {
        parameter: _value(parameters["properties"][parameter], options)
        for parameter, options in allowed.items()
        if parameter in parameters["properties"]
    }
    empty = dict.fromkeys(parameters["required"], MAY_BE_OMITTED)
    return Call(tool_name(name), empty | {parameter: value for parameter, value in values.items() if value is not None})


def _value(schema: Json, values: Sequence[Any]) -> Any:
    value = _first(values)
    if schema["type"] == "dict" and isinstance(value, dict):
        return _members(value)
    if isinstance(value, list) and schema.get("items", {}).get("type") == "dict":
        return [_members(part) for part in value]
    return value


def _members(allowed: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: _first(values) for name, values in allowed.items() if _first(values) is not None}


def _first(values: Sequence[Any]) -> Any:
    return next((value for value in values if value != MAY_BE_OMITTED), None)
