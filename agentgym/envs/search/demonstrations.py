"""Endless demonstrations by an expert that errs, for warm starts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from random import Random

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.envs.search.expert import Expert
from agentgym.expand import Groups
from agentgym.rollout import Rollout, Start
from agentgym.seeds import Lineage
from agentgym.turn import Message, Turn, TurnTree

RENAMED = 0.5  # of the demonstrations
_NAME = re.compile(r"\b(?:[A-Z]{3}|[A-Z][a-z]+)\b")
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwyz", "aeiou"


class Demonstrations:
    """Episodes of the erring expert on training tasks, in a new order each epoch.

    Most are told again with invented names in place of the real ones, each name of an episode by one other name: what can
    be known by heart is no help there, so that a small model learns to read and copy.
    """

    def __init__(self, make_env: Callable[[], AgentEnv], chat: Chat | None, seed: int, mistakes: float) -> None:
        self.make_env = make_env
        self.chat = chat
        self.lineage = Lineage.of(seed, "demonstrations")
        self.expert = Expert(seed=seed, mistakes=mistakes)
        self.tasks = list(make_env().tasks("train"))
        self._round = 0

    def play(self, count: int) -> list[TurnTree]:
        """The next ``count`` demonstrations, each a tree of one episode."""
        lineage = self.lineage / self._round
        self._round += 1
        starts = [Start(task) for task in (lineage / "tasks").rng().choices(self.tasks, k=count)]
        rollout = Rollout(self.make_env, Groups(1, "expert"), {"expert": self.expert}, self.chat, lineage)
        trees = asyncio.run(rollout.run(starts))
        return [self._retold(tree, (lineage / "names" / number).rng()) for number, tree in enumerate(trees)]

    def _retold(self, tree: TurnTree, rng: Random) -> TurnTree:
        if self.chat is None or rng.random() >= RENAMED:
            return tree
        names = _invent(tree, rng)

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
        turn.sampled = [False] * len(turn.ids)


def _with_content(message: Message, retell: Callable[[str], str]) -> Message:
    return message if message["role"] == "system" else {**message, "content": retell(str(message["content"]))}


def _invent(tree: TurnTree, rng: Random) -> dict[str, str]:
    """An invented name for every word of the entities and values that the task's plan goes through."""
    plan: Sequence[Sequence[str]] = tree.task.data["plan"]
    words = {word: None for entity, _, value in plan for word in _NAME.findall(f"{entity} {value}")}
    return {word: _like(word, rng) for word in words}


def _like(word: str, rng: Random) -> str:
    """A code for a code, and two or three syllables for a name."""
    if word.isupper():
        return "".join(rng.choices(_CONSONANTS.upper(), k=3))
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3))]
    return "".join([*syllables, rng.choice(_CONSONANTS) * rng.randint(0, 1)]).capitalize()
