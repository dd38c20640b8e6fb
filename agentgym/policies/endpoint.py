"""Any OpenAI-compatible chat completions endpoint as an actor: a served policy, a teacher, a baseline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import httpx
import orjson
from pydantic import BaseModel, ValidationError

from agentgym.action import Call, format_action, is_deep, parse_action
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.turn import Message

LONGEST_WAIT = 60.0  # seconds before one more try, whatever the server asks for
_OVERFULL = re.compile(r"context (length|window|size)|maximum (model|context|prompt) length|too long|too many tokens", re.IGNORECASE)


class Endpoint:
    """Sends the conversation and the task's tools; gives back canonical text, which was sampled elsewhere and has no ratio.

    ``url`` ends before ``/chat/completions``, as in ``http://localhost:8000/v1``. ``key`` names the environment variable that holds
    the key: the key itself is in no recipe and no run directory. ``options`` are further fields of the request, such as ``top_p``; they
    overrule the engine's, and None leaves one out: {"max_tokens": None, "max_completion_tokens": 4096}. An action of the engine has few
    tokens, a teacher that thinks needs more.

    A refused or lost connection, ``timeout`` seconds of silence, the statuses 429 and 5xx, and an empty or unreadable answer are tried
    again up to ``retries`` times, after ``backoff`` seconds, then twice as long, or after what the server asks for. What remains, and any
    other status at once, raises `InfrastructureError`: the episode has no verdict. But a model that stays silent, or has filled its
    context, has said nothing, and the environment answers that. ``connections`` requests wait at once at most.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        connections: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise AgentGymError(f"url is {url!r}: give an address such as http://localhost:8000/v1")
        if key is not None and key not in os.environ:  # it is not repeated here: it may be the key itself
            raise AgentGymError("key names an environment variable that is not set: export it, and give its name, not the key")
        if timeout <= 0 or retries < 0 or backoff < 0 or connections < 1:
            wrong = f"{timeout}, {retries}, {backoff} and {connections}"
            raise AgentGymError(f"Endpoint needs timeout > 0, retries >= 0, backoff >= 0 and connections >= 1, not {wrong}")
        self.url, self.model, self.key = url.rstrip("/") + "/chat/completions", model, key
        self.timeout, self.retries, self.backoff, self.connections = timeout, retries, backoff, connections
        self.options = dict(options or {})
        self._client: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        body: dict[str, Any] = {"model": self.model, "messages": [_on_the_wire(message) for message in prompt.messages]}
        if prompt.tree.tools:
            body["tools"] = prompt.tree.tools
        body.update(temperature=sampling.temperature, max_tokens=sampling.max_tokens, seed=sampling.seed)
        return await self._answered(body)

    async def _answered(self, body: Mapping[str, Any]) -> Generation:
        body = {name: value for name, value in {**body, **self.options}.items() if value is not None}
        said: Generation | None = None
        for tried in range(self.retries + 1):
            found = await self._ask(body)
            if isinstance(found, Generation):
                if _says(found):
                    return found
                said, found = found, ("an empty answer", 0.0)
            reason, asked_for = found
            if tried < self.retries:
                await asyncio.sleep(min(LONGEST_WAIT, max(asked_for, self.backoff * 2**tried)))
        if said is not None:  # the model has nothing to say, which is no fault of its server
            return said
        raise InfrastructureError(f"{self.url}, model {self.model}: {reason}, after {self.retries + 1} tries. Is it up, and has it room?")

    async def refuse_without_tools(self) -> None:
        """Ask for one call of a tool. Raises `AgentGymError` where the model makes none, or its server knows no tools."""
        function = {"name": "ready", "description": "Say that you are ready.", "parameters": {"type": "object", "properties": {}}}
        user = {"role": "user", "content": "Call the tool named ready, now."}
        body = {"model": self.model, "messages": [user], "tools": [{"type": "function", "function": function}], "max_tokens": 1024}
        try:
            found = await self._answered(body)
        except InfrastructureError as error:
            raise AgentGymError(f"asked to call a tool before the first task: {error}") from error
        finally:
            await self.close()
        if not parse_action(found.text or "").calls:
            said = (found.text or "")[:80]
            raise AgentGymError(f"{self.url}, model {self.model}: asked to call a tool, it said {said!r}. Serve it with tool calling")

    async def close(self) -> None:
        """Give up the connections. Another request opens new ones."""
        if self._client is not None and self._client[0] is asyncio.get_running_loop():
            await self._client[1].aclose()
        self._client = None

    async def _ask(self, body: Mapping[str, Any]) -> Generation | tuple[str, float]:
        """The answer, or why there is none yet and how many seconds the server wants to be left alone."""
        try:
            response = await self._here().post(self.url, json=body, headers=self._headers())
        except httpx.RequestError as error:
            return f"{type(error).__name__} {error}".strip(), 0.0
        if response.status_code == 429 or response.status_code >= 500:
            return f"status {response.status_code}", _seconds(response.headers.get("retry-after", ""))
        if response.status_code == 400 and _OVERFULL.search(response.text):  # the policy's own doing
            return Generation(text="", finish="length")
        if response.status_code != 200:
            raise InfrastructureError(f"{self.url}, model {self.model}: status {response.status_code}, {response.text[:300]}")
        try:
            answer = Answer.model_validate_json(response.content)
        except ValidationError as error:
            return f"an answer of another form ({error.errors()[0]['msg']})", 0.0
        return answer.generation() or ("an answer without a choice", 0.0)

    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {os.environ[self.key]}"}

    def _here(self) -> httpx.AsyncClient:
        """The connections of the present event loop: those of an earlier one ended with it."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            width = httpx.Limits(max_connections=self.connections)
            self._client = loop, httpx.AsyncClient(timeout=httpx.Timeout(self.timeout, pool=None), limits=width)
        return self._client[1]


class Function(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    function: Function

    def call(self) -> Call:
        """Arguments that are no JSON stay a string, which the environment then calls malformed: it is the model's mistake."""
        arguments: Any = self.function.arguments or {}
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):
                arguments = orjson.loads(arguments)
        if is_deep(arguments):
            arguments = "nested too deeply"
        return Call(self.function.name, {} if arguments is None else arguments)


