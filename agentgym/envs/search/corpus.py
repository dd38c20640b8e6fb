"""Pages and questions from files or rows: every bad line is named with its file, number and reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.tools.search import Page

Rows = str | Path | Iterable[Mapping[str, Any]]
Row = TypeVar("Row", bound=BaseModel)


class PageRow(BaseModel):
    title: str = Field(min_length=1)
    text: str = Field(validation_alias=AliasChoices("text", "contents"))


class QuestionRow(BaseModel):
    """One question of HotpotQA, 2WikiMultiHopQA, MuSiQue, Bamboogle, StrategyQA or the like."""

    id: str | None = Field(None, validation_alias=AliasChoices("id", "_id", "qid"), coerce_numbers_to_str=True)
    question: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1, validation_alias=AliasChoices("answer", "golden_answers", "answers"))
    answer_aliases: list[str] = []
    split: str | None = None

    @field_validator("answers", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """StrategyQA answers by a truth value; some sets give a list of equal answers."""
        values = value if isinstance(value, list) else [value]
        return [("yes" if item else "no") if isinstance(item, bool) else item for item in values]


def read_pages(rows: Rows) -> list[Page]:
    pages = [Page(row.title, row.text) for row in _read(rows, PageRow)]
    if not pages:
        raise AgentGymError(f"{_name(rows)} holds no pages")
    return pages


def read_questions(rows: Rows, split: str) -> dict[str, list[Task]]:
    """Tasks by split. A row without a split of its own belongs to ``split``."""
    tasks: dict[str, list[Task]] = {}
    seen: set[str] = set()
    for number, row in enumerate(_read(rows, QuestionRow), start=1):
        id = row.id or f"{number}"
        if id in seen:
            raise AgentGymError(f"{_name(rows)}, question {number}: the id {id!r} occurs twice")
        seen.add(id)
        answers = [*row.answers, *row.answer_aliases]
        tasks.setdefault(row.split or split, []).append(Task(id, row.question, answers, row.split or split))
    if not tasks:
        raise AgentGymError(f"{_name(rows)} holds no questions")
    return tasks


def _read(rows: Rows, model: type[Row]) -> Iterator[Row]:
    for place, value in _values(rows):
        try:
            yield model.model_validate(value)
        except ValidationError as error:
            reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors())
            raise AgentGymError(f"{place}: {reasons}") from None


def _values(rows: Rows) -> Iterator[tuple[str, Any]]:
    if not isinstance(rows, str | Path):
        yield from ((f"row {number}", dict(row)) for number, row in enumerate(rows, start=1))
        return
    try:
        with open(rows, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{rows}, line {number}", orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise AgentGymError(f"{rows}, line {number}: not JSON ({error})") from None
    except OSError as error:
        raise AgentGymError(f"{rows} cannot be read: {error.strerror}") from error


def _name(rows: Rows) -> str:
    return str(rows) if isinstance(rows, str | Path) else "the given rows"
