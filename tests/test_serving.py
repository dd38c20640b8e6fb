"""Environments served to MCP clients: a gold episode is graded as at home, and a client learns nothing but what the tools say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from agentgym import AgentGymError, InfrastructureError, Reply, ToolError, parse_action
from agentgym.envs.desk import Desk
from agentgym.envs.serving import serve
from agentgym.tools.mcp import McpServer

TASK = "validation-1"
COMMAND = ["-m", "agentgym.envs.serving", "agentgym.envs.desk:Desk", "--task", TASK, "--split", "validation", "--results"]


def gold() -> list[tuple[str, dict[str, Any]]]:
    env = Desk()
    task = next(task for task in env.tasks("validation") if task.id == TASK)
    calls = [parse_action(action).calls[0] for action in env.gold(task)]
    return [(call.name, call.arguments) for call in calls]


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def by_http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    path = tmp_path_factory.mktemp("served") / "results.jsonl"
    process = subprocess.Popen([sys.executable, *COMMAND, str(path), "--http"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url, bearer = process.stderr.readline().split("  Authorization: ")
    yield url, bearer.strip(), path
    process.kill()
    process.wait()
    process.stderr.close()


def test_a_gold_episode_played_by_our_own_client_is_graded_right(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with McpServer.stdio(sys.executable, [*COMMAND, str(path)]) as server:
        tools = {tool.name: tool for tool in server.tools()}
        at_home = {tool.name: tool for tool in Desk().tools}
        assert {name: (tool.effect, tool.parameters, tool.description) for name, tool in tools.items()} == {
            name: (tool.effect, tool.parameters, tool.description) for name, tool in at_home.items()
        }
        with pytest.raises(ToolError, match=r"^there is no order 'Atlantis'$"):
            tools["order"](name="Atlantis")
        said = [tools[name](**arguments) for name, arguments in gold()]
        assert said[-1] == "Closed."
        for name, arguments in gold()[:2]:
            with pytest.raises(ToolError, match=r"^The episode is over\.$"):
                tools[name](**arguments)
    assert results(path) == [{"task": TASK, "turns": 6, "end": "done", "reward": 1.0, "metrics": {"success/exchange": 1.0}}]


def test_the_task_is_a_prompt_and_the_reward_is_nowhere(by_http: tuple[str, str, Path]) -> None:
    url, bearer, path = by_http

    async def heard() -> str:
        async with (
            httpx2.AsyncClient(headers={"Authorization": bearer}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            parts: list[Any] = [await client.list_prompts(), await client.get_prompt("task"), await client.list_tools()]
            parts += [await client.call_tool(name, arguments) for name, arguments in gold()]
            return "\n".join(part.model_dump_json() for part in parts)

    text = asyncio.run(heard())
    prompt = next(task.prompt for task in Desk().tasks("validation") if task.id == TASK)
    assert prompt in text
    assert Desk.system in text
    assert "reward" not in text
    assert "1.0" not in text
    assert results(path)[-1]["reward"] == 1.0


def test_each_session_by_http_plays_its_own_episode(by_http: tuple[str, str, Path]) -> None:
    url, bearer, path = by_http
    with McpServer.http(url, {"Authorization": bearer}) as one, McpServer.http(url, {"Authorization": bearer}) as other:
        players = [{tool.name: tool for tool in server.tools()} for server in (one, other)]
        for name, arguments in gold()[:-1]:
            answers = [tools[name](**arguments) for tools in players]
            assert answers[0] == answers[1]
        before = len(results(path)) if path.exists() else 0
        players[1]["done"]()
        assert [row["reward"] for row in results(path)[before:]] == [1.0]
        players[0]["done"]()
    assert [row["reward"] for row in results(path)[before:]] == [1.0, 1.0]


def test_by_http_nobody_comes_in_without_the_token(by_http: tuple[str, str, Path]) -> None:
    url, bearer, _ = by_http
    assert url.startswith("http://127.0.0.1:")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": bearer[:-1]}):
        assert httpx.post(url, headers=headers, json={}).status_code == 401
    assert httpx.post(url, headers={"Authorization": bearer}, json={}).status_code != 401
    with pytest.raises(InfrastructureError, match="does not start"):
        McpServer.http(url, {"Authorization": "Bearer wrong"}).tools()


class Wordy(Desk):
    def __init__(self) -> None:
        super().__init__()
        self.tools = []

    def act(self, action: Any) -> Reply:
        return Reply("Well.")


def test_an_environment_without_tools_cannot_be_served() -> None:
    with pytest.raises(AgentGymError, match="has no tools to serve"):
        serve(f"{__name__}:Wordy")
