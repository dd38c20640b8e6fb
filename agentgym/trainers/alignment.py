"""A teacher with another tokenizer: what it says of the learner's tokens, where the bytes of both end together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from agentgym.chat import Chat
from agentgym.errors import AgentGymError
from agentgym.pack import Floats, Packed
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.task import Task
from agentgym.trainers.credit.logprobs import scored
from agentgym.trainers.learner import PackScorer
from agentgym.turn import Turn, TurnTree, begun, path

Tools = Sequence[dict[str, Any]]


class ForeignTeacher:
    """A policy whose tokens are not the learner's. It reads the same conversation in its own chat format, and scores the same bytes.

    The tokens that the learner sampled of an action, and the teacher's of the same text, are cut where both end; each of the n learner's
    tokens of a span gets its own log-probability plus ``d / n``, d the teacher's sum over the span less the learner's. So a sum of
    ``teacher - behaviour logp`` over a span is exact, its spread within the span is not; stop token stands against stop token. What
    compares single tokens other than the sampled is refused: `at`, `topk`. Recipe ours [R], idea [S2].
    """

    def __init__(self, policy: Any, chat: Chat, student_chat: Chat, max_tokens: int = 4096) -> None:
        self.policy, self.chat, self.student_chat, self.max_tokens = policy, chat, student_chat, max_tokens
        self._scorer = PackScorer(policy.model)
        self._tools: dict[Turn, Tools] = {}

    def read_tools(self, trees: Sequence[TurnTree]) -> None:
        """Hear which tools the trees offer, before their packs are scored: their specifications are part of the prompt."""
        self._tools = {tree.root: tree.tools for tree in trees}

    def logprobs(self, packed: Packed) -> Tensor:
        """Of the tokens that the learner sampled, shape (T,), float64; 0 elsewhere."""
        values = np.zeros(len(packed))
        numbers = {turn: number for number, turn in enumerate(packed.turns)}
        for turn, ids, scores in self._scored(packed):
            place, own = (packed.turn == numbers[turn]) & packed.sampled, turn.ids[: turn.sampled_tokens]
            text, stopped = self.student_chat.decode(own), _stopped(own, self.student_chat)
            spans = _ends(own, self.student_chat, text, stopped), _ends(ids, self.chat, text, stopped)
            values[place] = spread(spans[0], packed.logprobs[place], spans[1], scores)
        return torch.from_numpy(values)

    def at(self, packed: Packed, ids: Tensor) -> NoReturn:
        self._refuse()

    def topk(self, packed: Packed, k: int | None) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AgentGymError(
            "the teacher has another tokenizer, so it cannot say how likely the learner's other tokens are: distil what was sampled "
            "(agentgym.trainers.credit.opd:OPD), or use a teacher with the same tokenizer"
        )

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        ids = self.chat.open(prompt.messages, prompt.tree.tools)
        if written := [token for turn in begun(prompt.turn) for token in turn.ids]:
            ids = ids + _encoded(self.chat, self.student_chat.decode(written))
        alone = Turn(0, None, "env", 0, ids=ids, length=len(ids))
        generation = await self.policy.generate(Prompt(prompt.tree, alone), sampling)
        return Generation(text=self.chat.read(generation.ids), finish=generation.finish)

    def _scored(self, packed: Packed) -> Iterator[tuple[Turn, list[int], Floats]]:
        """Each turn with sampled tokens, the teacher's own tokens for the same action, and their log-probabilities."""
        wanted = [turn for turn in packed.turns if turn.sampled_tokens]
        translated = _Translation(self.chat, self.student_chat, self._tools)
        for node in dict.fromkeys(node for turn in wanted for node in path(turn)):
            translated.add(node)
        originals = {translated.actions[turn]: turn for turn in wanted}
        for twin, scores in scored(list(translated.forest.values()), self._scorer.logprobs, self.max_tokens):
            if twin in originals:
                yield originals[twin], twin.ids[: twin.action_tokens], scores[: twin.action_tokens]


