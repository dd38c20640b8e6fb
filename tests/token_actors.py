"""Actors whose tokens, probabilities and entropies a test decides."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from test_rollout import tiny_chat

from agentgym.policy import Generation
from agentgym.seeds import Lineage
from agentgym.turn import begun, path


class Writes:
    """Samples the tokens of ``actions``, one action for each whole turn, as many at a time as it may.

    ``entropy(turn, place)`` and ``logprob(turn, place)`` are those of a token, by the turn's depth and its place in the action.
    With ``late`` each answer takes a while that the seed of that number decides.
    """

    def __init__(self, actions: Any, entropy: Any = lambda turn, place: 1.0, late: int | None = None) -> None:
        self.chat, self.actions, self.entropy, self.late = tiny_chat(), actions, entropy, late

    async def generate(self, prompt: Any, sampling: Any) -> Generation:
        if self.late is not None:
            await asyncio.sleep(Lineage.of(self.late, sampling.seed).rng().random() / 100)
        turn = prompt.turn.depth - prompt.turn.partial
        first = sum(len(segment.ids) for segment in begun(prompt.turn))
        rest = self.chat.write(self.actions[turn])[first:]
        ids = rest[: sampling.max_tokens]
        entropies = [self.entropy(turn, first + place) for place in range(len(ids))]
        finish = "stop" if len(ids) == len(rest) else "length"
        return Generation(ids, [-1.0] * len(ids), [(0, len(ids))], finish, entropies=entropies)


class Babbles:
    """Goes on writing tokens until it is cut off: ``token(rng, place)`` gives one and its probability, ``place`` within the episode."""

    def __init__(self, token: Any) -> None:
        self.token = token

    async def generate(self, prompt: Any, sampling: Any) -> Generation:
        rng = random.Random(sampling.seed)
        first = sum(turn.sampled_tokens for turn in path(prompt.turn))
        drawn = [self.token(rng, first + place) for place in range(sampling.max_tokens)]
        ids, logprobs = [token for token, _ in drawn], [probability for _, probability in drawn]
        return Generation(ids, logprobs, [(0, len(ids))], "length", entropies=[1.0] * len(ids))
