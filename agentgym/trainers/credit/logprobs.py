"""Log-probabilities of other models, or of the learner before its update, as streams for objectives to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Packed, pack
from agentgym.trainers.credit.streams import Around
from agentgym.trainers.seams import Credit
from agentgym.turn import Turn, TurnTree


class WithLogprobs(Around):
    """``credit``, and a stream of log-probabilities, in nats, for each name in ``streams``.

    ``streams`` maps a stream to the model that it is from: a key of the training's ``models``, which needs
    ``logprobs(packed)`` such as a `Frozen` has, or "learner". E.g. {"reference": "reference"} for a KL term.
    """

    def __init__(self, credit: Credit, streams: Mapping[str, str], max_tokens: int = 4096) -> None:
        super().__init__(credit)
        self.streams, self.max_tokens = streams, max_tokens
        self.adds = frozenset(streams)

    async def assign(self, trees: Sequence[TurnTree], models: Mapping[str, Any]) -> None:
        await self.credit.assign(trees, models)
        for stream, name in self.streams.items():
            write_logprobs(trees, stream, models, name, self.max_tokens)


def write_logprobs(trees: Sequence[TurnTree], stream: str, models: Mapping[str, Any], name: str, max_tokens: int) -> None:
    if not hasattr(models.get(name), "logprobs"):
        raise AgentGymError(f"stream {stream!r} asks for a model {name!r} with logprobs(packed); models: {', '.join(models) or 'none'}")
    if hasattr(models[name], "read_tools"):  # it reads the conversation, not the learner's tokens
        models[name].read_tools(trees)
    for turn in (turn for tree in trees for turn in tree.turns):
        turn.streams[stream] = np.zeros(len(turn.ids))
    for turn, own in scored(trees, models[name].logprobs, max_tokens):
        turn.streams[stream] = own


def scored(trees: Sequence[TurnTree], score: Callable[[Packed], Tensor], max_tokens: int) -> Iterator[tuple[Turn, Floats]]:
    """What a model says of each turn's tokens, such as their log-probabilities, for every turn of the packs that the trees make."""
    for packed in pack(trees, max_tokens):
        yield from by_turn(packed, score(packed).double().cpu().numpy())


def by_turn(packed: Packed, values: Floats) -> Iterator[tuple[Turn, Floats]]:
    """An array over a pack, shape (T,), as the parts of its turns."""
    starts = np.searchsorted(packed.turn, np.arange(1, len(packed.turns)))
    return zip(packed.turns, np.split(values, starts), strict=True)