class _Translation:
    """Episodes of the learner in the teacher's tokens. ``actions`` are the turns that stand for the learner's."""

    def __init__(self, chat: Chat, student_chat: Chat, tools: Mapping[Turn, Tools]) -> None:
        self.chat, self.student_chat, self.tools = chat, student_chat, tools
        self.forest: dict[Turn, TurnTree] = {}
        self.actions: dict[Turn, Turn] = {}
        self._ends: dict[Turn, Turn] = {}  # below which the turns below each go on

    def add(self, turn: Turn) -> None:
        """``turn``'s parent was added already."""
        if turn.partial:
            raise AgentGymError(f"turn {turn.index} is a segment of an action, which a teacher with another tokenizer cannot score")
        if turn.parent is None:
            self._ends[turn] = self._root(turn)
        elif turn.restarts:  # the learner's template rewrote history; whether the teacher's does is its own affair
            self._ends[turn] = self._ends[turn.parent]
        else:
            self._ends[turn] = self._action(turn, self._ends[turn.parent])

    def _root(self, turn: Turn) -> Turn:
        if turn not in self.tools:
            raise AgentGymError("the teacher has not heard which tools the trees offer: call read_tools(trees) before it scores")
        self.forest[turn] = TurnTree("", Task("", ""))
        return self.forest[turn].add(Turn(-1, None, "env", 0, self.chat.open(turn.replies, self.tools[turn])))

    def _action(self, turn: Turn, parent: Turn) -> Turn:
        root = path(turn)[0]
        completion = self._completion(turn)
        bridge = self.chat.bridge(parent.ids, completion, turn.replies) if turn.children else []
        twin = self.actions[turn] = self.forest[root].add(Turn(-1, parent, "env", 0, completion + (bridge or [])))
        twin.action_tokens = len(completion)
        if bridge is not None:
            return twin
        ids = self.chat.open(Prompt(self.forest[root], turn).messages, self.tools[root])
        return self.forest[root].add(Turn(-1, twin, "env", 0, ids, restarts=True))

    def _completion(self, turn: Turn) -> list[int]:
        sampled = turn.ids[: turn.sampled_tokens]
        if not sampled:
            return self.chat.write(turn.action)
        ids = _encoded(self.chat, self.student_chat.decode(sampled))
        return [*ids, self.chat.renderer.get_stop_token_ids()[0]] if _stopped(sampled, self.student_chat) else ids


def spread(own_ends: Sequence[int], logprobs: Floats, other_ends: Sequence[int], other_logprobs: Floats) -> Floats:
    """Shape (n,): each token's own log-probability and its equal share of what another reading of its span gives more.

    ``own_ends`` and ``other_ends`` say up to which byte each token of the two readings reaches, in order; spans end where both do.
    """
    common = np.intersect1d(own_ends, other_ends)
    if not len(common):  # tokens that spell nothing
        return logprobs
    own, other = np.searchsorted(common, own_ends), np.searchsorted(common, other_ends)
    more = np.bincount(other, other_logprobs) - np.bincount(own, logprobs)
    found: Floats = logprobs + (more / np.bincount(own))[own]
    return found


def ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Up to which byte of ``text``, which they spell, each token reaches; within a character, up to where the next token ends one."""
    found: list[int] = []
    reached = len(text.encode())
    for n in range(len(ids), 0, -1):
        part = tokenizer.decode(list(ids[:n]), skip_special_tokens=False)
        if text.startswith(part):
            reached = len(part.encode())
        found.append(reached)
    return found[::-1]


def _ends(ids: list[int], chat: Chat, text: str, stopped: bool) -> list[int]:
    """Up to which byte of ``text`` each token reaches; the stop token, where the learner wrote one, one further."""
    return [*ends(chat.tokenizer, ids[: len(ids) - stopped], text), *([len(text.encode()) + 1] if stopped else [])]


def _stopped(ids: list[int], chat: Chat) -> bool:
    return bool(ids) and ids[-1] in chat.stop_ids


def _encoded(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False))
