"""Tools from an OpenAPI description: one for each operation of a service."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx

from agentgym.errors import AgentGymError, InfrastructureError, ToolError
from agentgym.tool import to_text
from agentgym.tools.remote import LONGEST_RESULT, SchemaTool, cut, not_shown, within, without

METHODS = ("get", "head", "post", "put", "patch", "delete")
READING = ("get", "head")
NOT_THE_POLICYS = (401, 407, 408, 429)  # credentials, waiting and rates are not what it can mend
PUBLIC_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
UNUSED_HEADERS = {"accept", "authorization", "content-type"}  # as parameters: OpenAPI says so
FORM = "application/x-www-form-urlencoded"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """``argument`` is its name for the policy. ``explode``, ``style``: how an array or object becomes text, in OpenAPI's words."""

    argument: str
    name: str
    where: str
    schema: Json
    required: bool
    explode: bool
    style: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One request. ``body`` is the schema of what ``body_type`` holds; None: it has no body."""

    name: str
    description: str
    method: str
    path: str
    parameters: tuple[Parameter, ...]
    body: Json | None
    body_type: str
    body_required: bool

    @property
    def schema(self) -> Json:
        properties = {one.argument: one.schema for one in self.parameters}
        required = [one.argument for one in self.parameters if one.required]
        if self.body is not None:
            properties["body"] = self.body
            required += ["body"] if self.body_required else []
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def tools_of(
    description: Mapping[str, Any] | str | Path,
    client: httpx.Client,
    base_url: str,
    seconds: float = 10.0,
    longest: int = LONGEST_RESULT,
) -> list[SchemaTool]:
    """A tool for each operation of an OpenAPI 3 description, given as data or as a JSON or YAML file.

    ``client`` makes the requests and brings the credentials, in headers, parameters or the address; where an answer repeats
    them, they are not shown. ``seconds`` limit a whole call, ``longest`` the characters of an answer. GET and HEAD are declared to read.

    A status of 4xx is a `ToolError` in the service's words. 401, 407, 408, 429, 3xx and 5xx, a failed connection and the time
    limit are an `InfrastructureError`. Raises `AgentGymError` for what cannot be called: a reference to another file, or a
    body that is neither JSON nor form nor text. Parameters in cookies are left to the client.
    """
    document = _load(description)
    try:
        httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise AgentGymError(f"the address {base_url!r} of the service is none: {error}") from error
    tools = [
        SchemaTool(
            operation.name,
            operation.description,
            _self_contained(operation.schema, document),
            partial(_call, operation, client, base_url.rstrip("/"), seconds, longest),
            "read" if operation.method in READING else "write",
        )
        for operation in _operations(document)
    ]
    names = [tool.name for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise AgentGymError(f"two operations are called {twice[0]!r}: give them operationIds that differ")
    return tools


# Reading the description.


def _load(description: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    document: Any = description
    if isinstance(description, str | Path):
        import yaml

        try:
            document = yaml.safe_load(Path(description).read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise AgentGymError(f"the description {description} cannot be read: {error}") from error
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith("3."):
        raise AgentGymError("the description is not of OpenAPI 3: it needs the field openapi, such as 3.1.0; convert older ones")
    return document


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, item in document.get("paths", {}).items():
        item = _resolved(item, document)
        for method in METHODS:
            if method not in item:
                continue
            try:
                yield _operation(method, path, item[method], item.get("parameters", ()), document)
            except (KeyError, TypeError, AttributeError) as error:
                raise AgentGymError(f"{method} {path} is not described as OpenAPI asks: {type(error).__name__}: {error}") from error


def _operation(method: str, path: str, about: Json, shared: Any, document: Mapping[str, Any]) -> Operation:
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", about.get("operationId") or f"{method}{path}").strip("_")[:64]
    rows = [_resolved(row, document) for row in (*shared, *about.get("parameters", ()))]
    by_place = {(row["in"], row["name"]): row for row in rows}  # an operation's own come last and win
    taken = ["body"] if "requestBody" in about else []
    parameters = []
    for (where, named), row in by_place.items():
        if where == "cookie" or (where == "header" and named.lower() in UNUSED_HEADERS):
            continue
        parameters.append(_parameter(row, f"{where}_{named}" if named in taken else named))
        taken.append(parameters[-1].argument)
    body, body_type, body_required = _body(name, about, document)
    words = ". ".join(part.strip().rstrip(".") for part in (about.get("summary"), about.get("description")) if part)
    return Operation(name, words or f"{method.upper()} {path}", method, path, tuple(parameters), body, body_type, body_required)


def _parameter(row: Json, argument: str) -> Parameter:
    schema: Json = row.get("schema") or next((media.get("schema", {}) for media in row.get("content", {}).values()), {})
    if "description" in row:
        schema = {**schema, "description": row["description"]}
    style = "json" if "content" in row else row.get("style") or ("form" if row["in"] == "query" else "simple")
    explode = row.get("explode", style == "form")
    return Parameter(argument, row["name"], row["in"], schema, row.get("required", row["in"] == "path"), explode, style)


def _body(name: str, about: Json, document: Mapping[str, Any]) -> tuple[Json | None, str, bool]:
    if "requestBody" not in about:
        return None, "", False
    row = _resolved(about["requestBody"], document)
    known = [type for type in row["content"] if _is_json(type) or type in (FORM, "text/plain")]
    if not known:
        raise AgentGymError(f"operation {name} wants a body of {' or '.join(row['content'])}: only JSON, forms and text can be sent")
    return row["content"][known[0]].get("schema", {}), known[0], row.get("required", False)


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _resolved(value: Any, document: Mapping[str, Any]) -> Any:
    """What a reference leads to; anything else as it is."""
    seen = set()
    while isinstance(value, Mapping) and "$ref" in value:
        pointer = value["$ref"]
        if not pointer.startswith("#/") or pointer in seen:
            raise AgentGymError(f"the reference {pointer!r} leads nowhere in this description: bundle it into one file")
        seen.add(pointer)
        value = document
        for part in pointer[2:].split("/"):
            try:
                value = value[unquote(part).replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError, IndexError) as error:
                raise AgentGymError(f"the reference {pointer!r} leads nowhere in this description: bundle it into one file") from error
    return value


def _self_contained(schema: Json, document: Mapping[str, Any]) -> Json:
    """The schema with all that it refers to under ``$defs``, so that schemas may contain themselves."""
    definitions: Json = {}
    names: dict[str, str] = {}  # by pointer

    def convert(part: Any) -> Any:
        if isinstance(part, list):
            return [convert(one) for one in part]
        if not isinstance(part, Mapping):
            return part
        if isinstance(part.get("$ref"), str):
            pointer = part["$ref"]
            if pointer not in names:  # it is named first, so that it is not followed again from within
                name = re.sub(r"[^a-zA-Z0-9_.-]+", "_", pointer.removeprefix("#/").removeprefix("components/schemas/"))
                names[pointer] = f"{name}_{len(names)}" if name in names.values() else name
                definitions[names[pointer]] = convert(_resolved(part, document))
            return {"$ref": f"#/$defs/{names[pointer]}"}
        return _modern({key: convert(value) for key, value in part.items()})

    converted: Json = convert(schema)
    return converted | {"$defs": definitions} if definitions else converted


def _modern(schema: Json) -> Json:
    """What OpenAPI 3.0 writes otherwise than JSON Schema."""
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), bool):
            changed = {exclusive: schema[limit]} if schema[exclusive] else {}
            schema = {key: value for key, value in schema.items() if key != exclusive} | changed
    if schema.get("nullable") is True:
        return {"anyOf": [{key: value for key, value in schema.items() if key != "nullable"}, {"type": "null"}]}
    return schema


# Calling the service.


def _call(operation: Operation, client: httpx.Client, base_url: str, seconds: float, longest: int, /, **arguments: Any) -> str:
    try:
        request = _request(operation, client, base_url, seconds, arguments)
    except (httpx.InvalidURL, RecursionError, TypeError) as error:  # too long, too deep, a number that JSON cannot hold
        raise ToolError(f"the arguments cannot be sent: {error}") from error
    try:
        who = f"operation {operation.name}"
        answer = within(seconds, lambda: _asked(client, request, seconds, longest, who), who)
        return _told(operation, answer, longest, _secrets(operation, client, request, arguments))
    except AgentGymError:
        raise
    except Exception as error:  # whatever it is: a bare ValueError would read as a refusal
        said = without(f"{type(error).__name__}: {error}", _secrets(operation, client, request, arguments))
        raise InfrastructureError(f"operation {operation.name} failed: {said[:300]}") from None


def _request(operation: Operation, client: httpx.Client, base_url: str, seconds: float, arguments: Json) -> httpx.Request:
    path, query, headers = operation.path, list[tuple[str, Any]](), dict[str, str]()
    for one in operation.parameters:
        if one.argument not in arguments:
            continue
        pairs = list(_pairs(one, arguments[one.argument]))
        if one.where == "query":
            query += pairs
            continue
        text = ",".join(value for _, value in pairs)
        if one.where == "path":
            if text in ("", ".", ".."):
                raise ToolError(f"{one.argument}: {text!r} cannot be part of a path")
            path = path.replace(f"{{{one.name}}}", quote(text, safe=","))
        elif not (text.isascii() and text.isprintable() and text == text.strip()):
            raise ToolError(f"{one.argument}: a header is one line of ASCII, without blanks around it")
        else:
            headers[one.name] = text
    content: Json = {}
    if operation.body is not None and "body" in arguments:
        content, headers["Content-Type"] = _content(operation.body_type, arguments["body"]), operation.body_type
    waiting = 2 * seconds  # for any one packet; the limit of the whole call comes first
    url = base_url + path
    return client.build_request(operation.method.upper(), url, params=query or None, headers=headers, timeout=waiting, **content)


def _pairs(parameter: Parameter, value: Any) -> Iterator[tuple[str, str]]:
    """Names and texts, by OpenAPI's styles."""
    name = parameter.name
    if parameter.style == "json" or not isinstance(value, list | dict):
        yield name, _text(value)
    elif isinstance(value, dict) and parameter.style == "deepObject":
        yield from ((f"{name}[{key}]", _text(part)) for key, part in value.items())
    elif isinstance(value, dict) and parameter.where == "query" and parameter.explode:
        yield from ((key, _text(part)) for key, part in value.items())
    elif isinstance(value, dict):
        yield name, ",".join(f"{key}={_text(part)}" if parameter.explode else f"{key},{_text(part)}" for key, part in value.items())
    elif parameter.where == "query" and parameter.explode:
        yield from ((name, _text(part)) for part in value)
    else:
        comma = {"spaceDelimited": " ", "pipeDelimited": "|"}.get(parameter.style, ",")
        yield name, comma.join(map(_text, value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_text(value)


def _content(media_type: str, body: Any) -> Json:
    if _is_json(media_type):
        return {"content": json.dumps(body)}
    if media_type != FORM:
        return {"content": _text(body)}
    if not isinstance(body, dict):
        raise ToolError("body: a form is an object")
    return {"data": {key: _text(value) for key, value in body.items()}}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was read of a response. ``whole``: that is all of it."""

    response: httpx.Response
    data: bytes
    whole: bool


def _asked(client: httpx.Client, request: httpx.Request, seconds: float, longest: int, who: str) -> Answer:
    """Reads no more than the policy may, and no longer than it waits."""
    deadline = time.monotonic() + seconds
    response = client.send(request, stream=True)
    data = b""
    try:
        for chunk in response.iter_bytes():
            data += chunk
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{who} did not answer within {seconds:g} s")
            if len(data) > 4 * longest:  # bytes of one character in UTF-8, at most
                return Answer(response, data, whole=False)
        return Answer(response, data, whole=True)
    finally:
        response.close()


def _told(operation: Operation, answer: Answer, longest: int, secrets: list[str]) -> str:
    status, reason = answer.response.status_code, without(answer.response.reason_phrase, secrets)[:100]
    said = _shown(answer, longest, secrets)
    if 400 <= status < 500 and status not in NOT_THE_POLICYS:
        raise ToolError(f"{status} {reason}: {said}".rstrip(": "))
    if status >= 300:
        raise InfrastructureError(f"operation {operation.name} was answered {status} {reason}: {said[:300]}")
    return said or f"{status} {reason}"


def _shown(answer: Answer, longest: int, secrets: list[str]) -> str:
    kind = without(answer.response.headers.get("content-type", ""), secrets).partition(";")[0].strip().lower()[:100]
    if b"\0" in answer.data or kind.startswith(("image/", "audio/", "video/", "application/octet-stream")):
        return not_shown(kind or "no text", len(answer.data), answer.whole)
    text = without(answer.data.decode("utf-8", "replace"), secrets)
    if not answer.whole:  # where reading stopped, a secret may have begun
        text = text[: -3 * max(map(len, secrets), default=0) or None]
    return cut(text, longest, answer.whole)


def _secrets(operation: Operation, client: httpx.Client, request: httpx.Request, arguments: Json) -> list[str]:
    """What the client sent on its own account: in headers, as parameters and before the host's name."""
    given = {one.name.lower() for one in operation.parameters if one.where == "header" and one.argument in arguments}
    headers = [value for name, value in request.headers.items() if name.lower() not in PUBLIC_HEADERS | given]
    return [*headers, *(value for _, value in client.params.multi_items()), request.url.username, request.url.password]
