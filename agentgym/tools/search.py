"""A search index over titled pages: BM25 by ``bm25s``, with the sentence of each page that fits the query best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import bm25s
import numpy as np

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
    """BM25 (Robertson and Zaragoza 2009, in the form of Lucene) over title and text; a title counts twice."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = list(pages)
        self._by_title = {page.title.casefold(): page for page in reversed(self.pages)}
        documents = [words(f"{page.title} {page.title} {page.text}") for page in self.pages]
        self._bm25 = bm25s.BM25(method="lucene", backend="numpy")
        self._bm25.index(documents, show_progress=False)
        self.search = lru_cache(maxsize=8192)(self._search)

    def page(self, title: str) -> Page | None:
        return self._by_title.get(title.strip().casefold())

    def _search(self, query: str, top_k: int) -> tuple[Hit, ...]:
        """The best pages, best first; equal scores in page order. Pages that share no word with the query are no hits."""
        asked = words(query)
        known = [word for word in asked if word in self._bm25.vocab_dict]
        if not known:
            return ()
        scores = self._bm25.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(Hit(self.pages[i].title, _excerpt(self.pages[i], asked)) for i in best if scores[i] > 0)


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _excerpt(page: Page, asked: Sequence[str]) -> str:
    """The sentence that holds the most different words of the query beyond the title's, the first of equals."""
    wanted = set(asked) - set(words(page.title))
    sentences = _SENTENCE.split(page.text)
    best = max(sentences, key=lambda sentence: len(wanted.intersection(words(sentence))))
    return best if len(best) <= LONGEST_SNIPPET else best[:LONGEST_SNIPPET].rsplit(" ", 1)[0] + " …"
