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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from inspect import signature
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import orjson

from agentgym.action import Call, format_action
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.outcome import Outcome
from agentgym.registry import make, typed_settings
from agentgym.seeds import Lineage

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

SESSIONS = 1024  # whose episodes are kept; of more, the one that was quiet for longest begins anew
TOKEN = "AGENTGYM_MCP_TOKEN"  # the environment variable
GRACE = 3  # seconds that the answers under way have at the end
OVER = "The episode is over."
log = logging.getLogger(__name__)


class Episode:
    """One episode that is played call by call, from any thread. ``close`` ends it with its environment."""

    def __init__(self, env: AgentEnv, options: dict[str, Any], results: Path | None) -> None:
        self.tools = env.tools
        self._env, self._results = env, results
        self._lock = Lock()
        self._turns = 0
        try:
            _, info = env.reset(seed=0, options=options)
        except BaseException:
            env.close()
            raise
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
            is_error = info["outcome"] in (Outcome.MODEL_ERROR, Outcome.TOOL_ERROR)
            return text.removeprefix("Error: ") if is_error else text, is_error

    def close(self) -> None:
        with self._lock:
            self._env.close()

    def _note(self, reward: float, info: dict[str, Any]) -> None:
        if self._results is None:
            return
        row = {"task": info["task"], "turns": self._turns, "end": self._env.ended, "reward": reward, "metrics": info["metrics"]}
        with self._results.open("ab") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


class Episodes:
    """The episodes of the sessions, by id. They begin and end in threads, and are asked for on one event loop."""

    def __init__(self, begin: Callable[[], Episode]) -> None:
        self._begin = begin
        self._begun: dict[str, asyncio.Future[Episode]] = {}  # the one that was quiet for longest comes first

    async def of(self, session: str) -> Episode:
        """Raises what the environment raises where it cannot begin; it is tried again the next time."""
        begun = self._begun.pop(session, None) or asyncio.ensure_future(asyncio.to_thread(self._begin))
        self._begun[session] = begun
        if len(self._begun) > SESSIONS:
            await self.end(next(iter(self._begun)))
        try:
            return await asyncio.shield(begun)
        except Exception:
            self._begun.pop(session, None)
            raise

    def __contains__(self, session: str) -> bool:
        return session in self._begun

    async def end(self, session: str) -> None:
        if (begun := self._begun.pop(session, None)) is not None:
            try:
                await asyncio.to_thread((await asyncio.shield(begun)).close)
            except Exception:
                log.exception("an environment could not be closed")

    async def end_all(self) -> None:
        for session in list(self._begun):
            await self.end(session)


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

    An environment is closed when its session ends, when of more than ``SESSIONS`` it was quiet for longest, and at the end.
    Raises `AgentGymError` where the task is none, the environment cannot begin or has no tools, or nothing can listen at ``host``.
    """
    options = {key: value for key, value in {"task": task, "split": split}.items() if value is not None}
    path = None if results is None else Path(results)
    numbers = count()

    def begin() -> Episode:
        lineage = Lineage.of(seed, "served", next(numbers))
        return Episode(make(env_id, **settings), {**options, "lineage": lineage}, path)

    server = _server(env_id, begin)
    if transport == "stdio":
        asyncio.run(_by_stdio(server))
    else:
        _by_http(server, host, port, token or secrets.token_urlsafe(24))


def _server(env_id: str, begin: Callable[[], Episode]) -> Server[Any]:
    try:
        import mcp_types as types
        from mcp import MCPError
        from mcp.server.lowlevel import Server
    except ImportError as error:
        raise MissingExtra("mcp", "mcp") from error
    trial = begin()  # so that what is wrong is said before anybody comes
    trial.close()
    if not trial.tools:
        raise AgentGymError(f"{env_id} has no tools to serve: its actions are words")
    tools = [types.Tool.model_validate(tool.mcp) for tool in trial.tools]
    prompt = types.Prompt(name="task", description="What is to be done with the tools.")
    episodes = Episodes(begin)

    @asynccontextmanager
    async def lifespan(_: Server[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await episodes.end_all()

    async def episode_of(context: Any) -> Episode:
        session = _session(context)
        if session and session not in episodes:
            context.session._connection.exit_stack.push_async_callback(episodes.end, session)  # nothing public tells its end
        return await episodes.of(session)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def list_prompts(context: Any, params: Any) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[prompt])

    async def get_prompt(context: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != prompt.name:
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name!r}, only {prompt.name!r}")
        words = types.TextContent(text=(await episode_of(context)).task)
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=words)])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            episode = await episode_of(context)
            text, is_error = await asyncio.to_thread(episode.call, params.name, params.arguments or {})
        except MCPError:
            raise
        except Exception as error:
            log.exception("the environment failed")
            raise MCPError(types.INTERNAL_ERROR, "the environment failed; the episode has no result") from error
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=is_error)

    return Server(
        env_id, lifespan=lifespan, on_list_tools=list_tools, on_call_tool=call_tool, on_list_prompts=list_prompts, on_get_prompt=get_prompt
    )


def _session(context: Any) -> str:
    """By HTTP, its id; standard input and output are one session."""
    import mcp_types as types
    from mcp import MCPError
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

    if context.request is None:
        return ""
    if context.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS:  # who claims a session there has not opened it
        version = HANDSHAKE_PROTOCOL_VERSIONS[-1]
        raise MCPError(types.UNSUPPORTED_PROTOCOL_VERSION, f"an episode needs a session: use protocol version {version}")
    return str(context.request.headers["mcp-session-id"])


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
    is_v6 = ":" in host
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if is_v6 else socket.AF_INET)
    except OSError as error:
        raise AgentGymError(f"cannot listen at {host}, port {port}: {error}") from error
    with listening:
        address = f"[{host}]" if is_v6 else host
        print(f"http://{address}:{listening.getsockname()[1]}/mcp  Authorization: Bearer {token}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)).run(sockets=[listening])


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
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of the environment, as JSON or text")
    given = vars(options.parse_args())
    transport: Literal["stdio", "http"] = "http" if given.pop("http") else "stdio"
    try:
        settings = typed_settings(given.pop("set"), taken=signature(serve).parameters)
        serve(**given, **settings, transport=transport, token=os.environ.get(TOKEN))
    except AgentGymError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
