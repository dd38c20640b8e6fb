"""Tools of MCP servers, on this machine or by HTTP. Needs the extra ``mcp``."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

from agentgym.errors import AgentGymError, InfrastructureError, MissingExtra, ToolError
from agentgym.tools.remote import SchemaTool, awaited, cut, not_shown, without

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client.session import MessageHandlerFnT
    from mcp_types import CallToolResult
    from mcp_types import Tool as Listed

MOST_PAGES = 100  # of a server's list of tools
LAST_WORDS = 400  # characters of what a process wrote on stderr
PING_SECONDS = 5.0  # at most, for a server that is asked whether it still answers
# From a handler of the server's messages, and a file for what it writes on stderr.
Connect = Callable[["MessageHandlerFnT", IO[bytes]], AbstractAsyncContextManager["Client"]]


class McpServer:
    """A server of the Model Context Protocol. ``tools()`` are for ``AgentEnv(tools=…)``; ``with`` or ``close`` ends it.

    It is started when first used, and again when used after it failed. ``seconds`` limit each call, ``start_seconds`` each start.
    Calls may come from any thread, several at once. One that is over its limit is cancelled alone, unless the server does not
    answer at all any more.

    What the server calls an error is a `ToolError`. A server that dies, hangs, breaks its own schemas, changes a tool that
    was given out, or gives a tool a name that OpenAI does not accept is an `InfrastructureError` that names server and tool.
    """

    def __init__(self, name: str, connect: Connect, seconds: float, start_seconds: float, secrets: Sequence[str]) -> None:
        self.name, self.seconds, self.start_seconds = name, seconds, start_seconds
        self._connect, self._secrets = connect, secrets
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._session: _Session | None = None
        self._given: dict[str, Any] = {}  # by name: the schemas of the tools that were given out

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
        the path and the home alone, and what ``env`` adds, whose values no text repeats."""
        _require()
        from mcp import StdioServerParameters, stdio_client

        parameters = StdioServerParameters(command=command, args=list(args), env=dict(env or {}))

        def connect(handler: MessageHandlerFnT, log: Any) -> AbstractAsyncContextManager[Client]:
            from mcp import Client

            return Client(stdio_client(parameters, errlog=log), message_handler=handler, cache=None)

        return cls(name or Path(command).name, connect, seconds, start_seconds, list((env or {}).values()))

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
        """A server by streamable HTTP. ``headers`` or the address bring the credentials, which no text repeats. Redirects elsewhere are
        not followed."""
        _require()
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        @asynccontextmanager
        async def connect(handler: MessageHandlerFnT, log: IO[bytes]) -> AsyncIterator[Client]:
            from mcp import Client

            async with (
                httpx2.AsyncClient(headers=dict(headers or {}), timeout=httpx2.Timeout(start_seconds, read=None)) as http,
                Client(streamable_http_client(url, http_client=http), message_handler=handler, cache=None) as client,
            ):
                yield client

        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        secrets = [*(headers or {}).values(), *login.split(":"), *(value for _, value in parse_qsl(parts.query))]
        return cls(name or host, connect, seconds, start_seconds, secrets)

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
            session, loop, thread = self._session, self._loop, self._thread
            self._session = self._loop = self._thread = None
            over = session.stop() if session is not None else None
        if over is not None:
            with suppress(Exception):
                over.result(self.start_seconds)
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(self.start_seconds)

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
        result = self._wait(session, self._ask(session, tool_name, arguments), self.seconds, f"tool {tool_name}")
        text = self._shown(_text(result))
        if result.is_error:
            raise ToolError(text or "the tool failed and does not say why")
        return text

    def _shown(self, text: str) -> str:
        return cut(without(text, self._secrets))

    async def _ask(self, session: _Session, name: str, arguments: dict[str, Any]) -> CallToolResult:
        from mcp import MCPError
        from mcp_types import INVALID_PARAMS

        if session.stale:
            await self._check(session, name)
        try:
            return await session.client.call_tool(name, arguments)
        except MCPError as error:
            if error.code != INVALID_PARAMS:
                raise
            await self._check(session, name)
            raise ToolError(self._shown(error.message)) from error

    async def _check(self, session: _Session, name: str) -> None:
        """Raise if the tool is not what was given out."""
        now = {tool.name: _schemas(tool) for tool in await self._list(session.client)}
        changed = {given for given, schemas in self._given.items() if now.get(given) != schemas}
        session.stale = bool(changed)
        if name in changed:
            change = "changed its schema" if name in now else "took it off its list"
            raise InfrastructureError(f"tool {name} of MCP server {self.name}: the server {change}; call tools() again")

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
            future = asyncio.run_coroutine_threadsafe(work, session.loop)
            return awaited(future, seconds, who)
        except AgentGymError:
            if future.cancelled() and not session.loop.is_closed():
                session.ping = asyncio.run_coroutine_threadsafe(self._ping(session), session.loop)
            raise
        except Exception as error:
            self._drop(session)
            raise InfrastructureError(f"{who} failed: {self._reason(session, error)}") from error

    async def _ping(self, session: _Session) -> None:
        """Drop the session if it does not answer. Not every version of the protocol has a ping, but all have a list of tools."""
        try:
            await asyncio.wait_for(session.client.list_tools(), min(self.seconds, PING_SECONDS))
        except Exception:
            self._drop(session)

    def _open(self) -> _Session:
        """The session, once it answers. Others may wait for it too."""
        session = self._joined()
        if session.ping is not None:
            with suppress(Exception):
                session.ping.result(2 * PING_SECONDS)
            session = self._joined()
        who = f"MCP server {self.name}"
        try:
            session.ready.result(max(0.0, session.started + self.start_seconds - time.monotonic()))
        except TimeoutError as error:
            self._drop(session)
            raise InfrastructureError(f"{who} did not answer within {self.start_seconds:g} s") from error
        except Exception as error:
            self._drop(session)
            raise InfrastructureError(f"{who} does not start: {self._reason(session, error)}") from error
        return session

    def _joined(self) -> _Session:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(target=_turn, args=(self._loop,), daemon=True, name=f"MCP server {self.name}")
                self._thread.start()
            if self._session is None or not self._session.is_open():
                self._session = _Session(self._loop, self._connect, stale=bool(self._given))
            return self._session

    def _drop(self, session: _Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None
            session.stop()

    def _reason(self, session: _Session, error: BaseException) -> str:
        """What happened, and the end of what the server wrote on its standard error."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = f"{type(error).__name__}: {without(str(error), self._secrets)[:LAST_WORDS]}"
        said = without(session.last_words, self._secrets).strip()
        return text + (f"; it last wrote: {said[-LAST_WORDS:]}" if said else "")


class _Session:
    """One connection, held open by a task on the loop: it must be left by the task that entered it.

    ``stale``: the list of tools may have changed. ``ping``: under way, or the last one. ``last_words``: known when it is stopped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connect: Connect, stale: bool) -> None:
        self.loop, self.stale = loop, stale
        self.started = time.monotonic()
        self.ready: Future[Client] = Future()
        self.ping: Future[None] | None = None
        self.last_words = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed when it is stopped)
        self._over = asyncio.Event()
        self._task = asyncio.run_coroutine_threadsafe(self._hold(connect), loop)

    @property
    def client(self) -> Client:
        return self.ready.result()

    def is_open(self) -> bool:
        return not self._task.done()

    def stop(self) -> Future[None]:
        """Leave the connection, now and in the background."""
        if not self._log.closed:
            end = os.fstat(self._log.fileno()).st_size  # its offset is also where the process writes: it must not move
            self.last_words = os.pread(self._log.fileno(), 64 * LAST_WORDS, max(0, end - 64 * LAST_WORDS)).decode(errors="replace")
            self._log.close()
        if not self.ready.done():
            self._task.cancel()
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._over.set)
        return self._task

    async def _hold(self, connect: Connect) -> None:
        try:
            async with connect(self._hear, self._log) as client:
                self.ready.set_result(client)
                await self._over.wait()
        except asyncio.CancelledError:
            self.ready.cancel()
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(error)

    async def _hear(self, message: Any) -> None:
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            self.stale = True


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Until it is stopped; then what is left is cancelled, and it is closed."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()


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
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(map(_block, result.content))


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
