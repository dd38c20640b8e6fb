"""What the domains of tau-bench share: a conversation with a user, frozen tables, gold runs and the benchmark's reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from agentgym.action import Action, Call, format_action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.tau.data import Domain, load_domain, record
from agentgym.envs.tau.users import GREETING, STOP, chosen
from agentgym.envs.user.phone import Device
from agentgym.envs.user.users import Line, User, UserFailure, UserView
from agentgym.errors import ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.calculator import calculator
from agentgym.tools.tables import FrozenDict

TRANSFER = "transfer_to_human_agents"


@dataclass(frozen=True, slots=True)
class TauState:
    """``shown``: what the last turn said."""

    tables: FrozenDict
    dialogue: tuple[Line, ...] = ()
    shown: str = ""


@tool(ends=True)
def done() -> str:
    """End the conversation, when the user has all that was asked for."""
    return "Done."


class TauEnv(AgentEnv):
    """A domain of tau-bench (arXiv 2406.12045). A subclass names its folder, tables and writes, and adds its tools.

    ``data``: the benchmark's folder. ``user``: who talks to the agent, is told the task's instruction as its goal, speaks only, opens the
    conversation and ends it with ``###STOP###``; ``url``, ``model`` and ``key`` (the name of an environment variable) make it a model
    behind an OpenAI-compatible endpoint, and ``cache`` is a file that remembers its replies. Without a user, the instruction is the prompt,
    what is said is noted, and ``done`` ends.

    Reward, as the benchmark has it [S2]: 1 if the episode is ended with the tables as the task's own actions leave them, and all that was
    to be said was said; else 0. Raises `AgentGymError` where a file is missing or has a bad line; `UserFailure` out of ``reset`` and
    ``step`` where the user fails to speak: such an episode has no verdict.
    """

    folder: ClassVar[str]
    table_names: ClassVar[tuple[str, ...]]
    writes: ClassVar[Mapping[str, Callable[..., FrozenDict]]]
    stops: ClassVar[tuple[str, ...]] = (STOP,)  # of the user's words, those that end the conversation
    snapshots: Kind = "value"
    max_turns = max_calls = 30
    state: TauState

    def __init__(
        self,
        data: str | Path,
        user: User | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self._open(load_domain(Path(data), self.folder, self.table_names), chosen(user, url, model, key, cache))

    def _open(self, domain: Domain, user: User | None, tools: Sequence[Callable[..., Any]] = ()) -> None:
        super().__init__([*tools, done] if user is None else tools)
        self.user, self.domain = user, domain
        self.blocking = user is not None and user.blocking
        self.system = domain.policy
        self.splits = tuple(domain.tasks)

    def tasks(self, split: str) -> Sequence[Task]:
        return self.domain.tasks.get(split, ())

    def begin(self, task: Task) -> None:
        """With a user, the agent reads its first words in place of the instruction."""
        self.state = TauState(self.domain.tables)
        if self.user is not None:
            self.task = replace(task, data={"instruction": task.prompt, **task.data})  # a task that was begun before has its own
            self.task = replace(self.task, prompt=self._listen(self.user))

    def act(self, action: Action) -> Reply:
        """Plain words are said to the user, as with ``respond``."""
        says = action.problem is None and not action.calls and action.content
        reply = self.respond(action.content) if says else super().act(action)
        self.state = replace(self.state, shown=reply.text)
        return reply

    @tool(effect="read")
    def calculate(self, expression: str) -> str:
        """Calculate an arithmetic expression, rounded to 2 places.

        Args:
            expression: numbers with + - * / and brackets.
        """
        if not set(expression) <= set("0123456789+-*/(). "):
            raise ToolError("invalid characters in expression")
        return str(round(float(calculator(expression)), 2))

    @tool(effect="read")
    def think(self, thought: str) -> str:
        """Note a thought. Changes nothing."""
        return ""

    @tool
    def respond(self, content: str) -> Reply:
        """Say something to the user."""
        self._hear("agent", content)
        if self.user is None:
            return Reply("Said.")
        words = self._listen(self.user)
        return Reply(words, ends=any(stop in words for stop in self.stops))

    @tool(ends=True)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent, which ends the conversation.

        Args:
            summary: what the user's issue is.
        """
        return "Transfer successful"

    def score(self) -> float:
        said = [line.text.lower().replace(",", "") for line in self.state.dialogue if line.speaker == "agent"]
        told = all(any(output.lower() in content for content in said) for output in self.task.answer["outputs"])
        return float(self.ended == "done" and told and self.state.tables.digest == self._goal(self.task).digest)

    def gold(self, task: Task) -> list[str] | None:
        """The task's own actions, then all that is to be said, then the end. None where a user decides on the end."""
        if self.user is not None:
            return None
        calls = [Call(action["name"], action["arguments"]) for action in task.answer["actions"]]
        ends = [call for call in calls if call.name == TRANSFER] or [Call("done", {})]
        said = [Call("respond", {"content": " ".join(task.answer["outputs"])})] if task.answer["outputs"] else []
        return [format_action(call) for call in (*(call for call in calls if call.name != TRANSFER), *said, *ends[:1])]

    def key(self) -> str:
        """Equal where the same task's tables are equal, the same was said and the last turn showed the same."""
        return state_digest(self.task.id, self.state)

    def _goal(self, task: Task) -> FrozenDict:
        """The tables after the task's own actions. As in the benchmark, one that is refused changes nothing."""
        tables = self.domain.tables
        for action in task.answer["actions"]:
            if action["name"] in self.writes:
                with suppress(ToolError):
                    tables = self.writes[action["name"]](tables, **action["arguments"])
        return tables

    def _listen(self, user: User) -> str:
        """What the user says next. To it, the agent spoke first, always the same words."""
        dialogue = (Line("agent", GREETING), *self.state.dialogue)
        turn = user.reply(UserView(self.task.data["instruction"], {}, "", Device(), "", dialogue), self.rng("user"))
        if turn.actions or not turn.text.strip():
            raise UserFailure("the simulated user must speak, and can do nothing else: choose another one")
        self._hear("user", turn.text)
        return turn.text

    def _hear(self, speaker: Literal["agent", "user"], text: str) -> None:
        self.state = replace(self.state, dialogue=(*self.state.dialogue, Line(speaker, text)))

    def _show(self, table: str, id: str) -> str:
        return json.dumps(record(self.state.tables, table, id).to_plain())

    def _write(self, table: str, id: str, tables: FrozenDict) -> str:
        self.state = replace(self.state, tables=tables)
        return self._show(table, id)
