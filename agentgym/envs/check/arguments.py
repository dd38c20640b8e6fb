"""Arguments made from a JSON schema alone, the same ones every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
Words = Callable[[], str]


def varied(parameters: Schema, words: Sequence[str], number: int) -> dict[str, Any]:
    """The ``number``-th set of arguments for a tool: enums in order, small numbers, and words of the task."""
    supply = (words[(number + i) % len(words)] for i in range(10**6))
    return {
        name: _value(schema, parameters, number, supply.__next__)
        for name, schema in parameters.get("properties", {}).items()
        if name in parameters.get("required", ()) or number % 2
    }


def filled(parameters: Schema, text: str) -> dict[str, Any]:
    """The required arguments, and all that can be text, with every text equal to ``text``."""
    properties = parameters.get("properties", {})
    wanted = [name for name in properties if name in parameters.get("required", ()) or _type(properties[name]) == "string"]
    return {name: _value(properties[name], parameters, 0, lambda: text) for name in wanted}


def neutral(parameters: Schema) -> Iterator[dict[str, Any]]:
    """Arguments that say nothing: empty texts, zeros, and each choice of an enum or a truth value in turn."""
    properties = parameters.get("properties", {})
    required = [name for name in properties if name in parameters.get("required", ())]
    width = max((len(_choices(properties[name], parameters)) for name in required), default=1)
    for number in range(max(1, width)):
        yield {name: _value(properties[name], parameters, number, lambda: "", numbers=(0,)) for name in required}


def _choices(schema: Schema, root: Schema) -> Sequence[Any]:
    schema = _resolve(schema, root)
    return schema.get("enum") or ([False, True] if _type(schema) == "boolean" else [])


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Follow references into ``$defs``, and take the first alternative that is not null."""
    for _ in range(8):
        if "$ref" in schema:
            schema = root.get("$defs", {}).get(schema["$ref"].rsplit("/", 1)[-1], {})
        elif options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            schema = next((option for option in options if option.get("type") != "null"), {})
        else:
            break
    return schema


def _type(schema: Schema) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return kind if isinstance(kind, str) else next((k for k in kind if k != "null"), "null")


def _value(
    schema: Schema, root: Schema, number: int, word: Words, depth: int = 0, numbers: Sequence[int] = (0, 1, 2)
) -> Any:
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    if choices := _choices(schema, root):
        return choices[number % len(choices)]
    inner = (root, number, word, depth + 1, numbers)
    match _type(schema):
        case "integer" | "number":
            return _number(schema, numbers[number % len(numbers)])
        case "array":
            if "prefixItems" in schema:
                return [_value(part, *inner) for part in schema["prefixItems"]]
            count = schema.get("minItems", 0 if depth > 3 else 1)
            return [_value(schema.get("items", {}), *inner) for _ in range(count)]
        case "object":
            required = schema.get("required", ())
            return {name: _value(part, *inner) for name, part in schema.get("properties", {}).items() if name in required}
        case "null":
            return None
        case _:
            text = word()[: schema.get("maxLength")]
            return text.ljust(schema.get("minLength", 0), "a")


def _number(schema: Schema, wish: int) -> int | float:
    low = schema.get("minimum", schema["exclusiveMinimum"] + 1 if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - 1 if "exclusiveMaximum" in schema else None)
    value: int | float = wish if low is None else max(low, wish)
    return value if high is None else min(value, high)
