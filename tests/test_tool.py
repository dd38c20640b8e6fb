"""Tools from typed functions."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from agentgym import AgentGymError, Tool, tool
from agentgym.tool import is_tool, schema_of, to_text


@tool
def lookup(city: str, kind: Literal["area", "people"] = "area", limit: int | None = None) -> str:
    """Look a city up.

    Two lines of words.

    Args:
        city: its name.
        kind (str): what to tell.
    """
    return f"{city} {kind} {limit}"


class Shop:
    @tool(ends=True)
    def buy(self, item: str) -> str:
        """Buy it."""
        return f"bought {item}"


def test_the_schema_comes_from_hints_defaults_and_docstring() -> None:
    assert schema_of(lookup) == {
        "type": "object",
        "additionalProperties": False,
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "its name."},
            "kind": {"type": "string", "enum": ["area", "people"], "default": "area", "description": "what to tell."},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        },
    }


def test_a_schema_is_the_callers_to_change() -> None:
    schema_of(lookup)["properties"].clear()
    assert list(schema_of(lookup)["properties"]) == ["city", "kind", "limit"]
    first, second = Tool(lookup), Tool(lookup)
    first.parameters.clear()
    assert second.parameters


def test_the_two_wire_forms_tell_the_same() -> None:
    made = Tool(lookup)
    assert made.spec == {
        "type": "function",
        "function": {"name": "lookup", "description": "Look a city up.\n\nTwo lines of words.", "parameters": made.parameters},
    }
    assert made.mcp == {"name": "lookup", "description": made.description, "inputSchema": made.parameters}


def test_a_method_is_a_tool_without_self() -> None:
    made = Tool(Shop().buy)
    assert made.ends
    assert list(made.parameters["properties"]) == ["item"]
    assert made(item="tea") == "bought tea"


def test_arguments_are_read_into_python_types() -> None:
    assert Tool(lookup).read_arguments({"city": "Bern", "limit": "3"}) == {"city": "Bern", "kind": "area", "limit": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "lookup: city: field required."),
        ({"city": "Bern", "town": 1}, "lookup: town: extra inputs are not permitted."),
        ({"city": "Bern", "kind": "age"}, "lookup: kind: input should be 'area' or 'people'."),
        ({"city": 3}, "lookup: city: input should be a valid string."),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(arguments: dict[str, Any], words: str) -> None:
    assert Tool(lookup).read_arguments(arguments) == words


def test_default_values_are_not_shared_between_calls() -> None:
    def collect(items: list[str] = []) -> list[str]:  # noqa: B006
        return items

    first, second = Tool(collect).read_arguments({}), Tool(collect).read_arguments({})
    assert isinstance(first, dict)
    first["items"].append("a")
    assert second == {"items": []}
    assert Tool(collect).read_arguments({}) == {"items": []}


def test_parameters_need_hints_and_names() -> None:
    def untyped(city):  # type: ignore[no-untyped-def]
        return city

    def starred(*cities: str) -> str:
        return ""

    with pytest.raises(AgentGymError, match="parameter 'city' needs a type hint"):
        schema_of(untyped)
    with pytest.raises(AgentGymError, match=r"\*cities cannot be called by name"):
        schema_of(starred)


def test_a_name_must_be_one_that_openai_and_mcp_accept() -> None:
    with pytest.raises(AgentGymError, match="must match"):
        Tool(lambda: "")


def test_only_what_is_marked_is_a_tool() -> None:
    assert is_tool(lookup)
    assert is_tool(Shop.buy)
    assert not is_tool(print)


@pytest.mark.parametrize(
    ("result", "words"), [("as it is", "as it is"), ({"a": (1, None)}, '{"a":[1,null]}'), (True, "true"), (None, "null")]
)
def test_a_result_is_read_as_text_or_json(result: object, words: str) -> None:
    assert to_text(result) == words
