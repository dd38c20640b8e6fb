"""A scripted expert for the atlas: its plan is known, and it can be made to err, for demonstrations to learn from."""

from __future__ import annotations

from dataclasses import dataclass

from agentgym.action import call
from agentgym.envs.search.atlas import COUNTRY, OF_COUNTRY, PEOPLE, Hop
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.seeds import Lineage


FAMILIES = ((COUNTRY, PEOPLE), tuple(relation for _, relation in OF_COUNTRY.values()))  # facts of a city, of a country


@dataclass(frozen=True, slots=True)
class Expert:
    """Plays the plan of a task. With probability ``mistakes`` at each search it goes astray, for the rest of the episode:
    it answers with what it holds so far, or asks for another fact of the place and answers with that."""

    mistakes: float = 0.0
    seed: int = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation(text=self.act(prompt))

    def act(self, prompt: Prompt) -> str:
        task, step = prompt.tree.task, prompt.turn.depth
        plan: tuple[Hop, ...] = task.data["plan"]
        rng = Lineage.of(self.seed, prompt.tree.root.seed).rng()
        for done in range(min(step + 1, len(plan))):
            if rng.random() >= self.mistakes:
                continue
            early = done > 0 and not task.data["compares"] and rng.random() < 0.7
            if early:
                return _answer(plan[done - 1].value)
            wrong = _other_fact(plan[done], rng.random())
            if wrong is None:
                continue
            return _search(wrong) if done == step else _answer(_read_value(prompt))
        if step < len(plan):
            return _search(plan[step])
        compared = " and ".join(hop.value for hop in plan) if task.data["compares"] else ""
        return _answer(task.answer[0], compared)


def _search(hop: Hop) -> str:
    return call("search", query=f"{hop.entity} {hop.relation.query}", thought=f"find the {hop.relation.name}")


def _answer(text: str, thought: str = "") -> str:
    return call("answer", text=text, thought=thought or "done")


def _other_fact(hop: Hop, draw: float) -> Hop | None:
    kin = next((family for family in FAMILIES if hop.relation in family), ())
    others = [relation for relation in kin if relation != hop.relation]
    return None if not others else Hop(hop.entity, others[int(draw * len(others))], "")


def _read_value(prompt: Prompt) -> str:
    """What the first hit of the last search says, after its label."""
    first = prompt.turn.observation.split("\n")[0]
    return first.split(": ", 1)[-1].removeprefix("Country in ").removeprefix("City in ").split(": ")[-1].rstrip(".")
