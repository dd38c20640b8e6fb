"""``agentgym/ApiBank-v0``: API-Bank: each call of a dialogue is asked for, given all that came before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from agentgym.action import Action, Call, format_action
from agentgym.env import AgentEnv, Reply
from agentgym.envs.apibank.checks import SEARCHER, arguments_of, found_tools, is_right, tool_of
from agentgym.envs.apibank.overlap import rouge_l
from agentgym.envs.apibank.tasks import splits, tables, tasks, told
from agentgym.envs.calls import Offer, calls_alone
from agentgym.outcome import Outcome
from agentgym.snapshot import Kind, Snapshot
from agentgym.task import Task

OVER = "The dialogue is over."
SYSTEM = """You are the AI in a dialogue with a user, and call APIs. You see the dialogue up to a place where you call an API: make that
one call. Then you see the true call, what it gave, and how the dialogue went on. The year is 2023."""
SEARCH = "You find APIs with ToolSearcher, and call those that it finds by their names."
ANSWER = "You are also asked what you say to the user after a call: then answer in words alone."


@dataclass(frozen=True, slots=True)
class Standing:
    """``right``: of the calls so far. ``overlaps``: ROUGE-L of the answers so far."""

    right: tuple[bool, ...] = ()
    overlaps: tuple[float, ...] = ()


class ApiBank(AgentEnv):
    """Make the API calls of a dialogue, one at a time. Reward: the share of right calls.

    ``data``: API-Bank's folder; each file is a split. Without it, two dialogues of our own. Whatever was called, the dialogue goes
    on as it was recorded. With ``answers``, the AI's words after a call are asked for too, and compared by ROUGE-L (``rouge_l``).
    At level 1 the dialogue's APIs are offered; at level 2 the searcher, and what it has found so far. A call may also be written
    as ``[Name(parameter=value)]``.

    Source: API-Bank (arXiv 2304.08244), see `agentgym.envs.apibank.checks`. Raises `AgentGymError` for a missing file or a bad line.
    """

    snapshots: Kind = "value"
    state: Standing

    def __init__(self, data: str | Path | None = None, answers: bool = False) -> None:
        super().__init__()
        self._folder = None if data is None else Path(data)
        self._answers = answers
        self._tables = tables(self._folder)
        self.splits = splits(self._folder)

    def tasks(self, split: str) -> Sequence[Task]:
        return tasks(self._folder, split) if split in self.splits else ()

    def begin(self, task: Task) -> None:
        self.state = Standing()
        self._offer()

    def restore(self, snapshot: Snapshot) -> None:
        super().restore(snapshot)
        self._offer()

    def opening(self) -> list[dict[str, Any]]:
        searched = any(turn.get("api_name") == SEARCHER for turn in self.task.data["turns"])
        words = [SYSTEM.replace("\n", " "), SEARCH if searched else "", ANSWER if self._answers else ""]
        user = f"{self.task.prompt}\n\n{self._wanted()}"
        return [{"role": "system", "content": " ".join(filter(None, words))}, {"role": "user", "content": user}]

    def act(self, action: Action) -> Reply:
        turns, places = self.task.data["turns"], self._places(self.task)
        place = places[self._step]
        if turns[place]["role"] == "API":
            self.state = Standing((*self.state.right, self._is_right(action, place)), self.state.overlaps)
        else:
            self.state = Standing(self.state.right, (*self.state.overlaps, rouge_l(turns[place]["text"], action.content)))
        outcome = Outcome.OK if action.problem is None else Outcome.MODEL_ERROR
        if self._step == len(places):
            return Reply(OVER, ends=True, outcome=outcome)
        self._offer()
        return Reply(f"{told(turns[place : places[self._step]])}\n\n{self._wanted()}", outcome=outcome)

    def score(self) -> float:
        return sum(self.state.right) / self._calls(self.task)

    def metrics(self) -> dict[str, float]:
        """``call_accuracy``: of this dialogue; of a level it is ``right_calls`` / ``calls``, see `level_accuracy`."""
        right, calls, overlaps = sum(self.state.right), self._calls(self.task), self.state.overlaps
        found = {"call_accuracy": right / calls, "right_calls": float(right), "calls": float(calls)}
        return found | ({"rouge_l": sum(overlaps) / len(overlaps)} if overlaps else {})

    def gold(self, task: Task) -> list[str]:
        asked = [task.data["turns"][place] for place in self._places(task)]
        return [turn["text"] if "text" in turn else format_action(Call(turn["api_name"], arguments_of(turn))) for turn in asked]

    def key(self) -> str:
        """Equal at the same place of the same dialogue: what was called changes nothing of what comes."""
        return f"{self.task.id}/{self._step}"

    @property
    def _step(self) -> int:
        return len(self.state.right) + len(self.state.overlaps)

    def _calls(self, task: Task) -> int:
        return sum(turn["role"] == "API" for turn in task.data["turns"])

    def _places(self, task: Task) -> list[int]:
        """The turns of the dialogue that are asked for."""
        turns = task.data["turns"]
        pairs = pairwise(["", *(turn["role"] for turn in turns)])
        return [n for n, (before, role) in enumerate(pairs) if role == "API" or (self._answers and (before, role) == ("API", "AI"))]

    def _wanted(self) -> str:
        place = self._places(self.task)[self._step]
        return "Call an API now." if self.task.data["turns"][place]["role"] == "API" else "Answer the user now."

    def _is_right(self, action: Action, place: int) -> bool:
        calls, turns = action.calls or calls_alone(action.content), self.task.data["turns"]
        before = [turn for turn in turns[:place] if turn["role"] == "API"]
        return len(calls) == 1 and is_right(calls[0], before, turns[place], self._tables)

    def _offer(self) -> None:
        """The tools at this place of the dialogue, and its limit."""
        turns, places = self.task.data["turns"], self._places(self.task)
        self.max_turns = len(places)
        names = dict.fromkeys(turn["api_name"] for turn in turns if turn["role"] == "API")
        if SEARCHER in names:
            past = turns[: places[min(self._step, len(places) - 1)]]
            found = [name for turn in past if turn.get("api_name") == SEARCHER for name in found_tools(turn)]
            names = dict.fromkeys((SEARCHER, *found))
        self.tools = [_offered(name) for name in names]
        self._tool_by_name = {tool.name: tool for tool in self.tools}


def level_accuracy(metrics: Iterable[Mapping[str, float]]) -> float:
    """The official call accuracy: of all calls of a level, from the metrics of its episodes."""
    found = list(metrics)
    return sum(one["right_calls"] for one in found) / sum(one["calls"] for one in found)


def _offered(name: str) -> Offer:
    tool = tool_of(name)
    return Offer({"name": name, "description": tool.description, "parameters": tool.parameters}, lambda name, arguments: OVER)
