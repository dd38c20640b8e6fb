"""A policy inside this process: any Hugging Face causal model, decoding many episodes together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentgym.chat import Chat
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.policies.adapters import merged
from agentgym.policies.decoding import Handle, Slot, SlotCache, forward, longest_context
from agentgym.policy import Finish, Generation, Prompt, Sampling, Scores
from agentgym.turn import Turn

PREFILL = 8192  # tokens of one forward pass, padding included


@dataclass(eq=False, slots=True)
class Request:
    turn: Turn
    prompt: list[int]
    temperature: float
    max_tokens: int
    rng: random.Random
    done: asyncio.Future[Generation]
    held: Slot | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    @property
    def slot(self) -> Slot:
        assert self.held is not None
        return self.held

    @property
    def context(self) -> list[int]:
        return [*self.prompt, *self.ids]

    @property
    def missing(self) -> list[int]:
        """The tokens that are not in its slot yet."""
        return self.context[len(self.slot.tokens) :]


class TransformersPolicy:
    """An `Actor` and a `Scorer`. Each context keeps its keys and values between turns, and a fork copies them.

    All that are asked at once decode together; who comes later joins at the next token. Work happens on the event loop,
    in a fixed order, so that equal weights, prompts and seeds give equal tokens. ``slots`` contexts are kept;
    ``tokens_computed`` counts the tokens that went through the model.
    """

    def __init__(self, model: Any, chat: Chat, *, slots: int = 128) -> None:
        self.model = model
        self.chat = chat
        self.version = 0
        self.tokens_computed = 0
        self._longest = longest_context(model.config)
        self._cache = SlotCache(slots)
        self._waiting: list[Request] = []
        self._active: list[Request] = []  # the request of row i at place i
        self._server: asyncio.Task[None] | None = None
        self._clock = 0

    @classmethod
    def load(cls, name: str, *, slots: int = 32, dtype: Any = "auto") -> TransformersPolicy:
        """A model and its chat format from a folder or the Hugging Face hub."""
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingExtra("transformers", "train") from error
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, Chat.of(AutoTokenizer.from_pretrained(name)), slots=slots)

    def save(self, folder: Path) -> None:
        """Weights, adapters merged, and tokenizer, as ``load`` and ``agentgym eval --policy`` read them."""
        self.model.save_pretrained(folder, state_dict=merged(self.model))
        self.chat.tokenizer.save_pretrained(folder)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        ids = prompt.ids
        if not ids:
            raise AgentGymError("the prompt has no tokens: the rollout needs this policy's chat format")
        room = sampling.max_tokens if self._longest is None else self._longest - len(ids)
        if room < 1:
            raise AgentGymError(f"a context of {len(ids)} tokens fills the model's {self._longest}: lower Limits(tokens=…)")
        done: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        rng = random.Random(sampling.seed)
        most = min(sampling.max_tokens, room)
        self._waiting.append(Request(prompt.turn, ids, sampling.temperature, most, rng, done))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        return await done

    async def score(self, ids: list[int], *, topk: int = 0, hint: list[int] | None = None) -> Scores:
        """Log-probability of each token after those before it; ``hint`` is put in front and not scored.

        Without a hint nothing predicts the first token: its log-probability is 0, and so are its top-k entries.
        """
        context = [*(hint or ()), *ids]
        self.model.eval()
        with torch.no_grad():  # no inference mode: a loss may use the scores
            logits = self.model(input_ids=torch.tensor([context], device=self.model.device)).logits[0]
            predicted = _precise(logits.roll(1, 0)[-len(ids) :]).log_softmax(-1)
            logprobs = predicted.gather(-1, torch.tensor(ids, device=logits.device)[:, None]).squeeze(-1)
            best = predicted.topk(topk, -1)
            if not hint:
                for tensor in (logprobs, *best):
                    tensor[0] = 0
        return Scores(logprobs, best.indices, best.values) if topk else Scores(logprobs)

    def new_weights(self, version: int) -> None:
        """The model's weights have changed: nothing that was computed with the old ones may be used again.

        Who is in the middle of a generation keeps its tokens; they are read again with the new weights.
        """
        self.version = version
        for slot in self._cache.slots:
            self._cache.clear(slot)
        for request in self._active:
            request.slot.busy = False
            request.held = None
        self._waiting[:0] = self._active
        self._active = []

    async def _serve(self) -> None:
        self.model.eval()
        try:
            while self._waiting or self._active:
                for _ in range(4):  # whoever just got an answer may ask for the next before the batch is formed
                    await asyncio.sleep(0)
                with torch.inference_mode():
                    self._drop_cancelled()
                    self._admit()
                    self._decode()
        except Exception as error:
            self._abandon(error)
        except asyncio.CancelledError:
            self._abandon(None)
            raise

    def _abandon(self, error: Exception | None) -> None:
        for request in (*self._active, *self._waiting):
            if not request.done.done():
                request.done.set_exception(error) if error else request.done.cancel()
            if request.held is not None:
                request.held.busy = False
        self._waiting, self._active = [], []

    def _drop_cancelled(self) -> None:
        self._waiting = [request for request in self._waiting if not request.done.done()]
        for request in [request for request in self._active if request.done.done()]:
            self._release(request)

    def _admit(self) -> None:
        """Give waiting requests slots with their prompts in them. Equal prompts below one turn are computed once."""
        free = sum(not slot.busy for slot in self._cache.slots)
        if not free or not self._waiting:
            return
        self._waiting.sort(key=self._work)  # what is there is used before it is evicted
        admitted = self._waiting[:free]
        first_asked: dict[Turn, Request] = {}
        firsts: list[Request] = []
        twins: list[Request] = []
        for request in admitted:
            is_twin = not request.ids and first_asked.setdefault(request.turn, request) is not request
            (twins if is_twin else firsts).append(request)
        for requests in (firsts, twins):
            for request in requests:
                self._hold(request)
            requests.sort(key=lambda request: len(request.missing))
            for request in requests:
                self._activate(request)
            self._prefill([request for request in requests if request.missing])
        del self._waiting[:free]  # only now: an error above must reach every request
        self._sample(admitted, torch.stack([request.slot.logits[len(request.context)] for request in admitted]))

    def _work(self, request: Request) -> int:
        """0: goes on in its slot; 1: copies a prefix; 2: begins anew."""
        handle = self._prefix(request)
        return 2 if handle is None else 1 - _continues(handle)

    def _prefix(self, request: Request) -> Handle | None:
        """The longest prefix of its context that a turn above has left in a slot."""
        node: Turn | None = request.turn
        while node is not None:
            if self._cache.holds(node.cache, request.prompt):
                handle: Handle = node.cache
                if handle.length == len(request.context) and handle.length not in handle.slot.logits:
                    return Handle(handle.slot, handle.length - 1)  # a longer context ran through: its last logits are gone
                return handle
            node = node.parent
        return None

    def _hold(self, request: Request) -> None:
        handle = self._prefix(request)
        if handle is None:
            slot = self._evict()
        elif _continues(handle):
            slot = handle.slot
        else:
            self._touch(handle.slot)
            slot = self._evict(keep=handle.slot)
            self._cache.copy(handle.slot, slot, handle.length)
        slot.busy = True
        request.held = slot

    def _evict(self, keep: Slot | None = None) -> Slot:
        """The idle slot that was not needed for longest, and ``keep`` only where no other is idle."""
        idle = [slot for slot in self._cache.slots if not slot.busy]
        slot = min(idle, key=lambda slot: (slot is keep, slot.used))
        if slot is not keep:
            self._cache.clear(slot)
        return slot

    def _touch(self, slot: Slot) -> None:
        slot.used = self._clock = self._clock + 1

    def _activate(self, request: Request) -> None:
        self._cache.swap(request.slot, len(self._active))
        self._active.append(request)

    def _prefill(self, requests: list[Request]) -> None:
        for batch in _batches(requests):
            new = [request.missing for request in batch]
            logits = forward(self.model, self._cache, batch[0].slot.row, new)
            self.tokens_computed += sum(map(len, new))
            for request, row in zip(batch, logits, strict=True):
                length = len(request.slot.tokens)
                request.slot.logits[length] = row.clone()  # not a view, which would keep the whole batch
                if not request.ids:
                    request.turn.cache = Handle(request.slot, length)

    def _decode(self) -> None:
        if not self._active:
            return
        logits = forward(self.model, self._cache, 0, [[request.ids[-1]] for request in self._active])
        self.tokens_computed += len(self._active)
        self._sample(list(self._active), logits)

    def _sample(self, requests: list[Request], logits: Tensor) -> None:
        """One token for each request, by inverse distribution function at the request's own random number."""
        temperatures = [request.temperature for request in requests]
        logits = _precise(logits)
        scale = logits.new_tensor([temperature or 1.0 for temperature in temperatures])
        logprobs = torch.log_softmax(logits / scale[:, None], -1)
        probabilities = logprobs.double().exp()
        cumulative = probabilities.cumsum(-1)
        entropies = -(probabilities * logprobs).nansum(-1)  # a token that cannot come has 0 times minus infinity
        draws = torch.tensor([request.rng.random() for request in requests], dtype=torch.float64, device=logits.device)
        drawn = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
        greedy = torch.tensor([not temperature for temperature in temperatures], device=logits.device)
        tokens = torch.where(greedy, logprobs.argmax(-1), drawn)
        chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
        if not chosen.isfinite().all():
            raise AgentGymError(f"the model's logits are not finite at version {self.version}: its weights are broken")
        for request, token, logprob, entropy in zip(requests, tokens.tolist(), chosen.tolist(), entropies.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            request.entropies.append(entropy)
            request.versions.append(self.version)
            if token in self.chat.stop_ids:
                self._finish(request, "stop")
            elif len(request.ids) >= request.max_tokens:
                self._finish(request, "length")

    def _finish(self, request: Request, finish: Finish) -> None:
        self._release(request)
        versions = [(version, len(list(run))) for version, run in groupby(request.versions)]
        cache = Handle(request.slot, len(request.slot.tokens))
        if not request.done.done():
            request.done.set_result(
                Generation(request.ids, request.logprobs, versions, finish, cache=cache, entropies=request.entropies)
            )

    def _release(self, request: Request) -> None:
        """Free its slot, which keeps what it holds; the last active row takes its place."""
        slot = request.slot
        last = self._active.pop()
        if last is not request:
            self._active[slot.row] = last
            self._cache.swap(last.slot, slot.row)
        slot.busy = False
        self._touch(slot)


def _continues(handle: Handle) -> bool:
    return not handle.slot.busy and len(handle.slot.tokens) == handle.length


def _batches(requests: list[Request]) -> Iterator[list[Request]]:
    """Runs of requests, which come shortest first, that make at most ``PREFILL`` tokens with padding."""
    batch: list[Request] = []
    for request in requests:
        if batch and (len(batch) + 1) * len(request.missing) > PREFILL:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
