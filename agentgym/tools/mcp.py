"""Tools of MCP servers, on this machine or by HTTP. Needs the extra ``mcp``."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO
from urllib.parse import urlsplit

from agentgym.errors import AgentGymError, InfrastructureError, MissingExtra, ToolError
from agentgym.tools.remote import SchemaTool, awaited, cut, not_shown, without

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client.session import MessageHandlerFnT
    from mcp_types import CallToolResult
    from mcp_types import Tool as Listed

MOST_PAGES = 100  # of a server's list of tools
LAST_WORDS = 400  # characters of what a process wrote on stderr
Connect = Callable[["MessageHandlerFnT"], AbstractAsyncContextManager["Client"]]  # from a handler of the server's messages


class McpServer:
    """A server of the Model Context Protocol. ``tools()`` are for ``AgentEnv(tools=…)``; ``with`` or ``close`` ends it.

    It is started when first used, and again when used after it failed. ``seconds`` limit each call, ``start_seconds`` each start.
    Calls may come from any thread, several at once.

    What the server calls an error is a `ToolError`. A server that dies, hangs, breaks its own schemas, changes a tool that
    was given out, or gives a tool a name that OpenAI does not accept is an `InfrastructureError` that names server and tool.
    """

    def __init__(
        self, name: str, connect: Connect, seconds: float, start_seconds: float, log: TextIO | None = None, secrets: Sequence[str] = ()
    ) -> None:
        self.name, self.seconds, self.start_seconds = name, seconds, start_seconds
        self._connect, self._log, self._secrets = connect, log, secrets
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: _Session | None = None
        self._given: dict[str, Any] = {}  # by name: the schemas of the tools that were given out
        self._stale = False  # the list of tools may have changed

    @classmethod
    def stdio(
        cls,
        command: str,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        name: str = "",
        seconds: float = 30.0,
        start_seconds: float = 60.0,
    ) -> McpServer:
        """A program on this machine that speaks by its standard input and output. Of this process's environment it sees
        the path and the home alone, and what ``env`` adds."""
        _require()
        from mcp import StdioServerParameters, stdio_client

        log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the server)
        parameters = StdioServerParameters(command=command, args=list(args), env=dict(env or {}))

        def connect(handler: MessageHandlerFnT) -> AbstractAsyncContextManager[Client]:
            from mcp import Client

            return Client(stdio_client(parameters, errlog=log), message_handler=handler, cache=None)

        return cls(name or Path(command).name, connect, seconds, start_seconds, log)

    @classmethod
    def http(
        cls,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        name: str = "",
        seconds: float = 30.0,
        start_seconds: float = 60.0,
    ) -> McpServer:
        """A server by streamable HTTP. ``headers`` bring the credentials, which no text repeats. Redirects elsewhere are not followed."""
        _require()
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        @asynccontextmanager
        async def connect(handler: MessageHandlerFnT) -> AsyncIterator[Client]:
            from mcp import Client

            async with (
                httpx2.AsyncClient(headers=dict(headers or {}), timeout=httpx2.Timeout(start_seconds, read=None)) as http,
                Client(streamable_http_client(url, http_client=http), message_handler=handler, cache=None) as client,
            ):
                yield client

        name = name or urlsplit(url).netloc.rpartition("@")[2]
        return cls(name, connect, seconds, start_seconds, secrets=list((headers or {}).values()))

    def tools(self) -> list[SchemaTool]:
        """The tools that the server lists. Those that say so (``readOnlyHint``) are declared to read."""
        session = self._open()
        listed = self._wait(session, self._list(session.client), self.start_seconds, "its list of tools")
        self._given = {tool.name: _schemas(tool) for tool in listed}
        if len(self._given) < len(listed):
            raise InfrastructureError(f"MCP server {self.name} lists two tools of one name")
        return [self._tool(tool) for tool in listed]

    def close(self) -> None:
        """End the server. It starts again if it is used again."""
        with self._lock:
            session, loop = self._session, self._loop
            self._session = self._loop = None
        if session is not None:
            with suppress(Exception):
                session.stop().result(self.start_seconds)
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _tool(self, listed: Listed) -> SchemaTool:
        hints = listed.annotations
        effect: Any = "read" if hints is not None and hints.read_only_hint else "write"
        try:
            words = listed.description or listed.title or listed.name
            return SchemaTool(listed.name, words, listed.input_schema, partial(self._call, listed.name), effect)
        except AgentGymError as error:
            raise InfrastructureError(f"MCP server {self.name} lists a tool that cannot be called: {error}") from error

    def _call(self, tool_name: str, /, **arguments: Any) -> str:
        session = self._open()
        result = self._wait(session, self._ask(session.client, tool_name, arguments), self.seconds, f"tool {tool_name}")
        text = without(_text(result), self._secrets)
        if result.is_error:
            raise ToolError(text or "the tool failed and does not say why")
        return text

    async def _ask(self, client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult:
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS

        if self._stale:
            await self._check(client, name)
        try:
            return await client.call_tool(name, arguments)
        except MCPError as error:
            if error.code != INVALID_PARAMS:
                raise
            await self._check(client, name)
            raise ToolError(without(error.message, self._secrets)) from error

    async def _check(self, client: Client, name: str) -> None:
        """Raise if the tool is not what was given out."""
        now = {tool.name: _schemas(tool) for tool in await self._list(client)}
        if name in self._given and now.get(name) != self._given[name]:
            change = "changed its schema" if name in now else "took it off its list"
            raise InfrastructureError(f"tool {name} of MCP server {self.name}: the server {change}; call tools() again")
        self._stale = False

    async def _list(self, client: Client) -> list[Listed]:
        found: list[Listed] = []
        cursor = None
        for _ in range(MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return found
        raise InfrastructureError(f"MCP server {self.name} lists tools without end")

    def _wait(self, session: _Session, work: Any, seconds: float, what: str) -> Any:
        who = f"{what} of MCP server {self.name}"
        try:
            return awaited(asyncio.run_coroutine_threadsafe(work, session.loop), seconds, who)
        except ToolError:
            raise
        except InfrastructureError:
            self._drop(session)
            raise
        except Exception as error:
            self._drop(session)
            raise InfrastructureError(f"{who} failed: {self._reason(error)}") from error

    def _open(self) -> _Session:
        with self._lock:
            if self._session is not None and self._session.is_open():
                return self._session
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                Thread(target=self._loop.run_forever, daemon=True, name=f"MCP server {self.name}").start()
            session = _Session(self._loop, self._connect, self._hear)
            try:
                awaited(session.ready, self.start_seconds, f"MCP server {self.name}")
            except Exception as error:
                session.stop()
                said = error if isinstance(error, InfrastructureError) else f"MCP server {self.name} does not start: {self._reason(error)}"
                raise InfrastructureError(said) from error
            self._session, self._stale = session, bool(self._given)
            return session

    def _drop(self, session: _Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None
        session.stop()

    async def _hear(self, message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            self._stale = True

    def _reason(self, error: BaseException) -> str:
        """What happened, and the end of what the server wrote on its standard error."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = f"{type(error).__name__}: {str(error)[:LAST_WORDS]}"
        if self._log is not None:
            self._log.seek(0)
            said = self._log.read().strip()
            text += f"; it last wrote: {said[-LAST_WORDS:]}" if said else ""
        return without(text, self._secrets)