class Said(BaseModel):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # as some servers call it
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    message: Said
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answer(BaseModel):
    """The part of a chat completion that we read."""

    choices: list[Choice]
    usage: Usage | None = None

    def generation(self) -> Generation | None:
        """None where there is no choice. A thought that was cut off is left open, as it was written."""
        if not self.choices:
            return None
        said, finish = self.choices[0].message, _finish(self.choices[0].finish_reason)
        thought = (said.reasoning_content or said.reasoning or "").strip()
        content, calls = (_words(said.content) or said.refusal or "").strip(), [call.call() for call in said.tool_calls or ()]
        text = format_action(*calls, thought=thought, content=content)
        if thought and finish == "length" and not (content or calls):
            text = f"<think>\n{thought}"
        usage = self.usage or Usage()
        return Generation(text=text, finish=finish, tokens_read=usage.prompt_tokens or 0, tokens_written=usage.completion_tokens or 0)


def _says(generation: Generation) -> bool:
    """More than a thought, or all that there was room for."""
    action = parse_action(generation.text or "")
    return generation.finish == "length" or bool(action.content or action.calls or action.problem)


def _words(content: str | list[Any] | None) -> str:
    """Some servers give the words in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""


def _finish(reason: str | None) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"


def _on_the_wire(message: Message) -> Message:
    """Arguments of tool calls as JSON text."""
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [{**call, "function": _as_text(call["function"])} for call in message["tool_calls"]]}


def _as_text(function: Mapping[str, Any]) -> Message:
    return {**function, "arguments": orjson.dumps(function["arguments"]).decode()}


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a date, or nothing
        return 0.0
