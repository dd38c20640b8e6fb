"""One server: how it is asked, what it answers, and what its failures mean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, FiniteFloat, ValidationError

from agentgym.errors import AgentGymError, InfrastructureError

CONNECT = 5.0  # seconds
QUICK = 30.0  # seconds, for what no server needs long for unless it hangs
KNOWN = "0.32.0"  # the version of vLLM whose routes these are
NEEDS = {
    "/inference/v1/generate": "--enable-scale-out",
    "/weight_info": "VLLM_SERVER_DEV_MODE=1",
    "/pause": "VLLM_SERVER_DEV_MODE=1",
    "/init_weight_transfer_engine": "VLLM_SERVER_DEV_MODE=1",
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/v1/load_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
}
Form = TypeVar("Form", bound=BaseModel)


class Lost(InfrastructureError):
    """The server is gone, hung, broken or about to end: another one, or the same one later, may answer."""


class Model(BaseModel):
    id: str
    max_model_len: int | None  # an adapter has none of its own


class Models(BaseModel):
    data: list[Model]


class Tokens(BaseModel):
    tokens: list[int]


class Weights(BaseModel):
    weight_version: str


class Pause(BaseModel):
    is_paused: bool


class Span(BaseModel):
    version: str
    start: int
    end: int


class Likelihood(BaseModel):
    logprob: FiniteFloat
    rank: int | None = None


class Likelihoods(BaseModel):
    content: list[Likelihood]


class Choice(BaseModel):
    token_ids: list[int]
    finish_reason: str | None
    logprobs: Likelihoods | None = None
    weight_versions: list[Span] | None = None


class Cached(BaseModel):
    cached_tokens: int | None = None


class Usage(BaseModel):
    prompt_tokens: int = 0
    prompt_tokens_details: Cached | None = None


class Answer(BaseModel):
    """The part of an answer of ``/inference/v1/generate`` that we read."""

    model: str
    choices: list[Choice]
    usage: Usage = Usage()
    prompt_logprobs: list[dict[int, Likelihood] | None] | None = None


class Anything(BaseModel):
    """An answer that is not looked at."""


Where = str | Callable[[], Awaitable[str]]  # an address, or who says what it is now; its text is the server's name


class Replica:
    """A server at ``where``. At most ``width`` of what we ask of it are under way at once; ``asked`` counts those that wait too."""

    def __init__(self, where: Where, width: int, timeout: float) -> None:
        self.name = self.url = str(where)
        self._where, self._width, self._timeout = where, width, timeout
        self.places = asyncio.Semaphore(width)
        self.asked = 0
        self.up = False
        self.trouble = ""  # why it is not up
        self.proved: str | None = None  # the version with which it answered as the learner did
        self.length = 0  # tokens of the longest context
        self.http = self._connections()

    async def post(self, path: str, form: type[Form], body: Any = None) -> Form:
        return await self._ask("POST", path, form, json=body)

    async def quick(self, path: str, form: type[Form], body: Any = None, params: Mapping[str, str] | None = None) -> Form:
        """As `post`, for what a server does at once: one that hangs must not hold up the others for as long as an action may take."""
        return await self._ask("POST", path, form, json=body, params=params, timeout=QUICK)

    async def get(self, path: str, form: type[Form]) -> Form:
        return await self._ask("GET", path, form, timeout=QUICK)

    async def find(self) -> None:
        """Ask where it is now, if anybody knows. Raises `Lost` where it is nowhere yet."""
        if isinstance(self._where, str) or (url := await self._where()) == self.url:
            return
        before, self.url, self.proved = self.http, url, None
        self.http = self._connections()
        await before.aclose()  # who waits for it asks the new place

    def _connections(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(self._timeout, connect=CONNECT, pool=None),
            # Those that bring weights do not queue, and an idle connection is given up before the server does so.
            limits=httpx.Limits(max_connections=self._width + 8, keepalive_expiry=2.0),
            trust_env=False,
        )

    async def healthy(self) -> bool:
        try:
            return (await self.http.get("/health", timeout=CONNECT)).status_code == 200
        except httpx.HTTPError:
            return False

    async def weight_version(self) -> str:
        return (await self.get("/weight_info", Weights)).weight_version

    async def paused(self) -> bool:
        try:
            return (await self.get("/is_paused", Pause)).is_paused
        except Lost:
            raise
        except AgentGymError:
            return False  # a server that cannot be paused

    async def _ask(self, method: str, path: str, form: type[Form], **request: Any) -> Form:
        """Raises `Lost` where it is worth another try, and `AgentGymError` where the server cannot do what is asked."""
        if (http := self.http).is_closed:
            raise Lost(f"{self.url}{path}: its connections were given up")
        try:
            response = await http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Lost(f"{self.url}{path}: {type(error).__name__} {error}".strip()) from error
        if response.status_code >= 500 or response.status_code == 429:
            raise Lost(f"{self.url}{path}: status {response.status_code}, {_message(response)}")
        if response.status_code == 404 and "does not exist" in _message(response):
            raise Lost(f"{self.url}{path}: {_message(response)} Was it restarted?")
        if response.status_code in (403, 404) and not any(word in _message(response) for word in ("model", "adapter")):
            needs = f", and start it with {NEEDS[path]}, as 'agentgym serve-policy' does" if path in NEEDS else ""
            raise AgentGymError(f"{self.url} has no {path} (it is {await self._version()}): use vLLM {KNOWN}{needs}")
        if response.status_code != 200:
            raise InfrastructureError(f"{self.url}{path}: status {response.status_code}, {_message(response)}")
        if form is Anything:
            return form()
        try:
            return form.model_validate_json(response.content or b"{}")
        except ValidationError as error:
            reason = error.errors()[0]
            raise Lost(f"{self.url}{path}: an answer of another form, {reason['loc']}: {reason['msg']}") from error

    async def _version(self) -> str:
        try:
            return f"vLLM {(await self.http.get('/version', timeout=QUICK)).json()['version']}"
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return "no vLLM"


def _message(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text
    return str(message)[:300]
