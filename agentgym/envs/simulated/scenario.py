"""A task as its writer gives it, and the tools in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agentgym.action import Call
from agentgym.envs.simulated.knobs import Knobs
from agentgym.tool import Tool

TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
RESERVED = ("say", "done")


def _writable(value: dict[str, Any]) -> dict[str, Any]:
    """JSON may hold what cannot be written again, such as an integer beyond 64 bits."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return value


Json = Annotated[dict[str, Any], AfterValidator(_writable)]


class Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["string", "integer", "number", "boolean"]
    description: str = ""
    enum: list[str] | None = None

    def fault(self, value: Any) -> str:
        """What is wrong with an argument; empty if nothing."""
        if not isinstance(value, TYPES[self.type]) or (isinstance(value, bool) and self.type != "boolean"):
            return f"input should be a valid {self.type}"
        return f"input should be {' or '.join(map(repr, self.enum))}" if self.enum is not None and value not in self.enum else ""


class Sketch(BaseModel):
    """A tool that nobody has written. All its parameters are required."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = Field(min_length=1)
    parameters: dict[str, Parameter] = {}

    def fault(self, arguments: Mapping[str, Any]) -> str:
        wrong = [f"{name}: field required" for name in self.parameters if name not in arguments]
        wrong += [f"{name}: extra inputs are not permitted" for name in arguments if name not in self.parameters]
        given = {name: parameter.fault(arguments[name]) for name, parameter in self.parameters.items() if name in arguments}
        wrong += [f"{name}: {fault}" for name, fault in given.items() if fault]
        return f"{self.name}: {'; '.join(wrong)}." if wrong else ""


class Step(BaseModel):
    """A call of the reference plan."""

    model_config = ConfigDict(extra="forbid")
    name: str
    arguments: Json = {}

    def call(self) -> Call:
        return Call(self.name, self.arguments)


class Scenario(BaseModel):
    """``state`` and ``goal`` are hidden from the agent, as are ``checklist`` and ``plan``."""

    model_config = ConfigDict(extra="forbid")
    system: str = ""
    tools: list[Sketch]
    request: str = Field(min_length=1)
    goal: str = Field(min_length=1)
    state: Json
    checklist: list[str] = Field(min_length=1, max_length=8)
    plan: list[Step]

    def fault(self, knobs: Knobs) -> str:
        """Why it is not what was asked for; empty if it is."""
        sketches = {sketch.name: sketch for sketch in self.tools}
        if len(sketches) < len(self.tools) or set(RESERVED) & sketches.keys():
            return f"the names of tools must differ, from each other and from {' and '.join(RESERVED)}"
        if len(self.tools) != knobs.tools or len(self.plan) != knobs.calls:
            return f"it has {len(self.tools)} tools and a plan of {len(self.plan)} calls, not {knobs.tools} and {knobs.calls}"
        for step in self.plan:
            fault = sketches[step.name].fault(step.arguments) if step.name in sketches else f"the plan calls {step.name}, which is no tool"
            if fault:
                return fault
        return ""


class SimulatedTool(Tool):
    """A sketch as a tool: ``run(name, arguments)`` says what comes of a call."""

    def __init__(self, sketch: Sketch, run: Callable[[str, dict[str, Any]], str]) -> None:
        self.sketch, self.name, self.description = sketch, sketch.name, sketch.description
        self.ends, self.effect = False, "write"
        self.function = lambda **arguments: run(sketch.name, arguments)
        properties = {name: parameter.model_dump(exclude_none=True) for name, parameter in sketch.parameters.items()}
        self.parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        return self.sketch.fault(arguments) or arguments
