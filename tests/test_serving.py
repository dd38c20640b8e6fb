"""Environments served to MCP clients: a gold episode is graded as at home, and a client learns nothing but what the tools say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from agentgym import AgentGymError, InfrastructureError, Reply, Task, ToolError, parse_action
from agentgym.envs import serving
from agentgym.envs.desk import Desk
from agentgym.envs.serving import Episode, Episodes, main, serve
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


def test_nobody_plays_in_anothers_session_by_a_version_without_sessions(by_http: tuple[str, str, Path]) -> None:
    url, bearer, _ = by_http

    async def intrude() -> None:
        headers = {"Authorization": bearer, "mcp-session-id": "of another"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http), mode="2026-07-28") as client,
        ):
            await client.call_tool(*gold()[0])

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(intrude())
    assert caught.group_contains(MCPError, match="an episode needs a session: use protocol version 2025-11-25")


class Slow(Desk):
    """Notes which of its instances are open."""

    opened: ClassVar[list[Slow]] = []

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.opened.append(self)

    def close(self) -> None:
        self.opened.remove(self)


def test_episodes_begin_off_the_loop_once_for_each_session_and_all_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SESSIONS", 2)
    goes_on = threading.Event()

    def begin() -> Episode:
        assert goes_on.wait(10), "the loop stood still"
        return Episode(Slow(), {}, None)

    async def play() -> None:
        episodes = Episodes(begin)
        asyncio.get_running_loop().call_later(0.1, goes_on.set)
        first, again = await asyncio.gather(episodes.of("a"), episodes.of("a"))
        assert first is again
        second = await episodes.of("b")
        await episodes.of("a")
        await episodes.of("c")
        assert await episodes.of("a") is first
        assert len(Slow.opened) == 2
        assert second.tools[0].function.__self__ not in Slow.opened
        await episodes.end("a")
        assert len(Slow.opened) == 1
        await episodes.end_all()

    asyncio.run(play())
    assert Slow.opened == []


def test_an_environment_that_could_not_begin_is_tried_again() -> None:
    tries = iter([None, Episode(Desk(), {}, None)])

    def begin() -> Episode:
        episode = next(tries)
        if episode is None:
            raise InfrastructureError("not yet")
        return episode

    async def play() -> None:
        episodes = Episodes(begin)
        with pytest.raises(InfrastructureError):
            await episodes.of("a")
        assert isinstance(await episodes.of("a"), Episode)

    asyncio.run(play())


NOTING = """
import sys, test_serving
test_serving.Slow.close = lambda self: print("closed", file=open(sys.argv[1], "a"), flush=True)
test_serving.serve("test_serving:Slow", transport=sys.argv[2])
"""


@pytest.mark.long
def test_an_environment_is_closed_when_its_session_ends_and_with_the_server(tmp_path: Path) -> None:
    command, here = [sys.executable, "-c", NOTING, str(tmp_path / "closed")], Path(__file__).parent

    def closed() -> int:
        return len((tmp_path / "closed").read_text().splitlines())

    with McpServer.stdio(command[0], [*command[1:], "stdio"], {"PYTHONPATH": str(here)}) as server:
        next(tool for tool in server.tools() if tool.name == "done")()
        assert closed() == 1  # the one that was tried
    assert closed() == 2
    process = subprocess.Popen([*command, "http"], stderr=subprocess.PIPE, text=True, cwd=here)
    assert process.stderr is not None
    url, bearer = process.stderr.readline().split("  Authorization: ")
    for ends in (4, 5):
        with McpServer.http(url, {"Authorization": bearer.strip()}) as server:
            next(tool for tool in server.tools() if tool.name == "done")()
        while closed() < ends:
            time.sleep(0.05)
    process.terminate()
    process.wait()
    process.stderr.close()
    assert closed() == 5


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--task", "nope"], "no task 'nope' in split"),
        (["--set", "foo"], "--set foo: write --set NAME=VALUE"),
        (["--set", "seed=3"], "--set seed=3: write --set NAME=VALUE"),
        (["--http", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1, port 0"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(
    options: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", "agentgym.envs.desk:Desk", *options])
    with pytest.raises(SystemExit, match=problem) as caught:
        main()
    assert "\n" not in str(caught.value)


def test_settings_are_json_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(serving, "serve", lambda *args, **settings: given.update(settings))
    monkeypatch.setattr(sys, "argv", ["serving", "x", "--set", "count=3", "--set", "data=tau-bench", "--set", "names=[1, null]"])
    main()
    assert {name: given[name] for name in ("count", "data", "names")} == {"count": 3, "data": "tau-bench", "names": [1, None]}


class Wordy(Desk):
    def __init__(self) -> None:
        super().__init__()
        self.tools = []

    def act(self, action: Any) -> Reply:
        return Reply("Well.")


def test_an_environment_without_tools_cannot_be_served() -> None:
    with pytest.raises(AgentGymError, match="has no tools to serve"):
        serve(f"{__name__}:Wordy")
