"""``agentgym/Tau2Banking-v0``: finding the documents that a bank's agent needs. A retrieval task on tau2-bench's data, not its metric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from agentgym.action import call
from agentgym.env import AgentEnv
from agentgym.envs.rows import read
from agentgym.envs.tau2.rows import domain_folder
from agentgym.errors import AgentGymError, ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.search import Page, SearchIndex

SHOWN = 5  # documents that one search shows


class Document(BaseModel):
    id: str = Field(min_length=1)
    title: str
    content: str


class Told(BaseModel):
    instructions: str = Field(min_length=1)


class BankingRow(BaseModel):
    id: str = Field(min_length=1)
    user_scenario: Told
    required_documents: list[str] = Field(min_length=1)


@dataclass(frozen=True)
class Library:
    documents: Mapping[str, Document]
    index: SearchIndex
    tasks: Mapping[str, Sequence[Task]]


@dataclass(frozen=True, slots=True)
class BankingState:
    answer: tuple[str, ...] | None = None
    shown: str = ""


class Tau2Banking(AgentEnv):
    """Find all documents that are needed to serve a bank's customer. Reward: F1 of the documents named, against those required.

    This is NOT tau2-bench's banking metric [R]: that plays a conversation with some 50 tools, of which no description is at hand. Its tasks
    and documents are used as questions with relevance labels; scores compare with no published one. Metrics: ``recall``, ``precision``,
    ``f1`` and ``found_all``: 1 where none that is required is missing, whatever else is named.

    ``data``: tau2-bench's folder; None: a few documents and tasks of our own. Raises `AgentGymError` where a file has a bad line.
    """

    system = "Find every document that the bank's agent needs to serve this customer. Search, read, then answer with their ids."
    snapshots: Kind = "value"
    max_turns = 30
    max_calls = 60
    splits = ("base",)
    state: BankingState

    def __init__(self, data: str | Path | None = None) -> None:
        super().__init__()
        self._library = _own() if data is None else _load(data)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._library.tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = BankingState()

    @tool
    def search(self, query: str) -> str:
        """Find documents by words. Shows their ids and titles, each with the sentence that fits best.

        Args:
            query: a few words.
        """
        hits = self._library.index.search(query, SHOWN)
        return self._show("\n".join(f"{hit.title}: {hit.snippet}" for hit in hits) or "Nothing found.")

    @tool
    def read(self, id: str) -> str:
        """Read a whole document.

        Args:
            id: as a search showed it, in brackets.
        """
        if id not in self._library.documents:
            raise ToolError(f"there is no document {id!r}; search for it")
        document = self._library.documents[id]
        return self._show(f"{document.title}\n\n{document.content}")

    @tool(ends=True)
    def answer(self, ids: list[str]) -> str:
        """Name the documents that are needed.

        Args:
            ids: of all of them, and of no others.
        """
        self.state = replace(self.state, answer=tuple(ids))
        return "Answered."

    def score(self) -> float:
        return self.metrics()["f1"]

    def metrics(self) -> dict[str, float]:
        named, required = set(self.state.answer or ()), set(self.task.answer)
        right = len(named & required)
        precision = right / len(named) if named else 0.0
        found = {"recall": right / len(required), "precision": precision, "f1": 2 * right / (len(named) + len(required))}
        return found | {"found_all": float(right == len(required))}

    def gold(self, task: Task) -> list[str]:
        return [call("answer", ids=list(task.answer))]

    def key(self) -> str:
        """Equal where the last tool call of the same task showed the same."""
        return state_digest(self.task.id, self.state)

    def _show(self, text: str) -> str:
        self.state = replace(self.state, shown=text)
        return text


@cache
def _load(data: str | Path) -> Library:
    folder = domain_folder(data, "banking_knowledge")
    documents = [row for _, row in read(folder / "documents.jsonl", Document)]
    known = {document.id for document in documents}
    tasks = []
    for place, row in read(folder / "tasks.jsonl", BankingRow):
        if missing := sorted(set(row.required_documents) - known):
            raise AgentGymError(f"{place}: required_documents: documents.jsonl has no {missing[0]!r}")
        tasks.append(_task(row))
    return _library(documents, tasks)


def _task(row: BankingRow) -> Task:
    return Task(row.id, row.user_scenario.instructions, tuple(row.required_documents), "base")


def _library(documents: Sequence[Document], tasks: Sequence[Task]) -> Library:
    index = SearchIndex([Page(f"[{document.id}] {document.title}", document.content) for document in documents])
    return Library({document.id: document for document in documents}, index, {"base": tuple(tasks)})


@cache
def _own() -> Library:
    """A bank of our own, to try the environment without data."""
    texts: Mapping[str, Any] = json.loads(_OWN)
    documents = [Document(id=id, title=title, content=content) for id, (title, content) in texts["documents"].items()]
    rows = [BankingRow.model_validate({"id": id, "user_scenario": {"instructions": told}, "required_documents": needed})
            for id, (told, needed) in texts["tasks"].items()]  # fmt: skip
    return _library(documents, [_task(row) for row in rows])


_OWN = """
{"documents": {
  "card_lost": ["Lost cards", "Block a lost card at once. A new card takes five days and costs nothing."],
  "card_limit": ["Card limits", "The daily limit of a card can be raised to 2000 once a year."],
  "pin_reset": ["Forgotten PIN", "A forgotten PIN is sent by post. After three wrong tries the card is blocked for a day."],
  "account_close": ["Closing an account", "An account closes when its balance is zero and its cards are returned."],
  "savings_rate": ["Savings rates", "Savings earn 2 percent, and 3 percent above 10000."],
  "transfer_abroad": ["Transfers abroad", "A transfer abroad takes three days and costs 15."]},
 "tasks": {
  "own-1": ["You lost your card on a journey and want a new one.", ["card_lost"]],
  "own-2": ["You want to close your account, and to move its balance to a bank abroad.", ["account_close", "transfer_abroad"]],
  "own-3": ["Your card is blocked after wrong tries, for you forgot the PIN; you also want a higher limit.", ["pin_reset", "card_limit"]],
  "own-4": ["You have 12000 to put aside and want to know what they would earn.", ["savings_rate"]]}}
"""
