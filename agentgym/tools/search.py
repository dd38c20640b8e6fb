"""A search index over titled pages: BM25 by ``bm25s``, with the sentence of each page that fits the query best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
LONGEST_SNIPPET = 240  # characters


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    title: str
    snippet: str


class SearchIndex:
    """BM25 (Robertson and Zaragoza 2009, in the form of Lucene) over title and text; a title counts twice.

    Several pages may share a title, as the passages of one article do. Indexes do not change, so environments share them.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        import bm25s

        self.pages = tuple(pages)
        self._texts: dict[str, list[str]] = {}
        for page in self.pages:
            self._texts.setdefault(_key(page.title), []).append(page.text)
        self._bm25 = bm25s.BM25(method="lucene", backend="numpy")
        documents = [words(f"{page.title} {page.title} {page.text}") for page in self.pages]
        self._bm25.index(documents, show_progress=False)
        self._ids: dict[str, int] = self._bm25.vocab_dict
        self.search = lru_cache(maxsize=16384)(self._search)

    def text(self, title: str) -> str | None:
        """All text under a title, whatever its case; None where there is no such page."""
        texts = self._texts.get(_key(title))
        return None if texts is None else "\n".join(texts)

    def _search(self, query: str, top_k: int) -> tuple[Hit, ...]:
        """The best pages first, equal scores in page order. A page that shares no word with the query is no hit."""
        asked = words(query)
        known = [self._ids[word] for word in asked if word in self._ids]
        if not known:
            return ()
        best = _highest(self._bm25.get_scores_from_ids(known), top_k)
        return tuple(Hit(self.pages[i].title, _excerpt(self.pages[i], asked)) for i in best)


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _key(title: str) -> str:
    return " ".join(title.casefold().split())


def _highest(scores: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the highest positive scores, in falling order, equal ones in rising order of index."""
    least = np.partition(scores, -count)[-count] if count < len(scores) else 0.0
    found = np.flatnonzero((scores >= least) & (scores > 0))
    ranked: list[int] = found[np.argsort(-scores[found], kind="stable")][:count].tolist()
    return ranked


def _excerpt(page: Page, asked: Sequence[str]) -> str:
    """The sentence that holds the most different words of the query beyond the title's, the first of equals."""
    wanted = set(asked).difference(words(page.title))
    sentences = _SENTENCE.split(page.text)
    best = max(sentences, key=lambda sentence: len(wanted.intersection(words(sentence))))
    return best if len(best) <= LONGEST_SNIPPET else best[:LONGEST_SNIPPET].rsplit(" ", 1)[0] + " …"
