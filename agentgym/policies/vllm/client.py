"""A policy on vLLM servers: tokens in, tokens out, with the log-probability and the weights' version of each."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from agentgym.chat import Chat
from agentgym.errors import AgentGymError, InfrastructureError, MissingExtra
from agentgym.policies import tiny
from agentgym.policies.vllm.fleet import Fleet
from agentgym.policies.vllm.replica import Answer, Choice, Likelihood, Lost, Models, Replica, Span, Tokens, Where
from agentgym.policy import Finish, Generation, Prompt, Sampling, Scores

GENERATE = "/inference/v1/generate"
PROBE = "Übung 12. Which airport lies in São Tomé?"
UNNAMED = "default"  # what vLLM calls the weights that it was started with
_STEP = re.compile(r"step-(\d+)(-[0-9a-f]+)?")

Result = TypeVar("Result")


class VllmPolicy:
    """An `Actor` and a `Scorer` on one or several servers that ``agentgym serve-policy`` or `agentgym.policies.vllm.on_ray` started.

    ``chat`` is the chat format of the model that is served as ``model``; ``rows`` its vocabulary with padding, where known. A
    tree's turns go where their prefix is cached, unless that server has far more to do than the others; at most ``width`` requests
    wait at one server at once. A request that is lost, aborted, or answered by weights that were not pushed is asked again,
    ``retries`` times; while no server is up it waits up to ``patience`` seconds for one. ``timeout`` seconds of silence, which must
    hold the longest action and a push of weights, are a loss. What remains raises `InfrastructureError`: no verdict.

    An aborted action is sampled anew as a whole: only a server that is about to end aborts, and a random stream of vLLM that begins
    again at the cut would draw the same numbers twice. Equal prompts and seeds give equal tokens as far as the server's batching does.
    """

    def __init__(
        self,
        urls: str | Sequence[Where],
        chat: Chat,
        model: str = "policy",
        *,
        rows: int | None = None,
        width: int = 64,
        retries: int = 3,
        patience: float = 180.0,
        timeout: float = 300.0,
        backoff: float = 0.5,
    ) -> None:
        given: Sequence[Where] = [urls] if isinstance(urls, str) else urls
        self.urls = [url.rstrip("/") if isinstance(url, str) else url for url in given]
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls if isinstance(url, str)):
            raise AgentGymError(f"urls is {urls!r}: give addresses such as http://localhost:8000")
        if len({*map(str, self.urls)}) < len(self.urls):
            raise AgentGymError(f"urls is {urls!r}: each server is named once")
        if width < 1 or retries < 0 or min(patience, timeout, backoff) <= 0:
            wrong = f"{width}, {retries}, {patience}, {timeout} and {backoff}"
            raise AgentGymError(f"VllmPolicy needs width >= 1, retries >= 0, and patience, timeout and backoff > 0, not {wrong}")
        self.chat, self.model, self.rows = chat, model, rows
        self.width, self.retries, self.patience, self.timeout, self.backoff = width, retries, patience, timeout, backoff
        self.pushed: str | None = None  # the weights, or the adapter, that every replica must have
        self.adapters = False  # what is pushed is an adapter, and requests name it
        self.under_way: Counter[str] = Counter()  # requests, by the name that they ask for
        self.bring: Callable[[Replica], Awaitable[None]] | None = None  # gives a replica what was pushed last
        self.counts: Counter[str] = Counter()
        self._fleet: tuple[asyncio.AbstractEventLoop, Fleet] | None = None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        ids = prompt.ids
        if not ids:
            raise AgentGymError("the prompt has no tokens: the rollout needs this policy's chat format")

        async def ask(replica: Replica) -> Generation:
            room = replica.length - len(ids)
            if room < 1:
                raise AgentGymError(f"a context of {len(ids)} tokens fills the server's {replica.length}: lower Limits(tokens=…)")
            body = self._body(ids, max_tokens=min(sampling.max_tokens, room), temperature=sampling.temperature, seed=sampling.seed)
            generation = self._read(answer := await self._ask(replica, body), replica)
            self.counts["tokens_read"] += len(ids)
            if (details := answer.usage.prompt_tokens_details) is not None:
                self.counts["tokens_cached"] += details.cached_tokens or 0
            return generation

        return await self._somewhere(prompt.tree.id, prompt.cache, ask)

    async def score(self, ids: list[int], *, topk: int = 0, hint: list[int] | None = None) -> Scores:
        """Log-probability of each token after those before it, at temperature 1; ``hint`` is put in front and not scored.

        Without a hint nothing predicts the first token: its log-probability is 0, and so are its top-k entries. Float32 tensors.
        """
        return await self._somewhere(str(hash(tuple(ids))), None, lambda replica: self.score_at(replica, ids, topk=topk, hint=hint))

    async def score_at(
        self, replica: Replica, ids: list[int], *, topk: int = 0, hint: list[int] | None = None, model: str | None = None
    ) -> Scores:
        """As `score`, of one server, or of another ``model`` that it has."""
        context = [*(hint or ()), *ids]
        if replica.length <= len(context):
            raise AgentGymError(f"{len(context)} tokens are to be scored, and one made: the server has room for {replica.length}")
        body = self._body(context, max_tokens=1, prompt_logprobs=topk)
        answer = await self._ask(replica, {**body, "model": model or body["model"]})
        places = answer.prompt_logprobs
        for choice in answer.choices:
            self._versions(choice, answer.model, replica)
        if places is None or len(places) != len(context) or None in places[1:]:
            raise Lost(f"{replica.url} scored other tokens than the {len(context)} that it was sent")
        return _scores(ids, cast(list[dict[int, Likelihood]], [places[0] or {}, *places[1:]])[-len(ids) :], topk, replica)

    def metrics(self) -> dict[str, float]:
        """Since the start: requests that were lost and asked again, why, and the share of the prompts' tokens that was cached."""
        found = {f"vllm_{name}": float(self.counts[name]) for name in ("lost", "aborted", "stale", "restored")}
        return {**found, "vllm_cached": self.counts["tokens_cached"] / max(1, self.counts["tokens_read"])}

    async def ready(self) -> Fleet:
        """All servers up and in agreement with the chat format. Raises `AgentGymError` where one is not."""
        fleet = self.fleet()
        await fleet.wait(len(self.urls), self.patience)
        return fleet

    def fleet(self) -> Fleet:
        """The servers as the present event loop sees them: connections of an earlier one ended with it."""
        loop = asyncio.get_running_loop()
        if self._fleet is None or self._fleet[0] is not loop:
            self._fleet = loop, Fleet(self.urls, self.width, self.timeout, self._check, self.backoff)
        return self._fleet[1]

    def forget(self) -> None:
        """Ask no server before it was looked at again."""
        if self._fleet is not None:
            for replica in self._fleet[1].up:
                self._fleet[1].lose(replica, "it was not looked at again yet")

    async def close(self) -> None:
        """Give up the connections. Another request opens new ones."""
        if self._fleet is not None and self._fleet[0] is asyncio.get_running_loop():
            await self._fleet[1].close()
        self._fleet = None

    async def _somewhere(self, tree: str, remembered: Any, ask: Callable[[Replica], Awaitable[Result]]) -> Result:
        """Ask one replica after another until one answers."""
        fleet, reason = self.fleet(), ""
        for _ in range(self.retries + 1):
            replica = await fleet.choose(tree, remembered, self.patience)
            replica.asked += 1
            try:
                async with replica.places:
                    return await ask(replica)
            except Lost as error:
                reason = str(error)
                fleet.lose(replica, reason)
                self.counts["lost"] += 1
            finally:
                replica.asked -= 1
        raise InfrastructureError(f"{reason}, after {self.retries + 1} tries")

    async def _ask(self, replica: Replica, body: dict[str, Any]) -> Answer:
        name = body["model"]
        self.under_way[name] += 1
        try:
            answer = await replica.post(GENERATE, Answer, body)
        finally:
            self.under_way[name] -= 1
        if answer.model != name:
            raise Lost(f"{replica.url} answers with {answer.model!r}, and was asked for {name!r}")
        return answer

    def _body(self, ids: list[int], **sampling: Any) -> dict[str, Any]:
        """All that vLLM would otherwise choose for itself is said. It stops at the chat format's tokens and no others."""
        params = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "n": 1, "logprobs": 0, "detokenize": False, "ignore_eos": True}
        return {
            "model": self.pushed if self.adapters and self.pushed else self.model,
            "token_ids": ids,
            "sampling_params": {**params, "stop_token_ids": sorted(self.chat.stop_ids), **sampling},
        }

    def _read(self, answer: Answer, replica: Replica) -> Generation:
        """Raises `Lost` for what is no sample of the weights that were pushed."""
        if len(answer.choices) != 1:
            raise Lost(f"{replica.url} gave {len(answer.choices)} samples where 1 was asked for")
        choice = answer.choices[0]
        if choice.finish_reason not in ("stop", "length") or not choice.token_ids:
            self.counts["aborted"] += 1
            raise Lost(f"{replica.url} broke off after {len(choice.token_ids)} tokens ({choice.finish_reason})")
        logprobs = [token.logprob for token in choice.logprobs.content] if choice.logprobs is not None else []
        if len(logprobs) != len(choice.token_ids):
            raise Lost(f"{replica.url} gave {len(logprobs)} log-probabilities for {len(choice.token_ids)} tokens")
        finish: Finish = "stop" if choice.finish_reason == "stop" else "length"
        return Generation(choice.token_ids, logprobs, self._versions(choice, answer.model, replica), finish, cache=replica.url)

    def _versions(self, choice: Choice, model: str, replica: Replica) -> list[tuple[int, int]]:
        spans = choice.weight_versions or [Span(version=UNNAMED, start=0, end=len(choice.token_ids))]
        places = [place for span in spans for place in range(span.start, span.end)]
        if places != list(range(len(choice.token_ids))):
            raise Lost(f"{replica.url} gave weight versions that do not cover its {len(choice.token_ids)} tokens")
        if self.adapters:
            return [(version_number(model), len(choice.token_ids))]
        if self.pushed is not None and any(_STEP.fullmatch(span.version) is None for span in spans):
            self.counts["stale"] += 1
            raise Lost(f"{replica.url} answers with weights {spans[-1].version!r}, and {self.pushed!r} were pushed: was it restarted?")
        return [(version_number(span.version), span.end - span.start) for span in spans]

    async def _check(self, replica: Replica) -> None:
        """Whether it serves the model of the chat format, with the weights that were pushed. If it has others, they are brought."""
        served = {model.id: model.max_model_len for model in (await replica.get("/v1/models", Models)).data}
        if (length := served.get(self.model)) is None:
            raise AgentGymError(f"{replica.url} serves {', '.join(served) or 'no model'}, not {self.model!r}: name one of its models")
        replica.length = length
        await self._check_tokens(replica)
        paused = await replica.paused()
        if paused and self.bring is None:
            raise AgentGymError(f"{replica.url} is paused: another run brings it weights, or one was killed as it did. Start it anew")
        if self.pushed is not None and self.bring is not None:
            has = self.pushed in served if self.adapters else await replica.weight_version() == self.pushed
            if paused or replica.proved != self.pushed or not has:
                await self.bring(replica)
                self.counts["restored"] += 1
        elif paused:
            return  # until the first push, which ends the pause
        await self._check_vocabulary(replica)

    async def _check_tokens(self, replica: Replica) -> None:
        body = {"model": self.model, "prompt": PROBE, "add_special_tokens": False}
        theirs = (await replica.quick("/tokenize", Tokens, body)).tokens
        ours = self.chat.tokenizer.encode(PROBE, add_special_tokens=False)
        if theirs != ours:
            shown = f"{PROBE!r} is {theirs[:8]}… there, and {ours[:8]}… in the chat format"
            raise AgentGymError(f"{replica.url} has another tokenizer: {shown}. Serve the model of this chat format")

    async def _check_vocabulary(self, replica: Replica) -> None:
        """Padding of the vocabulary is drawn too, so a model with more or fewer rows than the learner's is another model."""
        rows = max(max(self.chat.tokenizer.get_vocab().values()) + 1, self.rows or 0)
        if not await self._has(replica, rows - 1):
            raise AgentGymError(f"{replica.url} serves a model with fewer tokens than the {rows} of the policy: serve that policy")
        if self.rows is not None and await self._has(replica, rows):
            raise AgentGymError(f"{replica.url} serves a model with more tokens than the {rows} of the policy: serve that policy")

    async def _has(self, replica: Replica, token: int) -> bool:
        try:
            await replica.quick(GENERATE, Answer, self._body([token], max_tokens=1))
        except Lost:
            raise
        except InfrastructureError as error:
            if "out of vocabulary" in str(error):
                return False
            raise
        return True