class _Session:
    """One connection, held open by a task on the loop: it must be left by the task that entered it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect: Connect, hear: MessageHandlerFnT) -> None:
        self.loop = loop
        self.ready: Future[Client] = Future()
        self._over = asyncio.Event()
        self._task = asyncio.run_coroutine_threadsafe(self._hold(connect, hear), loop)

    @property
    def client(self) -> Client:
        return self.ready.result()

    def is_open(self) -> bool:
        return not self._task.done()

    def stop(self) -> Future[None]:
        """Leave the connection, now and in the background."""
        if self.ready.done() and not self.ready.cancelled():
            self.loop.call_soon_threadsafe(self._over.set)
        else:
            self._task.cancel()
        return self._task

    async def _hold(self, connect: Connect, hear: MessageHandlerFnT) -> None:
        try:
            async with connect(hear) as client:
                self.ready.set_result(client)
                await self._over.wait()
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(error)


def _require() -> None:
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtra("mcp", "mcp") from error


def _schemas(tool: Listed) -> tuple[Any, Any]:
    return tool.input_schema, tool.output_schema


def _text(result: CallToolResult) -> str:
    """What a result says in words; what is no text is named with its size."""
    if not result.content and result.structured_content is not None:
        return cut(json.dumps(result.structured_content, ensure_ascii=False))
    return cut("\n".join(map(_block, result.content)))


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource_link":
        return f"({block.name}: {block.uri})"
    inner = block.resource if block.type == "resource" else block
    if hasattr(inner, "text"):
        return str(inner.text)
    data = str(getattr(inner, "data", None) or getattr(inner, "blob", ""))
    return not_shown(inner.mime_type or block.type, len(data) * 3 // 4)
