"""``agentgym/AceBench-v0``: ACEBench: calls that a conversation asks for, what is to be said where none can be made, and agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from agentgym.action import Action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.acebench.agents import Doings, known_actions
from agentgym.envs.acebench.answers import OVER, Answers, known_answers
from agentgym.envs.acebench.simulators import read_simulators
from agentgym.envs.acebench.tasks import is_of_agents, splits, tasks
from agentgym.envs.acebench.town import TABLES
from agentgym.envs.acebench.users import instructed, view
from agentgym.envs.acebench.world import World
from agentgym.envs.calls import Json, Offer, schema, tool_name
from agentgym.envs.tau.users import chosen
from agentgym.envs.user.users import Line, User, UserFailure
from agentgym.snapshot import Kind, Snapshot
from agentgym.task import Task
from agentgym.tools.tables import FrozenDict


class AceBench(AgentEnv):
    """Call the functions that a conversation asks for, or say why none can be called; as an agent, do what somebody wants.

    ``data``: the folder of ACEBench's data in English; each category is a split. Without it, a few tasks of our own. Calls may also be
    written as ``[name(parameter=value)]``. Reward: 1 where every answer is right, or all apps are as they are wanted.

    Normal and special tasks: an answer is one action; a conversation of several rows asks for one after the other, and shows its true
    course between them. Tasks of agents begin as the benchmark's ``simulators`` do: the folder of their sources, which are parsed and
    never run; by default ``simulators`` within the data. ``user``: who talks to the agent in ``agent_multi_turn``, is told the task as its
    goal and opens the conversation; ``url``, ``model`` and ``key`` (the name of an environment variable) make it a model behind an
    OpenAI-compatible endpoint, and ``cache`` is a file that remembers its replies. Without a user, the task is the prompt, and nobody
    answers.

    Source: ACEBench (arXiv 2501.12851), the checkers of its program [S], see `agentgym.envs.acebench.grading` and
    `agentgym.envs.acebench.ends`. Raises `AgentGymError` where a file is missing or has a bad line; `UserFailure` out of ``reset`` and
    ``step`` where the user fails to speak: such an episode has no verdict.
    """

    snapshots: Kind = "value"
    state: Answers | Doings

    def __init__(
        self,
        data: str | Path | None = None,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
        simulators: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._folder = None if data is None else Path(data)
        self._simulators = None if simulators is None else Path(simulators)
        self.user = chosen(user, url, model, key, cache, instructed)
        self.blocking = self.user is not None and self.user.blocking
        self.splits = splits(self._folder)

    def tasks(self, split: str) -> Sequence[Task]:
        if split not in self.splits:
            return ()
        if is_of_agents(split):
            self._tables()  # what is missing is told before an episode begins
        return tasks(self._folder, split)

    def begin(self, task: Task) -> None:
        """With a user, the agent reads its first words in place of the task."""
        if not is_of_agents(task.data["category"]):
            self.state = Answers()
        elif self.user is None or not task.data["talks"]:
            self.state = Doings(self._world(task))
        else:
            words = self._listen(self.user, ())
            self.task = replace(task, prompt=words)
            self.state = Doings(self._world(task), (Line("user", words),))
        self._offer()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._offer()

    def opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.state.instruction(self.task)}, {"role": "user", "content": self.task.prompt}]

    def act(self, action: Action) -> Reply:
        reply, self.state = self.state.act(self.task, action, None if self.user is None else partial(self._listen, self.user))
        self._offer()
        return reply

    def score(self) -> float:
        return self.state.score(self.task)

    def metrics(self) -> dict[str, float]:
        """``official``: 1 where the benchmark's program passes all; ``process``: the share of answers that it passes, or of milestones."""
        return self.state.metrics(self.task)

    def gold(self, task: Task) -> list[str] | None:
        return known_actions(task, self._world(task)) if is_of_agents(task.data["category"]) else known_answers(task)

    def key(self) -> str:
        return self.state.key(self.task)

    def _offer(self) -> None:
        """The tools of the present part, and the limit of the task."""
        self.max_turns = self.state.most_turns(self.task)
        self.tools = [Offer(_described(function), lambda name, arguments: OVER) for function in self.state.functions(self.task)]
        self._tool_by_name = {tool.name: tool for tool in self.tools}

    def _world(self, task: Task) -> World:
        return World.start(self._tables(), task.data["apps"], task.data["device"])

    def _tables(self) -> FrozenDict:
        if self._simulators is None and self._folder is None:
            return TABLES
        return read_simulators(self._simulators or Path(self._folder or "", "simulators"))

    def _listen(self, user: User, dialogue: Sequence[Line]) -> str:
        """What the user says next."""
        turn = user.reply(view(self.task.data["wish"], dialogue), self.rng("user"))
        if turn.actions or not turn.text.strip():
            raise UserFailure("the simulated user must speak, and can do nothing else: choose another one")
        return turn.text


def _described(function: Json) -> dict[str, Any]:
    parameters = schema({"type": "object", **function["parameters"]})
    return {"name": tool_name(function["name"]), "description": function["description"], "parameters": parameters}
