"""Tools of MCP servers: real ones, by standard input and output and by HTTP, which also die, hang and lie."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentgym import Call, FunctionEnv, InfrastructureError, Outcome, Task, Tool, ToolError, call, format_action
from agentgym.tools.mcp import McpServer
from agentgym.tools.remote import SchemaTool

SERVER = str(Path(__file__).parent / "mcp_server.py")
SECRET = "Bearer qwertyuiop-asdfghjkl"


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    with McpServer.stdio(sys.executable, [SERVER], {"TRIAL": "of-the-environment"}, name="trial", seconds=1.0) as server:
        yield server


@pytest.fixture(scope="module")
def tools(server: McpServer) -> dict[str, SchemaTool]:
    return {tool.name: tool for tool in server.tools()}


@pytest.fixture(scope="module")
def by_http() -> Iterator[tuple[McpServer, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, str(port)])
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    with McpServer.http(f"http://127.0.0.1:{port}/mcp", {"Authorization": SECRET}, seconds=1.0) as server:
        yield server, process
    process.kill()
    process.wait()


def env_of(*tools: Tool, **settings: Any) -> FunctionEnv:
    env = FunctionEnv(tools, [Task("t", "Try the tools.")], lambda answer, task: 0.0, **settings)
    env.reset(seed=0)
    return env


def test_tools_have_the_servers_schemas_and_effects(tools: dict[str, SchemaTool]) -> None:
    assert tools["add"].description == "Add two numbers."
    assert tools["add"].parameters["required"] == ["a", "b"]
    assert {name: tool.effect for name, tool in tools.items() if tool.effect == "read"} == {"add": "read", "sleep": "read"}


def test_an_environment_plays_with_them_and_bad_arguments_name_the_field(tools: dict[str, SchemaTool]) -> None:
    env = env_of(*tools.values())
    assert env.step(call("add", a=2, b=3))[0] == '{"total": 5}'
    assert env.step(call("echo", text="one </tool> two"))[0] == "one </tool> two"
    observation, _, _, _, info = env.step(call("add", a=2, b="three"))
    assert (observation, info["outcome"]) == ("Error: add: b: 'three' is not of type 'integer'.", Outcome.MODEL_ERROR)
    observation, _, _, _, info = env.step(call("fail"))
    assert (observation, info["outcome"]) == ("Error: no such order", Outcome.TOOL_ERROR)


def test_what_is_long_is_cut_and_what_is_no_text_is_named(tools: dict[str, SchemaTool]) -> None:
    assert tools["flood"]() == "x" * 8000 + "… (cut: 8,000 characters of 1,000,000)"
    assert tools["picture"]() == "a picture:\n(image/png, 300 bytes, not shown)"


def test_a_server_sees_no_more_of_the_environment_than_it_is_given(tools: dict[str, SchemaTool], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tools["environment"]().split()
    assert "TRIAL" in seen
    assert "PYTEST_CURRENT_TEST" not in seen


def test_parameters_that_the_server_refuses_are_the_policys(tools: dict[str, SchemaTool]) -> None:
    with pytest.raises(ToolError, match=r"not on a Sundayz+… \(cut: 8,000 characters of 10,015\)"):
        tools["picky"]()


def test_what_the_environment_was_given_is_not_shown_even_where_a_text_is_cut(tools: dict[str, SchemaTool]) -> None:
    assert tools["secret"]() == "y" * 7995 + "(secr… (cut: 8,000 characters of 8,003)"


def test_read_only_calls_of_one_turn_overlap(tools: dict[str, SchemaTool]) -> None:
    env = env_of(tools["sleep"], tools["echo"], blocking=True)
    naps = [Call("sleep", {"seconds": 0.4})] * 2
    _, _, _, _, info = env.step(format_action(*naps, Call("echo", {"text": "up"})))
    (first, first_end), (second, second_end) = (map(float, str(message["content"]).split()) for message in info["messages"][:2])
    assert max(first, second) < min(first_end, second_end)
    assert info["messages"][2]["content"] == "up"


def test_a_limit_of_one_second_ends_a_long_nap_and_no_other_call(tools: dict[str, SchemaTool]) -> None:
    before, others = tools["process"](), list[str]()
    started = time.monotonic()
    other = threading.Timer(0.6, lambda: others.append(tools["sleep"](seconds=0.7)))
    other.start()
    with pytest.raises(InfrastructureError, match=r"^tool sleep of MCP server trial did not answer within 1 s$"):
        tools["sleep"](seconds=10)
    assert time.monotonic() - started < 5
    other.join()
    assert len(others) == 1
    assert tools["process"]() == before


def test_a_server_that_answers_nothing_any_more_is_started_anew(tools: dict[str, SchemaTool]) -> None:
    before = tools["process"]()
    with pytest.raises(InfrastructureError, match="tool hang of MCP server trial did not answer"):
        tools["hang"]()
    assert tools["process"]() != before


def test_a_server_that_dies_is_named_with_its_last_words_and_started_anew(tools: dict[str, SchemaTool]) -> None:
    env = env_of(*tools.values())
    with pytest.raises(InfrastructureError, match=r"tool die of MCP server trial failed: .*; it last wrote: caf�: I die of old age"):
        env.step(call("die"))
    assert env.ended == "an error in step()"
    assert tools["echo"](text="again") == "again"


def test_a_result_that_breaks_the_servers_own_schema_is_its_fault(tools: dict[str, SchemaTool]) -> None:
    with pytest.raises(InfrastructureError, match=r"tool lie of MCP server trial failed: .*'many' is not of type 'integer'"):
        tools["lie"]()


def test_a_list_that_changes_and_names_that_are_no_names_are_the_servers_fault(tmp_path: Path) -> None:
    listed = tmp_path / "listed.json"

    def list_now(*names: str, schema: Any = None) -> None:
        rows = [{"name": name, "inputSchema": schema or {"type": "object"}} for name in names]
        listed.write_text(json.dumps({"tools": rows}))

    list_now("echo", "die")
    with McpServer.stdio(sys.executable, [SERVER], {"LISTED": str(listed)}, name="shifty", seconds=5) as server:
        tools = {tool.name: tool for tool in server.tools()}
        for names, problem in (
            (["a b"], "a tool that cannot be called: tool name 'a b'"),
            (["a.b"], "a tool that cannot be called: tool name 'a.b'"),
            (["", "x"], "a tool that cannot be called: tool name ''"),
            (["same", "same"], "two tools of one name"),
        ):
            list_now(*names)
            with pytest.raises(InfrastructureError, match=f"MCP server shifty lists {problem}"):
                server.tools()
        list_now("bad", schema={"type": "object", "properties": {"x": {"type": 5}}})
        with pytest.raises(InfrastructureError, match="the parameters of tool bad are no JSON schema"):
            server.tools()
        list_now("echo", "die")
        tools = {tool.name: tool for tool in server.tools()}
        list_now("echo", "die", schema={"type": "object", "required": ["text"]})
        with pytest.raises(InfrastructureError):
            tools["die"]()
        with pytest.raises(InfrastructureError, match="tool echo of MCP server shifty: the server changed its schema"):
            tools["echo"]()


@pytest.mark.long
def test_only_a_tool_that_changed_is_refused_and_it_stays_so(tmp_path: Path) -> None:
    listed = tmp_path / "listed.json"

    def list_now(schema: Any) -> None:
        rows = [{"name": "echo", "inputSchema": {"type": "object"}}, {"name": "other", "inputSchema": schema}]
        listed.write_text(json.dumps({"tools": rows}))

    list_now({"type": "object"})
    with McpServer.stdio(sys.executable, [SERVER], {"LISTED": str(listed)}, name="shifty", seconds=5) as server:
        echo, other = server.tools()
        list_now({"type": "object", "required": ["text"]})
        server.close()
        for _ in range(2):
            assert echo(text="as before") == "as before"
            with pytest.raises(InfrastructureError, match="tool other of MCP server shifty: the server changed its schema"):
                other(text="otherwise")


@pytest.mark.long
def test_a_server_that_is_closed_leaves_no_file_and_no_thread() -> None:
    server = McpServer.stdio(sys.executable, [SERVER], name="tidy", seconds=5)
    server.tools()
    server.close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        server.tools()
        server.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [thread for thread in threading.enumerate() if "tidy" in thread.name]


def test_threads_wait_together_for_one_start() -> None:
    mute = McpServer.stdio("sleep", ["60"], start_seconds=2)
    problems: list[str] = []

    def use() -> None:
        with pytest.raises(InfrastructureError) as caught:
            mute.tools()
        problems.append(str(caught.value))

    threads = [threading.Thread(target=use) for _ in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 6  # one after the other, they would take 8
    assert len(problems) == 4
    mute.close()


def test_a_server_that_does_not_start_is_infrastructure() -> None:
    with pytest.raises(InfrastructureError, match=r"MCP server no-such-program does not start: FileNotFoundError"):
        McpServer.stdio("no-such-program").tools()
    mute = McpServer.stdio("sleep", ["60"], start_seconds=0.5)
    with mute, pytest.raises(InfrastructureError, match=r"MCP server sleep did not answer within 0.5 s"):
        mute.tools()
    with pytest.raises(InfrastructureError, match=r"MCP server 127.0.0.1:9 does not start"):
        McpServer.http("http://127.0.0.1:9/mcp", start_seconds=5).tools()


def test_by_http_too_tools_answer_in_time_and_secrets_are_not_shown(by_http: tuple[McpServer, subprocess.Popen[bytes]]) -> None:
    server, process = by_http
    tools = {tool.name: tool for tool in server.tools()}
    assert tools["add"](a=2, b=3) == '{"total": 5}'
    assert tools["header"]() == "you sent (secret)"
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"tool sleep of MCP server 127\.0\.0\.1:\d+ did not answer within 1 s"):
        tools["sleep"](seconds=10)
    assert time.monotonic() - started < 5
    assert tools["echo"](text="again") == "again"
    process.kill()
    process.wait()
    for _ in range(2):
        with pytest.raises(InfrastructureError, match="MCP server 127"):
            tools["echo"](text="again")
