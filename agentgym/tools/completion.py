"""A chat model behind an OpenAI-compatible endpoint, for simulated users, judges and simulators; and a scripted one in its place."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import orjson
from pydantic import BaseModel, ValidationError

from agentgym.action import Call
from agentgym.errors import AgentGymError, InfrastructureError

LONGEST_WAIT = 60.0  # seconds before one more try, whatever the server asks for
LARGEST = 2**22  # bytes of an answer that are read
LONGEST_QUOTE = 300  # characters of what a server said, in an error
Messages = Sequence[Mapping[str, Any]]
Specs = Sequence[Mapping[str, Any]]  # tools in OpenAI's form


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: words without the thought before them, and calls. ``problem`` says what was malformed, and then there are no calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    problem: str = ""


class Completes(Protocol):
    def complete(self, messages: Messages, tools: Specs = (), *, temperature: float = 1.0, seed: int | None = None) -> Said: ...


class Completion:
    """Asks and waits. An empty answer is an answer: whoever asked says whose fault it is.

    ``url`` ends before ``/chat/completions``; ``key`` names the environment variable that holds the key, which no error repeats;
    ``options`` are further fields of the request, which overrule others, and None leaves one out. A refused or lost connection, the
    statuses 429 and 5xx, and an unreadable answer are tried again up to ``retries`` times, after ``backoff`` seconds, then twice as
    long, or after what the server asks for. One ``complete`` takes ``seconds`` at most, all tries and waits together. What remains, and
    any other status at once, raises `InfrastructureError`. Threads may share it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        seconds: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise AgentGymError(f"url is {url!r}: give an address such as http://localhost:8000/v1")
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise AgentGymError(f"url is {url!r}, which is no address: {error}") from None
        if key is not None:
            _secret(key)
        if seconds <= 0 or retries < 0 or backoff < 0:
            raise AgentGymError(f"Completion needs seconds > 0, retries >= 0 and backoff >= 0, not {seconds}, {retries} and {backoff}")
        self.url, self.model, self.key = url.rstrip("/") + "/chat/completions", model, key
        self.seconds, self.retries, self.backoff = seconds, retries, backoff
        self.options = dict(options or {})
        self._connections: httpx.Client | None = None
        self._lock = threading.Lock()

    def complete(self, messages: Messages, tools: Specs = (), *, temperature: float = 1.0, seed: int | None = None) -> Said:
        body = {"model": self.model, "messages": messages, "tools": tools or None, "temperature": temperature, "seed": seed}
        body = {name: value for name, value in {**body, **self.options}.items() if value is not None}
        deadline = time.monotonic() + self.seconds
        tried = 0
        while True:
            found = self._ask(body, deadline)
            if isinstance(found, Said):
                return found
            reason, asked_for = found
            tried += 1
            wait = min(LONGEST_WAIT, max(asked_for, self.backoff * 2 ** (tried - 1)))
            if tried > self.retries or time.monotonic() + wait >= deadline:
                tries = f"{tried} {'try' if tried == 1 else 'tries'} within {self.seconds:g} s"
                raise self._failure(f"{self._without_key(reason)}, after {tries}. Is it up, and has it room?")
            time.sleep(wait)

    def close(self) -> None:
        """Give up the connections. Another request opens new ones."""
        with self._lock:
            if self._connections is not None:
                self._connections.close()
            self._connections = None

    def _ask(self, body: Mapping[str, Any], deadline: float) -> Said | tuple[str, float]:
        """The answer, or why there is none yet and how many seconds the server wants to be left alone."""
        found: Future[Said | tuple[str, float]] = Future()

        def fetch() -> None:
            try:
                found.set_result(self._fetch(body, deadline))
            except BaseException as error:
                found.set_exception(error)

        # Headers that trickle and the look-up of a name have no limit of their own: whoever asks does not wait for them.
        threading.Thread(target=fetch, daemon=True).start()
        try:
            return found.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return "an answer that takes too long", 0.0

    def _fetch(self, body: Mapping[str, Any], deadline: float) -> Said | tuple[str, float]:
        headers = {"Content-Type": "application/json"} | ({} if self.key is None else {"Authorization": f"Bearer {_secret(self.key)}"})
        sent = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # half of a surrogate pair, which no UTF-8 can hold
        left = max(0.001, deadline - time.monotonic())
        content = b""
        try:
            with self._client().stream("POST", self.url, content=sent, headers=headers, timeout=left) as response:
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() > deadline or len(content) > LARGEST:
                        return ("an answer that takes too long" if len(content) <= LARGEST else "an answer without end"), 0.0
        except httpx.RequestError as error:
            return f"{type(error).__name__} {error}".strip(), 0.0
        if response.status_code == 429 or response.status_code >= 500:
            return f"status {response.status_code}", _seconds(response.headers.get("retry-after", ""))
        if response.status_code != 200:
            said = self._without_key(content.decode(errors="replace"))[:LONGEST_QUOTE]  # not the other way: a part of the key would be left
            raise self._failure(f"status {response.status_code}, {said}")
        return _read(content)

    def _failure(self, what: str) -> InfrastructureError:
        return InfrastructureError(f"{self.url}, model {self.model}: {what}")

    def _without_key(self, text: str) -> str:
        return text if self.key is None else text.replace(_secret(self.key), "[key]")

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._connections is None:
                self._connections = httpx.Client(limits=httpx.Limits(max_connections=None))
            return self._connections


