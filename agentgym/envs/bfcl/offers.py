"""The benchmark's functions as tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentgym.envs.bfcl.matching import tool_name
from agentgym.tool import Tool

Json = Mapping[str, Any]
TYPES = {
    "string": "string",
    "integer": "integer",
    "float": "number",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
}
KEPT = ("description", "enum", "default", "required", "minItems", "maxItems", "minimum", "maximum")


class Offer(Tool):
    """A function as `described` gives it. Its arguments are passed on as they are: what is wrong with them is graded."""

    def __init__(self, function: Json, run: Callable[[str, dict[str, Any]], Any]) -> None:
        self.name, self.description, self.parameters = function["name"], function["description"], function["parameters"]
        self.ends, self.effect = False, "write"
        self.function = lambda **arguments: run(self.name, arguments)

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        return arguments


def described(function: Json) -> dict[str, Any]:
    """The benchmark's description of a function, as tools are described."""
    name, parameters = tool_name(function["name"]), schema({"type": "dict", **function["parameters"]})
    response = schema(function.get("response", {}))
    answers = f" It answers with {json.dumps(response)}" if response.get("properties") else ""
    return {"name": name, "description": function["description"] + answers, "parameters": parameters}


def schema(described: Json) -> dict[str, Any]:
    """The benchmark's description of a value as a JSON schema. ``any``, and what the benchmark misspells, has no type."""
    kind = described.get("type")
    found: dict[str, Any] = {"type": TYPES[kind]} if isinstance(kind, str) and kind in TYPES else {}
    found |= {name: described[name] for name in KEPT if name in described}
    if "properties" in described:
        found["properties"] = {name: schema(part) for name, part in described["properties"].items()}
    if "items" in described:
        found["items"] = schema(described["items"])
    return found


def announcement(functions: Sequence[Json]) -> str:
    """What the user says when functions come that were not there before."""
    return "\n".join(["Now you can also call these functions:", *map(json.dumps, functions), "Please go on."])
