"""Answers compared as in SQuAD (Rajpurkar et al., arXiv 1606.05250): exact match and token F1 after normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where an accepted answer equals the prediction."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 over the accepted answers."""
    return max((_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers), default=0.0)


def cover_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where an accepted answer stands within the prediction."""
    return float(any(_covers(normalise(prediction), normalise(answer)) for answer in answers))


def _covers(prediction: str, answer: str) -> bool:
    return answer in prediction if answer else not prediction


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * common / (len(prediction) + len(answer))
