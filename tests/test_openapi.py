"""Tools from an OpenAPI description, against a real server on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest

from agentgym import AgentGymError, FunctionEnv, InfrastructureError, Outcome, Task, Tool, ToolError, call
from agentgym.tools.openapi import tools_of
from agentgym.tools.remote import SchemaTool

TOKEN = "Bearer s3cr3t-t0ken-of-ours"
REF = {"$ref": "#/components/schemas/Pet"}


def operation(id: str, *parameters: dict[str, Any], body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    content = {} if body is None else {"requestBody": {"required": True, "content": body}}
    return {"operationId": id, "parameters": list(parameters), **content, **more}


def parameter(name: str, where: str = "query", type: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": type}, **more}


FILTER = parameter("filter", type="object", style="deepObject")
SERVICE = {
    "openapi": "3.0.3",
    "paths": {
        "/pets/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "get": operation("getPet", parameter("fields", type="array"), summary="Show a pet.", description="By its id."),
            "delete": operation("delete pet!", parameter("X-Reason", "header"), parameter("session", "cookie")),
        },
        "/pets": {
            "post": operation("addPet", parameter("id"), parameter("body"), body={"application/json": {"schema": REF}}),
            "get": {"parameters": [parameter("seconds"), FILTER, parameter("tags", type="array", explode=False)]},
        },
        "/form": {"post": operation("sendForm", body={"application/x-www-form-urlencoded": {"schema": {"type": "object"}}})},
        "/say/{what}": {"get": operation("say", parameter("what", "path"))},
    },
    "components": {
        "parameters": {"Id": parameter("id", "path", "integer")},
        "schemas": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "age": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "nullable": True},
                    "parents": {"type": "array", "items": REF},
                },
            }
        },
    },
}


class Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked, except under /say/."""

    def answer(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        if url.path.startswith("/say/"):
            self.misbehave(unquote(url.path.removeprefix("/say/")))
            return
        heard = {"method": self.command, "path": self.path.partition("?")[0], "query": parse_qs(url.query), "body": body}
        self.reply(200, json.dumps(heard | {"reason": self.headers.get("X-Reason")}).encode())

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def reply(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def misbehave(self, what: str) -> None:
        if what == "sleep":
            time.sleep(10)
        if what == "drip":
            self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n" + b"x" * 600)
        elif what == "hang up":
            self.connection.close()
        elif what == "all":
            login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
            self.reply(200, f"{login} {self.path} {self.headers}".encode(), "text/plain")
        elif what == "border":
            self.reply(200, ("y" * 7990 + self.headers["Authorization"]).encode(), "text/plain")
        elif what == "flood of secrets":
            self.reply(200, ("y" + self.headers["Authorization"] * 3000).encode(), "text/plain")
        elif what == "nowhere":
            self.send_response(302)
            self.send_header("Location", "http://xn--a.b/")
            self.end_headers()
        elif what.startswith("path"):
            self.reply(200, self.path.encode(), "text/plain")
        elif what == "flood":
            self.reply(200, b"y" * 5_000_000, "text/plain")
        elif what == "latin":
            self.reply(200, "Åland".encode("latin-1"), "text/plain")
        elif what == "picture":
            self.reply(200, b"\x89PNG\0\0", "image/png")
        elif what == "nothing":
            self.send_response(204)
            self.end_headers()
        else:
            self.reply(int(what), b"the kitchen is closed", "text/plain")

    def drip(self, data: bytes) -> None:
        """Each byte soon after the last, so that no single wait is long."""
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def tools(base: str) -> Iterator[dict[str, SchemaTool]]:
    with httpx.Client(headers={"Authorization": TOKEN}) as client:
        yield {tool.name: tool for tool in tools_of(SERVICE, client, base, seconds=1.0)}


def heard(tool: Tool, **arguments: Any) -> dict[str, Any]:
    read = tool.read_arguments(arguments)
    assert isinstance(read, dict), read
    return json.loads(tool(**read))


def test_each_operation_is_a_tool_with_a_legal_name_its_words_and_its_effect(tools: dict[str, SchemaTool]) -> None:
    effects = {name: tool.effect for name, tool in tools.items()}
    assert effects == {
        "getPet": "read", "delete_pet": "write", "addPet": "write", "get_pets": "read", "sendForm": "write", "say": "read",
    }  # fmt: skip
    assert tools["getPet"].description == "Show a pet. By its id"
    assert tools["getPet"].spec["function"]["parameters"]["required"] == ["id"]
    assert tools["getPet"].mcp["annotations"] == {"readOnlyHint": True}


def test_arguments_go_where_the_description_says(tools: dict[str, SchemaTool]) -> None:
    assert heard(tools["getPet"], id=7, fields=["name", "age"]) | {"reason": 0} == {
        "method": "GET", "path": "/pets/7", "query": {"fields": ["name", "age"]}, "body": "", "reason": 0,
    }  # fmt: skip
    assert heard(tools["delete_pet"], **{"id": 7, "X-Reason": "too loud"})["reason"] == "too loud"
    pet = {"name": "Rex", "parents": [{"name": "Max", "age": None}]}
    added = heard(tools["addPet"], id="a b&c", query_body="q", body=pet)
    assert (added["query"], json.loads(added["body"])) == ({"id": ["a b&c"], "body": ["q"]}, pet)
    listed = heard(tools["get_pets"], filter={"age": 3, "old": True}, tags=["x", "y"], seconds="9")
    assert listed["query"] == {"seconds": ["9"], "filter[age]": ["3"], "filter[old]": ["true"], "tags": ["x,y"]}
    assert heard(tools["sendForm"], body={"a": "1 2", "b": 3})["body"] == "a=1+2&b=3"


def test_arguments_that_do_not_fit_name_the_field(tools: dict[str, SchemaTool]) -> None:
    add = tools["addPet"]
    assert add.read_arguments({"body": {"age": 3}}) == "addPet: body: 'name' is a required property."
    assert add.read_arguments({"body": {"name": "a", "age": 0}}) != {"body": {"name": "a", "age": 0}}
    assert "body.parents.0.name: 5 is not of type 'string'" in str(add.read_arguments({"body": {"name": "a", "parents": [{"name": 5}]}}))
    assert "'nme' was unexpected" in str(tools["getPet"].read_arguments({"id": 1, "nme": 2}))
    env = FunctionEnv([add], [Task("t", "Add a pet.")], lambda answer, task: 0.0)
    env.reset(seed=0)
    observation, _, _, _, info = env.step(call("addPet", body={}))
    assert (observation, info["outcome"]) == ("Error: addPet: body: 'name' is a required property.", Outcome.MODEL_ERROR)


@pytest.mark.parametrize("value", ["..", ".", ""])
def test_a_path_cannot_be_left_by_an_argument(tools: dict[str, SchemaTool], value: str) -> None:
    with pytest.raises(ToolError, match="cannot be part of a path"):
        tools["say"](what=value)


def test_what_is_odd_in_a_path_is_escaped_and_in_a_header_refused(tools: dict[str, SchemaTool]) -> None:
    assert heard(tools["getPet"], id=7)["path"] == "/pets/7"
    assert tools["say"](what="path/../x?y=1#z") == "/say/path%2F..%2Fx%3Fy%3D1%23z"
    for reason in ("a\r\nEvil: 1", " ", "blank at the end ", "Öl"):
        with pytest.raises(ToolError, match="one line of ASCII, without blanks around it"):
            tools["delete_pet"](**{"id": 7, "X-Reason": reason})


def test_what_cannot_be_sent_is_the_policys_to_mend(tools: dict[str, SchemaTool]) -> None:
    with pytest.raises(ToolError, match=r"cannot be sent: .* too long"):
        heard(tools["get_pets"], seconds="9" * 70_000)
    with pytest.raises(ToolError, match="cannot be sent"):
        tools["get_pets"](filter={"age": [10**30]})
    with pytest.raises(ToolError, match="a form is an object"):
        tools["sendForm"](body=["a"])
    deep: list[Any] = []
    for _ in range(600):
        deep = [deep]
    assert "nested too deeply" in str(tools["sendForm"].read_arguments({"body": deep}))


def test_a_refusal_is_told_in_the_services_words(tools: dict[str, SchemaTool]) -> None:
    with pytest.raises(ToolError, match=r"^404 Not Found: the kitchen is closed$"):
        tools["say"](what="404")


@pytest.mark.parametrize("what", ["500", "503", "401", "429", "302", "hang up", "nowhere"])
def test_what_the_policy_cannot_mend_is_infrastructure(tools: dict[str, SchemaTool], what: str) -> None:
    with pytest.raises(InfrastructureError, match="operation say"):
        tools["say"](what=what)


@pytest.mark.parametrize("what", ["sleep", "drip"])
def test_a_limit_of_one_second_ends_a_slow_answer(tools: dict[str, SchemaTool], what: str) -> None:
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"operation say did not answer within 1 s"):
        tools["say"](what=what)
    assert time.monotonic() - started < 5


def test_what_came_until_the_limit_is_no_answer_even_if_nobody_gave_up_before(tools: dict[str, SchemaTool], monkeypatch) -> None:
    monkeypatch.setattr("agentgym.tools.openapi.within", lambda seconds, work, who: work())
    with pytest.raises(InfrastructureError, match=r"operation say did not answer within 1 s"):
        tools["say"](what="drip")


def test_a_call_that_is_over_its_limit_stops_reading_and_frees_its_connection(base: str) -> None:
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as client:
        (say,) = (tool for tool in tools_of(SERVICE, client, base, seconds=0.5) if tool.name == "say")
        with pytest.raises(InfrastructureError, match="did not answer within"):
            say(what="drip")
        time.sleep(0.5)
        assert say(what="path") == "/say/path"


def test_a_service_that_is_not_there_is_infrastructure() -> None:
    with httpx.Client() as client:
        (say,) = (tool for tool in tools_of(SERVICE, client, "http://127.0.0.1:9") if tool.name == "say")
        with pytest.raises(InfrastructureError, match="operation say failed: ConnectError"):
            say(what="200")


def test_secrets_are_never_shown(base: str) -> None:
    secrets = {"X-Api-Key": "of-a-header-22", "Cookie": "c=of-a-cookie-333"}
    headers = [parameter("X-Api-Key", "header"), parameter("X-Reason", "header")]
    service = {"openapi": "3.1.0", "paths": {"/say/{what}": {"get": operation("say", parameter("what", "path"), *headers)}}}
    with httpx.Client(headers=secrets, params={"key": "of a+query/4444", "also": ["of-a-query-55555"]}) as client:
        (say,) = tools_of(service, client, base.replace("://", "://of-a-person:of-an-address-6@"))
        said = say(what="all", **{"X-Reason": "because of noise"})
        assert not re.search("of-a|of a|of%20a|query|Basic", said), said
        assert "because of noise" in said
        assert "given-by-the-policy" in say(what="all", **{"X-Api-Key": "given-by-the-policy"})


@pytest.mark.parametrize("what", ["border", "flood of secrets"])
def test_a_secret_is_not_shown_in_part_where_an_answer_is_cut(base: str, what: str) -> None:
    with httpx.Client(headers={"Authorization": "s3cr3t" * 30}) as client:
        (say,) = (tool for tool in tools_of(SERVICE, client, base) if tool.name == "say")
        assert "s3cr3t" not in say(what=what)


@pytest.mark.parametrize(
    ("what", "shown"),
    [("latin", "\ufffdland"), ("picture", "(image/png, 6 bytes, not shown)"), ("nothing", "204 No Content")],
)
def test_what_is_no_text_is_named(tools: dict[str, SchemaTool], what: str, shown: str) -> None:
    assert tools["say"](what=what) == shown


def test_what_is_too_long_is_cut_with_a_notice(tools: dict[str, SchemaTool]) -> None:
    said = tools["say"](what="flood")
    read = re.fullmatch(r"y{8000}… \(cut: 8,000 characters of ([\d,]+) or more\)", said)
    assert read is not None
    assert int(read[1].replace(",", "")) < 200_000  # the rest of 5,000,000 was not waited for


def test_a_description_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SERVICE))
    (tmp_path / "b.yaml").write_text("openapi: 3.1.0\npaths:\n  /a:\n    get: {operationId: a}\n")
    with httpx.Client() as client:
        assert len(tools_of(tmp_path / "a.json", client, "http://x")) == 6
        assert [tool.name for tool in tools_of(str(tmp_path / "b.yaml"), client, "http://x")] == ["a"]