class ScriptedCompletion:
    """Gives ``answers`` in their order, or what a function of messages, tools and seed says; notes what it was asked in ``asked``."""

    def __init__(self, answers: Sequence[Said | str] | Callable[[Messages, Specs, int | None], Said | str]) -> None:
        self.answers = answers
        self.asked: list[Messages] = []
        self._lock = threading.Lock()

    def complete(self, messages: Messages, tools: Specs = (), *, temperature: float = 1.0, seed: int | None = None) -> Said:
        with self._lock:
            self.asked.append(messages)
            number = len(self.asked) - 1
        if callable(self.answers):
            answer = self.answers(messages, tools, seed)
        elif number < len(self.answers):
            answer = self.answers[number]
        else:
            raise InfrastructureError(f"there are {len(self.answers)} scripted answers, and one more was asked for: add it")
        return answer if isinstance(answer, Said) else Said(answer)


class _Function(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class _ToolCall(BaseModel):
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message


class _Answer(BaseModel):
    """The part of a chat completion that we read."""

    choices: list[_Choice]


def _read(content: bytes) -> Said | tuple[str, float]:
    try:
        answer = _Answer.model_validate_json(content)
    except ValidationError as error:
        return f"an answer of another form ({error.errors()[0]['msg']})", 0.0
    if not answer.choices:
        return Said()
    message = answer.choices[0].message
    text = without_thought(message.content or message.refusal or "")
    calls = []
    for call in message.tool_calls or ():
        arguments = _arguments(call.function.arguments)
        if arguments is None:
            return Said(text, problem=f"the arguments of {call.function.name!r} are no JSON object")
        calls.append(Call(call.function.name, arguments))
    return Said(text, tuple(calls))


def without_thought(text: str) -> str:
    """Some servers leave a thought in the words, some without its first tag. One that is not closed was cut off, and nothing was said."""
    words = text.rpartition("</think>")[2].strip()
    return "" if words.startswith("<think>") else words


def _secret(variable: str) -> str:
    if variable not in os.environ:  # it is not repeated here: it may be the key itself
        raise AgentGymError("key names an environment variable that is not set: export it, and give its name, not the key")
    secret = os.environ[variable].strip()
    if not (secret and secret.isascii() and secret.isprintable()):
        raise AgentGymError(f"the environment variable {variable} holds no key of printable ASCII characters: export it anew")
    return secret


def _arguments(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(given, str):
        try:
            given = orjson.loads(given or "{}")
        except ValueError:
            return None
    return {} if given is None else given if isinstance(given, dict) else None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a date, or nothing
        return 0.0
