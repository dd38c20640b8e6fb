"""``agentgym/Search-v0``: multi-hop questions, answered with a search tool over a corpus of pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from agentgym.env import AgentEnv
from agentgym.envs.search.expert import gold_actions
from agentgym.envs.search.grading import cover_match, exact_match, f1
from agentgym.errors import AgentGymError, ToolError
from agentgym.snapshot import Kind, state_digest
from agentgym.task import Task
from agentgym.tool import tool
from agentgym.tools.search import SearchIndex

if TYPE_CHECKING:
    from agentgym.chat import Chat
    from agentgym.envs.rows import Rows
    from agentgym.envs.search.demonstrations import Demonstrations


@dataclass(frozen=True, slots=True)
class SearchState:
    answer: str | None = None
    shown: str = ""  # what the last tool call showed


class Search(AgentEnv):
    """Answer a question with the tools ``search``, ``open`` and ``answer``. Reward: exact match, normalised as in SQuAD.

    Without arguments: questions of one to three hops and comparisons over an atlas of real countries, cities and
    airports. ``corpus`` and ``questions`` take JSON-lines files or rows (such as ``datasets.load_dataset(...)``): a page
    has ``title`` and ``text``; a question has ``question`` and ``answer``, and may have ``id``, ``answer_aliases`` and
    ``split``. ``data`` takes a folder of such files instead: ``corpus.jsonl``, and questions in all others.
    ``top_k`` pages are shown by one search. Raises `AgentGymError` where a file has a bad line.
    """

    system = "Answer the question with the tools search, open and answer."
    snapshots: Kind = "value"
    state: SearchState

    def __init__(
        self,
        corpus: Rows | None = None,
        questions: Rows | None = None,
        *,
        data: str | Path | None = None,
        top_k: int = 1,
        max_turns: int = 6,
    ) -> None:
        super().__init__()
        if top_k < 1 or max_turns < 1:
            raise AgentGymError(f"top_k is {top_k} and max_turns is {max_turns}: a search shows at least 1 page, an episode has 1 turn")
        if (corpus is None) != (questions is None) or (data is not None and corpus is not None):
            raise AgentGymError("Search takes corpus= and questions= together, or data= alone, or none of them")
        self.top_k, self.max_turns = top_k, max_turns
        self._tasks: Callable[[str], Sequence[Task]]
        if data is None and (corpus is None or questions is None):
            self.index, self.splits, self._tasks = _atlas()
            return
        if data is not None:
            self.index, by_split = _folder(Path(data))
        elif corpus is not None and questions is not None:
            self.index, by_split = _index(corpus), _questions(questions)
        self.splits = tuple(by_split)
        self._tasks = lambda split: by_split.get(split, ())

    def tasks(self, split: str) -> Sequence[Task]:
        return self._tasks(split)

    def begin(self, task: Task) -> None:
        self.state = SearchState()

    @tool
    def search(self, query: str) -> str:
        """Find pages by words. Shows titles, each with the sentence that fits best.

        Args:
            query: a few words, such as the name of a thing and what you want to know of it.
        """
        hits = self.index.search(query, self.top_k)
        return self._show("\n".join(f"{hit.title}: {hit.snippet}" for hit in hits) or "Nothing found.")

    @tool
    def open(self, title: str) -> str:
        """Read a whole page.

        Args:
            title: the title as a search showed it.
        """
        text = self.index.text(title)
        if text is None:
            raise ToolError(f"there is no page titled {title!r}; search for it")
        return self._show(f"{title}: {text}")

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
        answer, accepted = self.state.answer, self.task.answer
        if answer is None:
            found = {"em": 0.0, "f1": 0.0, "cover_em": 0.0}
        else:
            found = {"em": exact_match(answer, accepted), "f1": f1(answer, accepted), "cover_em": cover_match(answer, accepted)}
        if "compares" in self.task.data:
            found["em_comparing" if self.task.data["compares"] else "em_chains"] = found["em"]
        if self.task.data.get("gold_in_corpus"):  # a set whose corpus lacks pages that some of its questions need
            found["em_gold_in_corpus"] = found["em"]
        return found

    def gold(self, task: Task) -> list[str]:
        return gold_actions(task)

    def key(self) -> str:
        """Equal where the last tool call of the same task showed the same."""
        return state_digest(self.task.id, self.state.shown)

    def demonstrations(self, chat: Chat | None, seed: int, mistakes: float) -> Demonstrations:
        """Episodes of an expert on the atlas that errs with probability ``mistakes`` at each search, for a warm start."""
        from agentgym.envs.search.demonstrations import Demonstrations

        return Demonstrations(Search, chat, seed, mistakes)

    def _show(self, text: str) -> str:
        self.state = replace(self.state, shown=text)
        return text


def _atlas() -> tuple[SearchIndex, tuple[str, ...], Callable[[str], Sequence[Task]]]:
    from agentgym.envs.search.atlas import load_atlas
    from agentgym.envs.search.questions import SIZES, atlas_tasks

    return load_atlas().index, tuple(SIZES), atlas_tasks


def _index(corpus: Rows) -> SearchIndex:
    from agentgym.envs.search.corpus import read_pages

    return _index_of_file(str(corpus)) if isinstance(corpus, str | Path) else SearchIndex(read_pages(corpus))


@cache
def _index_of_file(corpus: str) -> SearchIndex:
    from agentgym.envs.search.corpus import read_pages

    return SearchIndex(read_pages(corpus))


def _questions(questions: Rows) -> dict[str, list[Task]]:
    from agentgym.envs.search.corpus import read_questions

    return read_questions([questions])


@cache
def _folder(folder: Path) -> tuple[SearchIndex, dict[str, list[Task]]]:
    from agentgym.envs.search.corpus import question_files, read_questions

    tasks = read_questions(question_files(folder))
    return _index_of_file(str(folder / "corpus.jsonl")), tasks
