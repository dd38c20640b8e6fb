"""``agentgym/Search-v0``: multi-hop questions, answered with a search tool over a corpus of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from agentgym.action import call
from agentgym.env import AgentEnv
from agentgym.envs.search.atlas import atlas
from agentgym.envs.search.corpus import Rows, read_pages, read_questions
from agentgym.envs.search.grading import cover_match, exact_match, f1
from agentgym.errors import AgentGymError, ToolError
from agentgym.snapshot import Kind
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.search import SearchIndex


@dataclass(frozen=True, slots=True)
class SearchState:
    answer: str | None = None
    shown: tuple[str, ...] = ()  # titles on view after the last turn


class Search(AgentEnv):
    """Answer a question with the tools ``search``, ``open`` and ``answer``. Reward: exact match after SQuAD normalisation.

    Without arguments: questions of one to three hops and comparisons over an atlas of real countries, cities and airports.
    ``corpus`` and ``questions`` take JSON-lines files or rows (such as ``datasets.load_dataset(...)``): a page has
    ``title`` and ``text``; a question has ``question`` and ``answer``, and may have ``id``, ``answer_aliases``, ``split``.
    ``data`` takes a folder with ``corpus.jsonl`` beside files of questions instead.
    """

    system = "Answer the question with the tools search, open and answer."
    max_turns = 6
    snapshots: Kind = "value"
    state: SearchState

    def __init__(
        self,
        corpus: Rows | None = None,
        questions: Rows | None = None,
        *,
        data: str | Path | None = None,
        split: str = "test",
        top_k: int = 2,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        if data is not None:
            self.index, self._tasks = _folder(Path(data), split)
        elif corpus is None and questions is None:
            self.index, self._tasks = atlas().index, atlas().tasks
        elif corpus is None or questions is None:
            raise AgentGymError("Search needs both corpus= and questions=, or data=, or none of them")
        else:
            self.index = _index(str(corpus)) if isinstance(corpus, str | Path) else SearchIndex(read_pages(corpus))
            self._tasks = read_questions(questions, split)
        order = ("train", "validation", "dev", "test")
        self.splits = tuple(sorted(self._tasks, key=lambda name: (order.index(name) if name in order else 9, name)))

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks.get(split, ())

    def begin(self, task: Task) -> None:
        self.state = SearchState()

    @tool
    def search(self, query: str) -> str:
        """Find pages by words. Shows titles, each with the sentence that fits best.

        Args:
            query: a few words, such as the name of a thing and what you want to know of it.
        """
        hits = self.index.search(query, self.top_k)
        self.state = replace(self.state, shown=tuple(hit.title for hit in hits))
        return "\n".join(f"{hit.title}: {hit.snippet}" for hit in hits) or "Nothing found."

    @tool
    def open(self, title: str) -> str:
        """Read a whole page.

        Args:
            title: the title as a search showed it.
        """
        page = self.index.page(title)
        if page is None:
            raise ToolError(f"there is no page titled {title!r}; search for it")
        self.state = replace(self.state, shown=(page.title,))
        return page.text

    @tool(ends=True)
    def answer(self, text: str) -> str:
        """Give the final answer, as short as possible.

        Args:
            text: the answer alone.
        """
        self.state = replace(self.state, answer=text)
        return "Answered."

    def score(self) -> float:
        return 0.0 if self.state.answer is None else exact_match(self.state.answer, self.task.answer)

    def metrics(self) -> dict[str, float]:
        text, answers = self.state.answer or "", self.task.answer
        return {"em": self.score(), "f1": f1(text, answers), "cover_em": cover_match(text, answers) if text else 0.0}

    def gold(self, task: Task) -> list[str]:
        searches = [call("search", query=f"{hop.entity} {hop.relation.query}") for hop in task.data.get("plan", ())]
        return [*searches, call("answer", text=task.answer[0])]

    def key(self) -> str:
        return f"{self.task.id}: {' | '.join(self.state.shown)}"


@cache
def _index(corpus: str) -> SearchIndex:
    return SearchIndex(read_pages(corpus))


@cache
def _folder(folder: Path, split: str) -> tuple[SearchIndex, dict[str, list[Task]]]:
    """``corpus.jsonl`` and all other ``*.jsonl`` files of questions beside it, in the order of their names."""
    tasks: dict[str, list[Task]] = {}
    files = sorted(path for path in folder.glob("*.jsonl") if path.name != "corpus.jsonl")
    if not files:
        raise AgentGymError(f"{folder} holds no files of questions (*.jsonl beside corpus.jsonl)")
    for path in files:
        named = path.stem.split("_")[0]
        for name, found in read_questions(path, named if named in ("train", "dev", "test", "validation") else split).items():
            tasks.setdefault(name, []).extend(found)
    return _index(str(folder / "corpus.jsonl")), tasks
