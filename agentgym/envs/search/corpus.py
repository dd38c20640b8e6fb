"""Pages and questions from files or rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, field_validator

from agentgym.envs.rows import Rows, name_of, read
from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.tools.search import Page

SPLITS = ("train", "validation", "dev", "test")


class PageRow(BaseModel):
    title: str = Field(min_length=1)
    text: str = Field(validation_alias=AliasChoices("text", "contents"))


class QuestionRow(BaseModel):
    """One question of HotpotQA, 2WikiMultiHopQA, MuSiQue, Bamboogle, StrategyQA or the like.

    ``gold_in_corpus``: whether the corpus holds all pages that the answer needs, where the set says so.
    """

    id: str | None = Field(None, validation_alias=AliasChoices("id", "_id", "qid"), coerce_numbers_to_str=True)
    question: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1, validation_alias=AliasChoices("answer", "golden_answers", "answers"))
    answer_aliases: list[str] = []
    gold_in_corpus: bool | None = None
    split: str | None = None

    @field_validator("answers", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """StrategyQA answers by a truth value; some sets give a number, or a list of equal answers."""
        return [_as_text(item) for item in (value if isinstance(value, list) else [value])]

    @field_validator("answers")
    @classmethod
    def _not_blank(cls, answers: list[str]) -> list[str]:
        if not all(answer.strip() for answer in answers):
            raise ValueError("an answer is blank")
        return answers


def read_pages(rows: Rows) -> list[Page]:
    pages = [Page(row.title, row.text) for _, row in read(rows, PageRow)]
    if not pages:
        raise AgentGymError(f"{name_of(rows)} holds no pages")
    return pages


def read_questions(sources: Sequence[Rows]) -> dict[str, list[Task]]:
    """Tasks by split. A row that names no split belongs to that of its file's name (``dev_context.jsonl``), else test."""
    tasks: dict[str, list[Task]] = {}
    places: dict[tuple[str, str], str] = {}
    for rows in sources:
        default = _split_by_name(rows)
        for number, (place, row) in enumerate(read(rows, QuestionRow), start=1):
            id, split = row.id or str(number), row.split or default
            if (split, id) in places:
                raise AgentGymError(f"{place}: the id {id!r} stands at {places[split, id]} already; give it another")
            places[split, id] = place
            data = row.model_dump(include={"gold_in_corpus"}, exclude_none=True)
            tasks.setdefault(split, []).append(Task(id, row.question, [*row.answers, *row.answer_aliases], split, data))
    if not tasks:
        raise AgentGymError(f"{' and '.join(map(name_of, sources))}: no questions")
    return {split: tasks[split] for split in sorted(tasks, key=_rank)}


def question_files(folder: Path) -> list[Path]:
    """All ``*.jsonl`` files beside ``corpus.jsonl``, in the order of their names."""
    files = sorted(path for path in folder.glob("*.jsonl") if path.name != "corpus.jsonl")
    if not files:
        raise AgentGymError(f"{folder} holds no files of questions: put *.jsonl files beside its corpus.jsonl")
    return files


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int | float) else value


def _split_by_name(rows: Rows) -> str:
    first = Path(rows).stem.split("_")[0] if isinstance(rows, str | Path) else ""
    return first if first in SPLITS else "test"


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)
