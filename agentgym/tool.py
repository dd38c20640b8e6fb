"""A tool from a typed function: the schema comes from the type hints, the words from the docstring."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeVar, get_args, get_type_hints, overload

import orjson

from agentgym.errors import AgentGymError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Function = TypeVar("Function", bound=Callable[..., Any])
Effect = Literal["read", "write"]
_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
_MARK = "__agentgym_tool__"


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(*, ends: bool = False, effect: Effect = "write") -> Callable[[Function], Function]: ...
def tool(function: Function | None = None, /, *, ends: bool = False, effect: Effect = "write") -> Any:
    """Mark a typed function or method as a tool. ``ends``: the episode terminates after a successful call.

    ``effect``: a call of a tool that is declared ``"read"`` is left out of replays (`agentgym.snapshot`). What is not
    declared counts as ``"write"``: a needless replay costs time, while one left out in error would lose state.
    """
    if effect not in get_args(Effect):
        raise AgentGymError(f"a tool's effect is 'read' or 'write', not {effect!r}")

    def mark(function: Function) -> Function:
        setattr(function, _MARK, {"ends": ends, "effect": effect})
        return function

    return mark if function is None else mark(function)


def is_tool(value: object) -> bool:
    return callable(value) and hasattr(value, _MARK)


class Tool:
    """A typed function that a policy can call by name with JSON arguments.

    Raises `AgentGymError` where a parameter has no type hint or the name is not one that OpenAI and MCP accept.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", "")
        declared = getattr(function, _MARK, {})
        self.ends: bool = declared.get("ends", False)
        self.effect: Effect = declared.get("effect", "write")
        if not _NAME.match(self.name):
            raise AgentGymError(f"tool name {self.name!r} must match {_NAME.pattern}: name the function so")

    def __repr__(self) -> str:
        return f"Tool({self.name})"

    @cached_property
    def description(self) -> str:
        return _docstring(_plain(self.function))[0]

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments (an object)."""
        return schema_of(self.function)

    @property
    def spec(self) -> dict[str, Any]:
        """The tool in the form of OpenAI's chat API."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    @property
    def mcp(self) -> dict[str, Any]:
        """The tool in the form of the Model Context Protocol."""
        form: dict[str, Any] = {"name": self.name, "description": self.description, "inputSchema": self.parameters}
        return form | {"annotations": {"readOnlyHint": True}} if self.effect == "read" else form

    def read_arguments(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        """The arguments in their Python types, or one sentence about what is wrong with them."""
        try:
            return self._validate(arguments)
        except ValueError as error:
            return f"{self.name}: {_sentence(error)}"

    @cached_property
    def _validate(self) -> Callable[[Any], dict[str, Any]]:
        return _arguments(_plain(self.function)).validator.validate_python

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**arguments)


def to_text(result: object) -> str:
    """What the policy reads of a tool's result: text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    return orjson.dumps(result, default=_json, option=orjson.OPT_NON_STR_KEYS).decode()


def _json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray) else str(value)


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema that the signature and docstring of ``function`` ask for."""
    return copy.deepcopy(_schema(_plain(function)))


@cache
def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    schema = _arguments(function).json_schema()
    schema.pop("title", None)
    for parameter in schema.get("properties", {}).values():
        parameter.pop("title", None)
    schema.setdefault("properties", {})
    return schema


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    plain: Callable[..., Any] = getattr(function, "__func__", function)
    return plain


@cache
def _arguments(function: Callable[..., Any]) -> TypeAdapter[dict[str, Any]]:
    """Of a typed dictionary, which is read twice as fast as a model, and in which no name means anything else."""
    from pydantic import ConfigDict, Field, TypeAdapter, with_config
    from typing_extensions import TypedDict

    hints = get_type_hints(function, include_extras=True)
    words = _docstring(function)[1]
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if name not in hints:
            raise AgentGymError(f"tool {function.__qualname__}: parameter {name!r} needs a type hint")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise AgentGymError(f"tool {function.__qualname__}: *{name} cannot be called by name; spell the parameters out")
        if parameter.default is parameter.empty:
            fields[name] = Annotated[hints[name], Field(description=words.get(name))]
        else:
            fields[name] = NotRequired[Annotated[hints[name], Field(default=parameter.default, description=words.get(name))]]
    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(TypedDict(function.__name__, fields)))  # type: ignore[operator]


@cache
def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The words before a Google-style ``Args:`` section, and the words of each parameter in it."""
    lines = (inspect.getdoc(function) or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == "Args:"), len(lines))
    words: dict[str, str] = {}
    for line in lines[start + 1 :]:
        if not line.startswith(" "):
            break
        if (match := re.match(r"\s+(\w+)(?: \([^)]*\))?:\s*(.*)", line)) is not None:
            words[match.group(1)] = match.group(2)
    return "\n".join(lines[:start]).strip(), words


def _sentence(error: ValueError) -> str:
    problems: Any = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error)}]
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'arguments'}: {p['msg'].lower()}" for p in problems) + "."
