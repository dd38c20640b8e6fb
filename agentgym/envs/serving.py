"""Serve the tools of any environment by the Model Context Protocol: ``python -m agentgym.envs.serving agentgym/Tools-v0``.

Needs the extra ``mcp``. Each session plays an episode of its own. The task is the prompt ``task``; each call of a tool is a turn.
After the end every call answers that the episode is over. The reward is not told: it goes to the file ``results``.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import orjson

from agentgym.action import Call, format_action
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.outcome import Outcome
from agentgym.registry import make
from agentgym.seeds import Lineage

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

SESSIONS = 1024  # whose episodes are kept; of more, the one that was quiet for longest begins anew
TOKEN = "AGENTGYM_MCP_TOKEN"  # the environment variable
OVER = "The episode is over."
log = logging.getLogger(__name__)


class Episode:
    """One episode that is played call by call, from any thread."""

    def __init__(self, env: AgentEnv, options: dict[str, Any], results: Path | None) -> None:
        self._env, self._results = env, results
        self._lock = Lock()
        self._turns = 0
        _, info = env.reset(seed=0, options=options)
        self.task = "\n\n".join(str(message["content"]) for message in info["messages"])

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """What the environment answers, and whether it is an error."""
        with self._lock:
            if self._env.ended is not None:
                return OVER, True
            text, reward, terminated, truncated, info = self._env.step(format_action(Call(name, arguments)))
            self._turns += 1
            if terminated or truncated:
                self._note(float(reward), info)
            return text.removeprefix("Error: "), info["outcome"] in (Outcome.MODEL_ERROR, Outcome.TOOL_ERROR)

    def _note(self, reward: float, info: dict[str, Any]) -> None:
        if self._results is None:
            return
        row = {"task": info["task"], "turns": self._turns, "end": self._env.ended, "reward": reward, "metrics": info["metrics"]}
        with self._results.open("ab") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def serve(
    env_id: str,
    task: str | None = None,
    transport: Literal["stdio", "http"] = "stdio",
    *,
    split: str | None = None,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    results: str | Path | None = None,
    **settings: Any,
) -> None:
    """Serve until stopped. ``task``: the id of one; None: drawn for each session by ``seed``. ``settings`` go to the environment.

    By HTTP, only who sends ``Authorization: Bearer TOKEN`` is answered; ``token`` None: one is made, and told on standard
    error with the address. ``port`` 0: a free one. ``results``: a file of JSON lines, one for each episode that ended.
    """
    options = {key: value for key, value in {"task": task, "split": split}.items() if value is not None}
    path = None if results is None else Path(results)
    numbers = iter(range(sys.maxsize))

    def begin() -> Episode:
        lineage = Lineage.of(seed, "served", next(numbers))
        return Episode(make(env_id, **settings), {**options, "lineage": lineage}, path)

    server = _server(make(env_id, **settings), env_id, begin)
    if transport == "stdio":
        asyncio.run(_by_stdio(server))
    else:
        _by_http(server, host, port, token or secrets.token_urlsafe(24))


def _server(env: AgentEnv, env_id: str, begin: Callable[[], Episode]) -> Server[Any]:
    try:
        import mcp_types as types
        from mcp import MCPError
        from mcp.server.lowlevel import Server
    except ImportError as error:
        raise MissingExtra("mcp", "mcp") from error
    if not env.tools:
        raise AgentGymError(f"{env_id} has no tools to serve: its actions are words")
    tools = [types.Tool.model_validate(tool.mcp) for tool in env.tools]
    prompt = types.Prompt(name="task", description="What is to be done with the tools.")

    @lru_cache(SESSIONS)
    def episode_of(session: str) -> Episode:
        return begin()

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def list_prompts(context: Any, params: Any) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[prompt])

    async def get_prompt(context: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != prompt.name:
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name!r}, only {prompt.name!r}")
        words = types.TextContent(text=episode_of(_session(context)).task)
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=words)])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        episode = episode_of(_session(context))
        try:
            text, is_error = await asyncio.to_thread(episode.call, params.name, params.arguments or {})
        except Exception as error:
            log.exception("the environment failed")
            raise MCPError(types.INTERNAL_ERROR, "the environment failed; the episode has no result") from error
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=is_error)

    return Server(
        env_id, on_list_tools=list_tools, on_call_tool=call_tool, on_list_prompts=list_prompts, on_get_prompt=get_prompt
    )


def _session(context: Any) -> str:
    """By HTTP, its id; standard input and output are one session."""
    return "" if context.request is None else str(context.request.headers.get("mcp-session-id", ""))


async def _by_stdio(server: Server[Any]) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def _by_http(server: Server[Any], host: str, port: int, token: str) -> None:
    import mcp_types as types
    import uvicorn
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

    async def discover(context: Any, params: Any) -> types.DiscoverResult:
        """Only versions of the protocol that have sessions by HTTP, for an episode is one."""
        versions = list(HANDSHAKE_PROTOCOL_VERSIONS)
        return types.DiscoverResult(supported_versions=versions, capabilities=server.get_capabilities())

    server.add_request_handler("server/discover", types.RequestParams, discover)
    app = _guarded(server.streamable_http_app(host=host), token)
    with socket.create_server((host, port)) as listening:
        print(f"http://{host}:{listening.getsockname()[1]}/mcp  Authorization: Bearer {token}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Only those who know the token come in."""
    expected = f"Bearer {token}".encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), expected):
            await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]})
            await send({"type": "http.response.body", "body": b"the token is missing or wrong"})
            return
        await app(scope, receive, send)

    return guard


def main() -> None:
    import argparse

    options = argparse.ArgumentParser(description="Serve the tools of an environment by the Model Context Protocol.")
    options.add_argument("env_id", help="an environment's id, or module:Class")
    options.add_argument("--task", help="the id of a task; without it, one is drawn for each session")
    options.add_argument("--split")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--http", action="store_true", help=f"by HTTP; the token is that of ${TOKEN}, or a new one")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--results", help="a file for the rewards, as JSON lines")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the environment")
    given = vars(options.parse_args())
    settings = dict(pair.split("=", 1) for pair in given.pop("set"))
    transport: Literal["stdio", "http"] = "http" if given.pop("http") else "stdio"
    serve(**given, **settings, transport=transport, token=os.environ.get(TOKEN))


if __name__ == "__main__":
    main()
