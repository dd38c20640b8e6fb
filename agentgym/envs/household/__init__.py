"""``agentgym/Household-v0``: long tasks in a household of text, in the style of ALFWorld, and ALFWorld's own games."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentgym.action import call
from agentgym.env import AgentEnv, Reply
from agentgym.envs.household.expert import Expert, Memory, action_of, next_step
from agentgym.envs.household.homes import SIZES, Home, game_of, home_tasks
from agentgym.envs.household.texts import NOTHING_HAPPENS, play
from agentgym.envs.household.world import Game, World
from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.demonstrations import Demonstrations
    from agentgym.envs.household.games import OfficialGame

HOME_STEPS, GAME_STEPS = 20, 50  # commands, however many a turn has


class Household(AgentEnv):
    """Find, clean, heat, cool, put and light things by text commands. Reward: 1 when the goal is reached.

    Without arguments: small homes drawn by seed, 20 commands. ``data``: a folder of ALFWorld's games with their PDDL, 50
    commands; its splits are the names of its files. Raises `AgentGymError` where a file has a bad line.
    """

    system = "Reach the goal with the tool do."
    snapshots: Kind = "value"
    state: World

    def __init__(self, data: str | Path | None = None) -> None:
        super().__init__()
        self.max_turns = self.max_calls = HOME_STEPS if data is None else GAME_STEPS
        self._official = None if data is None else _folder(Path(data))
        self.splits = tuple(SIZES if self._official is None else self._official)
        self._by_id = {} if self._official is None else {one.row.id: one for split in self._official.values() for one in split}

    def tasks(self, split: str) -> Sequence[Task]:
        return home_tasks(split) if self._official is None else [one.task(split) for one in self._official.get(split, ())]

    def begin(self, task: Task) -> None:
        self.state = self._game_of(task).start

    @tool
    def do(self, command: str) -> Reply:
        """Do one thing in the household.

        Commands, where R is a receptacle, O an object and X either: go to R; open R; close R; take O from R; put O in/on R;
        clean O with R; heat O with R; cool O with R; slice O with O; use O; examine X; look; inventory.

        Args:
            command: one of these, with names as the texts give them.
        """
        game = self._game_of(self.task)
        self.state, text = play(game, self.state, command.strip())
        impossible = text == NOTHING_HAPPENS
        return Reply(text, ends=game.done(self.state), outcome=Outcome.TOOL_ERROR if impossible else Outcome.OK)

    def commands(self) -> list[str]:
        """The commands that are possible now, sorted. The agent is not told."""
        return self._game_of(self.task).commands(self.state)

    def score(self) -> float:
        return float(self._game_of(self.task).done(self.state))

    def metrics(self) -> dict[str, float]:
        return {f"success/{self.task.data['type']}": self.score()}

    def gold(self, task: Task) -> list[str]:
        """What the expert does; of an official game, what its transcript records."""
        if self._official is not None:
            return [call("do", command=command) for command, _ in self._game_row(task).transcript]
        game, memory = self._game_of(task), Memory.of(task.prompt)
        world, actions = game.start, list[str]()
        while not game.done(world) and len(actions) < self.max_turns:
            step = next_step(task.data, memory)
            world, answer = play(game, world, step.command)
            memory.read(step.command, answer)
            actions.append(action_of(step))
        return actions

    def key(self) -> str:
        """Equal where the same task's household is in the same state, whatever way led there."""
        return state_digest(self.task.id, self.state)

    def demonstrations(self, chat: Chat | None, seed: int, mistakes: float) -> Demonstrations:
        """Episodes of an expert that errs with probability ``mistakes`` at each turn, for a warm start."""
        from agentgym.envs.demonstrations import Demonstrations

        return Demonstrations(Household, Expert(seed=seed, mistakes=mistakes), chat, seed)

    def _game_of(self, task: Task) -> Game:
        return game_of(Home.of(task.data)) if self._official is None else self._game_row(task).game

    def _game_row(self, task: Task) -> OfficialGame:
        if task.id not in self._by_id:
            raise AgentGymError(f"there is no game {task.id!r} in the folder that this environment was given as data")
        return self._by_id[task.id]


@cache
def _folder(folder: Path) -> dict[str, list[OfficialGame]]:
    from agentgym.envs.household.games import read_games

    return read_games(folder)