def chat_of(name: str) -> Chat:
    """The chat format of ``tiny``, of a tiny policy's folder, or of a Hugging Face model's folder or name."""
    if folder := tiny.folder_of(name):
        return tiny.tiny_chat(tiny.TinyTokenizer.load(folder))
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("transformers", "train") from error
    try:
        return Chat.of(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise AgentGymError(f"the tokenizer of {name!r} cannot be loaded, give the folder or name of the model: {reason}") from error


def version_number(name: str) -> int:
    """Of ``step-17``, or of an adapter ``step-17-3f9a``: 17. Weights that nobody pushed are version 0."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else 0


def _scores(ids: list[int], places: list[dict[int, Likelihood]], topk: int, replica: Replica) -> Scores:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "train") from error
    if any(place and token not in place for token, place in zip(ids, places, strict=True)):
        raise Lost(f"{replica.url} scored other tokens than it was sent")
    logprobs = torch.tensor([place[token].logprob if place else 0.0 for token, place in zip(ids, places, strict=True)])
    if not topk:
        return Scores(logprobs)
    best = torch.tensor([_likeliest(place, topk) if place else [(0, 0.0)] * topk for place in places], dtype=torch.float64)
    return Scores(logprobs, best[..., 0].long(), best[..., 1].float())


def _likeliest(place: dict[int, Likelihood], topk: int) -> list[tuple[int, float]]:
    ranked = sorted(place.items(), key=lambda item: -item[1].logprob)
    return [(id, likelihood.logprob) for id, likelihood in ranked[:topk]]
