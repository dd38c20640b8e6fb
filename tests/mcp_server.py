"""An MCP server to be tried, whose tools may misbehave: ``python mcp_server.py [PORT]``, by HTTP where there is a port."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from pathlib import Path

import uvicorn
from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp_types import INVALID_PARAMS, CallToolResult, ImageContent, ListToolsResult, TextContent, Tool, ToolAnnotations

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
NOTHING = {"type": "object", "properties": {}}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
SECONDS = {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]}
TOTAL = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}


async def list_tools(ctx, params):
    if "LISTED" in os.environ:  # a file that says what is listed now
        return ListToolsResult.model_validate_json(Path(os.environ["LISTED"]).read_text())
    reads = ToolAnnotations(read_only_hint=True)
    tools = [
        Tool(name="add", description="Add two numbers.", input_schema=NUMBERS, output_schema=TOTAL, annotations=reads),
        Tool(name="echo", input_schema=TEXT),
        Tool(name="sleep", input_schema=SECONDS, annotations=reads),
        Tool(name="die", input_schema=NOTHING),
        Tool(name="fail", input_schema=NOTHING),
        Tool(name="lie", input_schema=NOTHING, output_schema=TOTAL),
        Tool(name="flood", input_schema=NOTHING),
        Tool(name="picture", input_schema=NOTHING),
        Tool(name="header", input_schema=NOTHING),
        Tool(name="environment", input_schema=NOTHING),
        Tool(name="picky", input_schema=NOTHING),
        Tool(name="process", input_schema=NOTHING),
        Tool(name="hang", input_schema=NOTHING),
        Tool(name="secret", input_schema=NOTHING),
    ]
    return ListToolsResult(tools=tools)


async def call_tool(ctx, params):
    arguments = params.arguments or {}
    if params.name == "add":
        total = arguments["a"] + arguments["b"]
        return CallToolResult(content=[], structured_content={"total": total})
    if params.name == "sleep":
        started = time.monotonic()
        await asyncio.sleep(arguments["seconds"])
        return said(f"{started} {time.monotonic()}")
    if params.name == "die":
        sys.stderr.buffer.write(b"caf\xe9: I die of old age\n")
        sys.stderr.buffer.flush()
        os._exit(3)
    if params.name == "fail":
        return CallToolResult(content=[TextContent(text="no such order")], is_error=True)
    if params.name == "lie":
        return CallToolResult(content=[], structured_content={"total": "many"})
    if params.name == "flood":
        return said("x" * 1_000_000)
    if params.name == "picture":
        picture = ImageContent(data=base64.b64encode(b"\0" * 300).decode(), mime_type="image/png")
        return CallToolResult(content=[TextContent(text="a picture:"), picture])
    if params.name == "header":
        return said(f"you sent {ctx.request.headers['authorization']}")
    if params.name == "environment":
        return said(" ".join(sorted(os.environ)))
    if params.name == "picky":
        raise MCPError(INVALID_PARAMS, "not on a Sunday" + "z" * 10_000)
    if params.name == "hang":
        time.sleep(60)
    if params.name == "secret":
        return said("y" * 7_995 + os.environ["TRIAL"])
    if params.name == "process":
        return said(str(os.getpid()))
    return said(arguments.get("text", ""))


def said(text):
    return CallToolResult(content=[TextContent(text=text)])


async def by_stdio(server):
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    server = Server("trial", on_list_tools=list_tools, on_call_tool=call_tool)
    if len(sys.argv) > 1:
        uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), log_level="error")
    else:
        asyncio.run(by_stdio(server))
