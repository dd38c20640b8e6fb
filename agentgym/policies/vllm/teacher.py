"""A served model to learn from: it acts in words, and says how likely it finds what the learner wrote."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.policies.vllm.client import VllmPolicy, chat_of
from agentgym.policy import Generation, Prompt, Sampling, Scores

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


class VllmTeacher:
    """A teacher of the learner's tokens on vLLM servers, as a model of a training. ``tokens`` names a policy with the learner's tokens.

    Each context of a pack is scored by itself: unlike a `PackScorer`, a server reads a prefix again for each that shares it. It gives
    the likeliest tokens, 20 unless it was started with ``--max-logprobs``, but no log-probabilities of chosen ids.
    """

    def __init__(self, urls: str | Sequence[str], tokens: str, model: str = "policy", **settings: Any) -> None:
        self.policy = VllmPolicy(urls, chat_of(tokens), model, **settings)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """What it wrote is kept as text: the learner did not sample it, so it has no ratio."""
        written = await asyncio.wrap_future(self._aside(self.policy.generate(prompt, sampling)))
        return Generation(text=self.policy.chat.read(written.ids), finish=written.finish)

    async def score(self, ids: list[int], *, topk: int = 0, hint: list[int] | None = None) -> Scores:
        return await asyncio.wrap_future(self._aside(self.policy.score(ids, topk=topk, hint=hint)))

    def logprobs(self, packed: Packed) -> Tensor:
        """Log-probability of every token given its own path, shape (T,); 0 at roots."""
        return self._scored(packed, 0)[0]

    def topk(self, packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
        """The likeliest tokens in place of every token, and their log-probabilities, shapes (T, k)."""
        if k is None:
            raise AgentGymError("a served teacher gives no whole distributions: set k, or load the teacher into this process")
        _, ids, values = self._scored(packed, k)
        return ids, values

    def _scored(self, packed: Packed, k: int) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        logprobs = torch.zeros(len(packed))
        best, values = torch.zeros(len(packed), k, dtype=torch.long), torch.zeros(len(packed), k)
        places = _contexts(packed)
        for at, scores in zip(places, self._aside(self._score_all(packed, places, k)).result(), strict=True):
            logprobs[at] = scores.logprobs
            if k:
                best[at], values[at] = scores.topk_ids, scores.topk_logprobs
        return logprobs, best, values

    async def _score_all(self, packed: Packed, places: list[list[int]], k: int) -> list[Scores]:
        return await asyncio.gather(*(self.policy.score(packed.token[at].tolist(), topk=k) for at in places))

    def _aside(self, work: Coroutine[Any, Any, Result]) -> Any:
        """On an event loop of its own: credit scores between two awaits of the training's."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _contexts(packed: Packed) -> list[list[int]]:
    """The places of each path from a root to a token that nothing follows."""
    parents = packed.parent.tolist()
    last = np.setdiff1d(np.arange(len(packed)), packed.parent).tolist()
    paths = []
    for place in last:
        path = []
        while place >= 0:
            path.append(place)
            place = parents[place]
        paths.append(path[::-1])
    return paths
