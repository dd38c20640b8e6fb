"""A policy inside this process: any Hugging Face causal model, decoding many episodes together."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agentgym.chat import Chat
from agentgym.errors import AgentGymError, MissingExtra
from agentgym.policies.decoding import Handle, Slot, SlotCache, forward
from agentgym.policy import Finish, Generation, Prompt, Sampling, Scores
from agentgym.turn import Turn


@dataclass(eq=False, slots=True)
class Request:
    turn: Turn
    prompt: list[int]
    sampling: Sampling
    done: asyncio.Future[Generation]
    rng: random.Random
    slot: Slot | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


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
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        return cls(model, Chat.of(AutoTokenizer.from_pretrained(name)), slots=slots)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        ids = prompt.ids
        if not ids:
            raise AgentGymError("the prompt has no tokens: the rollout needs this policy's chat format")
        done: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(prompt.turn, ids, sampling, done, random.Random(sampling.seed)))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        return await done

    async def score(self, ids: list[int], *, topk: int = 0, hint: list[int] | None = None) -> Scores:
        """Log-probability of each token after those before it, 0 for the first; ``hint`` is put in front and not scored."""
        context = [*(hint or []), *ids]
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([context], device=self.model.device)).logits[0].float()
        before = logits.log_softmax(-1)[len(context) - len(ids) - 1 if hint else 0 : -1]
        targets = torch.tensor(ids if hint else ids[1:], device=before.device)
        scored = before.gather(-1, targets[:, None]).squeeze(-1)
        logprobs = scored if hint else torch.cat([scored.new_zeros(1), scored])
        best = before.topk(topk, -1) if topk else None
        return Scores(logprobs, best.indices if best else None, best.values if best else None)

    def new_weights(self, version: int) -> None:
        """The model's weights have changed: nothing that was computed with the old ones may be used again."""
        self.version = version
        for slot in self._cache.slots:
            slot.epoch += 1
            slot.length = 0

    async def _serve(self) -> None:
        try:
            while self._waiting or self._active:
                for _ in range(4):  # whoever just got an answer may ask for the next before the batch is formed
                    await asyncio.sleep(0)
                with torch.inference_mode():
                    self._admit()
                    self._decode()
        except Exception as error:
            for request in (*self._waiting, *self._active):
                if not request.done.done():
                    request.done.set_exception(error)
                if request.slot is not None:
                    request.slot.busy = False
            self._waiting, self._active = [], []

    def _admit(self) -> None:
        """Give every waiting request a slot with its prompt in it. Equal prompts below one turn are computed once."""
        families: dict[Turn, list[Request]] = {}
        free = sum(not slot.busy for slot in self._cache.slots)
        for request in self._waiting[:free]:
            families.setdefault(request.turn, []).append(request)
        for turn, family in families.items():  # first those that copy, before a slot that they copy from is evicted
            if self._is_computed(turn):
                for request in family:
                    self._activate(request, self._copied(turn.cache))
        fresh = [family[0] for family in families.values() if family[0].slot is None]
        first = len(self._active)
        for request in fresh:
            self._activate(request, self._slot_for(request.turn))
        if fresh:
            self._prefill(first, fresh)
        pending: list[tuple[Request, Tensor]] = []
        for turn, family in families.items():
            handle: Handle = turn.cache
            assert handle.logits is not None
            for request in family:
                if request.slot is None:
                    self._activate(request, self._copied(handle))
                pending.append((request, handle.logits))
        del self._waiting[:free]  # only now: an error above must reach every request
        if pending:
            pending.sort(key=lambda pair: self._active.index(pair[0]))
            self._sample([request for request, _ in pending], torch.stack([logits for _, logits in pending]))

    def _is_computed(self, turn: Turn) -> bool:
        handle = turn.cache
        return isinstance(handle, Handle) and handle.holds and handle.logits is not None

    def _slot_for(self, turn: Turn) -> Slot:
        """A slot that holds the longest usable prefix of the context after ``turn``."""
        handle = turn.cache
        if not isinstance(handle, Handle) or not handle.holds:
            return self._evict()
        if handle.slot.busy or handle.slot.length != handle.length:
            return self._copied(handle)
        return handle.slot

    def _copied(self, handle: Handle) -> Slot:
        handle.slot.used = self._clock = self._clock + 1  # must not be the one that is evicted
        target = self._evict(keep=handle.slot)
        self._cache.copy(handle.slot, target, handle.length)
        return target

    def _evict(self, keep: Slot | None = None) -> Slot:
        idle = [slot for slot in self._cache.slots if not slot.busy and slot is not keep]
        slot = min(idle, key=lambda slot: slot.used) if idle else keep
        assert slot is not None
        slot.epoch += 1
        slot.length = 0
        return slot

    def _activate(self, request: Request, slot: Slot) -> None:
        self._cache.swap(slot, len(self._active))
        slot.busy = True
        request.slot = slot
        self._active.append(request)

    def _prefill(self, first: int, fresh: list[Request]) -> None:
        slots = [_slot(request) for request in fresh]
        starts = [slot.length for slot in slots]
        tokens = [request.prompt[start:] for request, start in zip(fresh, starts, strict=True)]
        logits = forward(self.model, self._cache, first, starts, tokens)
        self.tokens_computed += sum(map(len, tokens))
        for request, slot, row in zip(fresh, slots, logits, strict=True):
            slot.length = len(request.prompt)
            request.turn.cache = Handle(slot, slot.length, slot.epoch, row)

    def _decode(self) -> None:
        if not self._active:
            return
        slots = [_slot(request) for request in self._active]
        tokens = [[request.ids[-1]] for request in self._active]
        logits = forward(self.model, self._cache, 0, [slot.length for slot in slots], tokens)
        self.tokens_computed += len(slots)
        for slot in slots:
            slot.length += 1
        self._sample(list(self._active), logits)

    def _sample(self, requests: list[Request], logits: Tensor) -> None:
        """One token for each request, by inverse distribution function at the request's own random number."""
        temperatures = [request.sampling.temperature for request in requests]
        scale = torch.tensor([temperature or 1.0 for temperature in temperatures], device=logits.device)
        logprobs = torch.log_softmax(logits.float() / scale[:, None], -1)
        cumulative = logprobs.double().exp().cumsum(-1)
        draws = torch.tensor([request.rng.random() for request in requests], dtype=torch.float64, device=logits.device)
        drawn = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
        greedy = torch.tensor([not temperature for temperature in temperatures], device=logits.device)
        tokens = torch.where(greedy, logprobs.argmax(-1), drawn)
        chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
        for request, token, logprob in zip(requests, tokens.tolist(), chosen.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            request.versions.append(self.version)
            if token in self.chat.stop_ids:
                self._finish(request, "stop")
            elif len(request.ids) >= request.sampling.max_tokens:
                self._finish(request, "length")

    def _finish(self, request: Request, finish: Finish) -> None:
        slot = _slot(request)
        last = self._active.pop()
        if last is not request:
            place = slot.row
            self._active[place] = last
            self._cache.swap(_slot(last), place)
        slot.busy = False
        slot.used = self._clock = self._clock + 1
        cache = Handle(slot, slot.length, slot.epoch)
        versions = _runs(request.versions)
        if not request.done.done():
            request.done.set_result(Generation(request.ids, request.logprobs, versions, finish, cache=cache))


def _slot(request: Request) -> Slot:
    assert request.slot is not None
    return request.slot


def _runs(versions: list[int]) -> list[tuple[int, int]]:
    """Run-length code."""
    runs: list[tuple[int, int]] = []
    for version in versions:
        if runs and runs[-1][0] == version:
            runs[-1] = (version, runs[-1][1] + 1)
        else:
            runs.append((version, 1))
    return runs
