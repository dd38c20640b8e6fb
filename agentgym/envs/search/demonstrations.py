"""Endless demonstrations by an expert that errs, for warm starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from string import ascii_uppercase

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.envs import demonstrations
from agentgym.envs.search.atlas import town_names
from agentgym.envs.search.expert import Expert
from agentgym.envs.search.questions import COMPARE, split_of
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import Message, Turn, TurnTree

RENAMED = 0.8  # of the demonstrations
PRACTICE = {1: 0.2, 2: 0.25, 3: 0.25, COMPARE: 0.3}  # of the demonstrations, by hops: comparing is the hardest to learn
_NAME = re.compile(r"\b(?:[A-Z]{3}|[A-Z][a-z]+)\b")


class Demonstrations(demonstrations.Demonstrations):
    """Episodes of the erring expert on training tasks, drawn by kind.

    Most are told again with other towns' names and random codes, each name of an episode replaced by one other: what can be
    known by heart is no help there, so that a small model learns to read and copy.
    """

    def __init__(self, make_env: Callable[[], AgentEnv], chat: Chat | None, seed: int, mistakes: float) -> None:
        super().__init__(make_env, Expert(seed=seed, mistakes=mistakes), chat, seed)
        self.kinds: dict[int, list[Task]] = {}
        for task in self.tasks:
            self.kinds.setdefault(COMPARE if task.data["compares"] else len(task.data["plan"]), []).append(task)

    def play(self, count: int) -> list[TurnTree]:
        names = self.lineage / self._round / "names"
        return [self._retold(tree, (names / number).rng()) for number, tree in enumerate(super().play(count))]

    def draw(self, lineage: Lineage, count: int) -> list[Task]:
        """Kinds of questions come in the shares ``PRACTICE``, not as often as they are asked."""
        rngs = [(lineage / number).rng() for number in range(count)]
        kinds = [rng.choices(list(PRACTICE), list(PRACTICE.values()))[0] for rng in rngs]
        return [rng.choice(self.kinds[kind]) for rng, kind in zip(rngs, kinds, strict=True)]

    def _retold(self, tree: TurnTree, rng: Random) -> TurnTree:
        if self.chat is None or rng.random() >= RENAMED:
            return tree
        names = _exchange(tree, rng)

        def retell(text: str) -> str:
            return _NAME.sub(lambda match: names.get(match[0], match[0]), text)

        retold = TurnTree(tree.id, tree.task)
        for old in tree.turns:
            turn = Turn(old.index, retold.turns[-1] if retold.turns else None, old.author, old.seed)
            turn.end, turn.action = old.end, retell(old.action)
            turn.replies = [_with_content(message, retell) for message in old.replies]
            self._write(turn)
            retold.add(turn)
        return retold

    def _write(self, turn: Turn) -> None:
        assert self.chat is not None
        if turn.parent is None:
            turn.ids = self.chat.open(turn.replies)
        else:
            turn.ids = self.chat.write(turn.action)
            turn.action_tokens = len(turn.ids)
            if turn.end is None:
                turn.ids = turn.ids + (self.chat.bridge(turn.parent.ids, turn.ids, turn.replies) or [])


def _with_content(message: Message, retell: Callable[[str], str]) -> Message:
    return message if message["role"] == "system" else {**message, "content": retell(str(message["content"]))}


def _exchange(tree: TurnTree, rng: Random) -> dict[str, str]:
    """Another name for every word of the entities and values that the task's plan goes through."""
    plan: Sequence[Sequence[str]] = tree.task.data["plan"]
    words = {word: None for entity, _, value in plan for word in _NAME.findall(f"{entity} {value}")}
    return {word: _code(rng) if word.isupper() else rng.choice(_train_names()) for word in words}


def _code(rng: Random) -> str:
    return "".join(rng.choices(ascii_uppercase, k=3))


@cache
def _train_names() -> list[str]:
    """Names of one word, of 4 to 9 letters, that no question of another split may name."""
    return [name for name in town_names() if _NAME.fullmatch(name) and 4 <= len(name) <= 9 and split_of(name) == "train"]
