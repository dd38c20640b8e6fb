"""A scripted expert for the questions over the atlas, which can be made to err, for demonstrations to learn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from agentgym.action import call, parse_action
from agentgym.envs.search.atlas import RELATIONS, Fact
from agentgym.errors import AgentGymError
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.turn import path

GIVES_UP = 0.7  # of the mistakes that can be either: answer early, rather than ask for something else
_VALUE = re.compile(r": Its \w+ is (.*)\.")


@dataclass(frozen=True, slots=True)
class Expert:
    """Asks for the first fact of the plan that the conversation does not show yet; answers when it shows them all.

    So it knows a good next action in any state, reached by whomever. With probability ``mistakes`` at each search it
    goes astray: it answers with what it holds so far, or asks for another fact and answers with that.
    """

    seed: int = 0
    mistakes: float = 0.0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt, Lineage.of(self.seed, "expert", sampling.seed).rng()))

    def act(self, prompt: Prompt, rng: Random) -> str:
        task, plan = prompt.tree.task, plan_of(prompt.tree.task)
        if not plan:
            raise AgentGymError(f"task {task.id} has no plan in its data: the expert plays the questions over the atlas")
        lines = [line for turn in path(prompt.turn)[1:] for line in turn.observation.split("\n")]
        missing = [fact for fact in plan if not _is_shown(fact, lines)]
        if self.mistakes and _is_stray(prompt.turn.action, plan):
            return _answer_with_last(prompt.turn.observation)
        if not missing:
            return answer_action(task)
        if rng.random() < self.mistakes:
            return _mistake(task, missing[0], rng)
        return search_action(missing[0])


def gold_actions(task: Task) -> list[str]:
    return [*map(search_action, plan_of(task)), answer_action(task)]


def plan_of(task: Task) -> list[Fact]:
    return [Fact(*step) for step in task.data.get("plan", ())]


def search_action(fact: Fact) -> str:
    return call("search", query=fact.query, thought=f"{fact.relation} of {fact.entity}")


def answer_action(task: Task) -> str:
    compared = ", ".join(fact.value for fact in plan_of(task)) if task.data.get("compares") else ""
    return call("answer", text=task.answer[0], thought=compared or "done")


def _mistake(task: Task, fact: Fact, rng: Random) -> str:
    """Give up with the entity at hand, or ask for another of its relations."""
    if fact != plan_of(task)[0] and rng.random() < GIVES_UP:
        return call("answer", text=fact.entity, thought="done")
    relations = next(relations for relations in RELATIONS.values() if fact.relation in relations)
    return search_action(Fact(fact.entity, rng.choice([name for name in relations if name != fact.relation]), ""))


def _is_shown(fact: Fact, lines: Sequence[str]) -> bool:
    return any(line.startswith(f"{fact.entity}: ") and fact.sentence in line for line in lines)


def _is_stray(action: str, plan: Sequence[Fact]) -> bool:
    """Whether the last action was such a mistake: a search for a relation that the plan does not ask of its entity."""
    queries = [call.arguments.get("query") for call in parse_action(action).calls if call.name == "search"]
    strays = {
        f"{fact.entity} {other}"
        for fact in plan
        for relations in RELATIONS.values()
        if fact.relation in relations
        for other in relations
    }
    return any(query in strays and query not in {fact.query for fact in plan} for query in queries)


def _answer_with_last(observation: str) -> str:
    found = _VALUE.search(observation)
    return call("answer", text=found.group(1) if found else "unknown", thought="done")
