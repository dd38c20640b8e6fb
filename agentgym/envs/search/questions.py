"""Questions over the atlas, each with a plan of searches that was tried and leads to the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b

from agentgym.envs.search.atlas import RELATIONS, Atlas, Fact, load_atlas
from agentgym.seeds import Lineage
from agentgym.task import Task

LONGEST_NAME = 8  # characters; longer names have pages too, but no question leads to them
CLEAR_RATIO = 2  # between the two quantities of a comparison, at least
COMMONEST_ANSWER = 0.03  # of the questions with equally many hops, at most, so that guessing earns little
COMPARE = 0
SIZES = {"train": 6000, "validation": 400, "test": 800}
SHARES = {1: 0.25, 2: 0.3, 3: 0.3, COMPARE: 0.15}  # of the questions, by hops
SPLIT_ENDS = {"train": 75, "validation": 80, "test": 100}  # per cent of the entities, cumulative
WORDING = {
    "city": "Which city does {} serve?",
    "country": "In which country is {}?",
    "continent": "On which continent is {}?",
    "capital": "What is the capital of {}?",
    "currency": "What is the currency of {}?",
}
COMPARISONS = {
    "city": ("population", "Which city has more people, {} or {}?"),
    "airport": ("height", "Which airport lies higher, {} or {}?"),
}
_RESERVED = {word for kind, relations in RELATIONS.items() for word in (kind, *relations)}


@cache
def atlas_tasks(split: str) -> tuple[Task, ...]:
    """The questions of a split, in a fixed order; none for a split that does not exist."""
    if split not in SIZES:
        return ()
    atlas = load_atlas()
    chosen: list[Task] = []
    for hops, share in SHARES.items():
        candidates = list(_comparisons(atlas, split) if hops == COMPARE else _chains(atlas, split, hops))
        Lineage.of(0, "atlas", split, hops).rng().shuffle(candidates)
        chosen += _answerable(atlas, candidates, round(SIZES[split] * share))
    Lineage.of(0, "atlas", split, "order").rng().shuffle(chosen)
    return tuple(chosen)


def split_of(entity: str) -> str:
    """The one split whose questions may name this entity."""
    percent = Lineage.of(0, "atlas", "split", entity).seed() % 100
    return next(split for split, end in SPLIT_ENDS.items() if percent < end)


def _answerable(atlas: Atlas, candidates: Sequence[Task], most: int) -> list[Task]:
    """The first candidates of which every fact is found by its search, without too many of one answer."""
    kept: list[Task] = []
    answers: Counter[str] = Counter()
    for task in candidates:
        if len(kept) == most:
            break
        if answers[task.answer[0]] >= max(1, COMMONEST_ANSWER * most):
            continue
        if all(atlas.finds(Fact(*step)) for step in task.data["plan"]):
            kept.append(task)
            answers[task.answer[0]] += 1
    return kept


def _chains(atlas: Atlas, split: str, hops: int) -> Iterator[Task]:
    for kind, entity, place, trail in _trails(atlas, split):
        for relation in RELATIONS[kind]:
            fact = atlas.fact(kind, entity, relation)
            if len(trail) + 1 != hops or relation not in WORDING or not _plain(fact.value):
                continue
            question = WORDING[relation].format(place)
            if fact.value.casefold() not in question.casefold():
                yield _task(split, question, [*trail, fact], fact.value)


def _trails(atlas: Atlas, split: str) -> Iterator[tuple[str, str, str, list[Fact]]]:
    """All ways through the atlas from an entity of the split: kind and name of the place reached, how a question names
    that place, and the facts that lead there."""
    for kind, entries in atlas.places.items():
        for start in entries:
            if split_of(start) != split or not (_plain(start) or kind == "airport"):
                continue
            reached, entity, place, trail = kind, start, f"airport {start}" if kind == "airport" else start, list[Fact]()
            yield reached, entity, place, trail
            while (next_kind := RELATIONS[reached][0]) in atlas.places:
                fact = atlas.fact(reached, entity, next_kind)
                if not _plain(fact.value):
                    break
                reached, entity, trail = next_kind, fact.value, [*trail, fact]
                yield reached, entity, f"the country where {place} lies" if reached == "country" else place, trail


def _comparisons(atlas: Atlas, split: str) -> Iterator[Task]:
    for kind, (relation, wording) in COMPARISONS.items():
        names = [name for name in atlas.places[kind] if split_of(name) == split and (kind == "airport" or _plain(name))]
        rng = Lineage.of(0, "atlas", split, "pairs", kind).rng()
        pairs = {tuple(rng.sample(names, 2)): None for _ in range(SIZES[split])}
        for pair in pairs:
            facts = [atlas.fact(kind, name, relation) for name in pair]
            less, more = sorted(int(fact.value.split()[0]) for fact in facts)
            if 0 < CLEAR_RATIO * less <= more:
                winner = max(facts, key=lambda fact: int(fact.value.split()[0])).entity
                yield _task(split, wording.format(*pair), facts, winner, compares=True)


def _plain(name: str) -> bool:
    """Short, in ASCII letters, longer than an airport's code and without the words of a query."""
    letters = name.isascii() and name.replace(" ", "").isalpha()
    return letters and 3 < len(name) <= LONGEST_NAME and _RESERVED.isdisjoint(name.lower().split())


def _task(split: str, question: str, plan: Sequence[Fact], answer: str, compares: bool = False) -> Task:
    id = blake2b(question.encode(), digest_size=6).hexdigest()
    return Task(id, question, [answer], split, {"plan": [tuple(fact) for fact in plan], "compares": compares})
