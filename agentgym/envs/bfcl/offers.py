"""The benchmark's functions as tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentgym.envs.calls import Json, schema, tool_name


def described(function: Json) -> dict[str, Any]:
    """The benchmark's description of a function, as tools are described."""
    name, parameters = tool_name(function["name"]), schema({"type": "dict", **function["parameters"]})
    response = schema(function.get("response", {}))
    answers = f" It answers with {json.dumps(response)}" if response.get("properties") else ""
    return {"name": name, "description": function["description"] + answers, "parameters": parameters}


def announcement(functions: Sequence[Json]) -> str:
    """What the user says when functions come that were not there before."""
    return "\n".join(["Now you can also call these functions:", *map(json.dumps, functions), "Please go on."])