def test_references_to_any_place_become_definitions_with_names_of_their_own() -> None:
    tree = {"type": "array", "items": {"$ref": "#/paths/~1a~1%7Bb%7D/tree"}}
    either = [{"$ref": "#/paths/~1a~1%7Bb%7D/tree"}, {"$ref": "#/paths/~1a~0{b}/tree"}]
    body = {"content": {"application/json": {"schema": {"anyOf": either}}}}
    paths = {"/a/{b}": {"tree": tree, "post": {"operationId": "a", "requestBody": body}}, "/a~{b}": {"tree": {"type": "integer"}}}
    with httpx.Client() as client:
        (tool,) = tools_of({"openapi": "3.1.0", "paths": paths}, client, "http://x")
    assert tool.read_arguments({"body": [[], [[]]]}) == {"body": [[], [[]]]}
    assert tool.read_arguments({"body": 3}) == {"body": 3}
    assert "not valid" in str(tool.read_arguments({"body": [3]}))


def test_a_schema_is_read_by_its_own_draft_and_its_patterns_are_left_to_the_service() -> None:
    draft = "http://json-schema.org/draft-07/schema#"
    pair = {"type": "array", "items": [{"type": "number"}, {"type": "string"}]}
    tool = SchemaTool("a", "A.", {"$schema": draft, "type": "object", "properties": {"pair": pair}}, str)
    assert "pair.1: 2 is not of type 'string'" in str(tool.read_arguments({"pair": [1, 2]}))
    endless = {"x": {"type": "string", "pattern": "^(a+)+$"}, "pattern": {"type": "string"}}
    schema = {"type": "object", "properties": endless, "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}
    tool = SchemaTool("a", "A.", schema, str)
    arguments = {"x": "a" * 50 + "b", "a" * 50 + "b": 1}
    assert tool.read_arguments(arguments) == arguments
    assert "pattern: 5 is not" in str(tool.read_arguments({"pattern": 5}))
    assert tool.parameters == schema


def one(**operation: Any) -> dict[str, Any]:
    return {"openapi": "3.1.0", "paths": {"/a": {"post": {"operationId": "a", **operation}}}}


@pytest.mark.parametrize(
    ("description", "problem"),
    [
        ({"swagger": "2.0"}, "not of OpenAPI 3"),
        (one(parameters=[{"name": "x"}]), "post /a is not described as OpenAPI asks: KeyError: 'in'"),
        (one(parameters=[{"$ref": "other.yaml#/a"}]), "'other.yaml#/a' leads nowhere"),
        (one(parameters=[{"$ref": "#/components/no"}]), "'#/components/no' leads nowhere"),
        (one(requestBody={"content": {"multipart/form-data": {}}}), "operation a wants a body of multipart/form-data"),
        (one(parameters=[parameter("x", type="number", schema={"type": 5})]), "the parameters of tool a are no JSON schema"),
        ({"openapi": "3.1.0", "paths": {f"/{n}": {"get": {"operationId": "same"}} for n in "ab"}}, "two operations are called 'same'"),
        ("missing.json", r"missing\.json cannot be read"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(description: Any, problem: str) -> None:
    with httpx.Client() as client, pytest.raises(AgentGymError, match=problem):
        tools_of(description, client, "http://x")
