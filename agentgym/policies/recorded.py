"""Saved runs judged again: what the policy said is said once more to the environment as it is today, and no policy is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.evaluation import Episode, last_turns, summarise
from agentgym.expand import Command, Event, Extend, Memoryless, Started, Stop, TurnDone
from agentgym.outcome import Outcome
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.rollout import Rollout, Start, episode
from agentgym.seeds import Lineage
from agentgym.store import RunStore
from agentgym.turn import Turn, TurnTree, path

TREES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Rescored:
    """One episode as it was recorded, and as it is judged now. ``strayed``: what it observes is no longer what was recorded."""

    before: Episode
    after: Episode
    strayed: bool

    @property
    def changed(self) -> bool:
        return None not in (self.before.reward, self.after.reward) and self.before.reward != self.after.reward


async def rescore(
    make_env: Callable[[], AgentEnv],
    trees: Sequence[TurnTree],
    *,
    k: int,
    seed: int,
    store: RunStore | None = None,
    done: Callable[[list[Rescored]], None] = lambda episodes: None,
) -> list[Rescored]:
    """Judge the episodes of an evaluation anew, which was played with ``k`` and ``seed``.

    What was lost to a judge is judged; what was lost before the policy had finished stays as it was. Raises `AgentGymError` where
    ``trees`` are none of an evaluation with this seed.
    """
    with closing(make_env()) as env:
        best = env.reward_range[1]
    found: list[Rescored] = []
    for first in range(0, len(trees), TREES_AT_ONCE):
        batch = trees[first : first + TREES_AT_ONCE]
        said = Said(batch)
        committed = store.turn if store else None
        rollout = Rollout(make_env, said, {"policy": said}, None, Lineage.of(seed, "evaluation"), committed=committed)
        again = await rollout.run([Start(tree.task, tree.tags) for tree in batch])
        new = [one for old, tree in zip(batch, again, strict=True) for one in _judged(said, old, tree, k, best)]
        if store is not None:
            store.append("episodes", *(asdict(one.after) for one in new))
        found += new
        done(new)
    return found


class Said(Memoryless):
    """Actor and expander of a replay: at each turn it says what was said there, and it ends what was ended from outside."""

    forks = False

    def __init__(self, trees: Sequence[TurnTree]) -> None:
        self.recorded = {tree.root.seed: tree.root for tree in trees}  # by the seed of the turn that replays it

    def plan(self, forest: Sequence[TurnTree], event: Event) -> Iterable[Command]:
        match event:
            case Started(tree):
                if tree.root.seed not in self.recorded:
                    raise AgentGymError(f"task {tree.task.id} was not recorded with this seed: give the seed of the run")
                yield Extend(tree, tree.root, len(_next(self.recorded[tree.root.seed])))
            case TurnDone(tree, turn):
                old = self.recorded[turn.seed]
                yield Extend(tree, turn) if _next(old) else Stop(tree, turn, verdict=_finished(old))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        following = _next(self.recorded[prompt.turn.seed])
        old = next((turn for turn in following if turn.seed == sampling.seed), following[0])
        self.recorded[sampling.seed] = old
        if not (old.action or _finished(old)):
            raise InfrastructureError(f"the policy said nothing here: {old.error}")
        return Generation(text=old.action)


def _finished(last: Turn) -> bool:
    """Whether nothing but a judge cut the episode off."""
    return last.outcome.blames_policy or last.outcome is Outcome.JUDGE


def _next(turn: Turn) -> list[Turn]:
    """The actions taken after ``turn``. Where a chat template rewrote history, they stand below the rewriting."""
    acting = [child for child in turn.children if child.author != "env" and child.executed]
    return acting or [below for child in turn.children if child.restarts for below in _next(child)]


def _judged(said: Said, old: TurnTree, new: TurnTree, k: int, best: float) -> list[Rescored]:
    ended = {id(said.recorded[leaf.seed]): leaf for leaf in new.leaves()}  # by the recorded turn where it ends now
    found = []
    for leaf in last_turns(old, k):
        before = summarise(old, leaf, best)
        here = next((turn for turn in reversed(path(leaf)) if id(turn) in ended), None)
        if leaf is old.root or here is None or not _finished(leaf):
            found.append(Rescored(before, before, strayed=False))
            continue
        again = ended[id(here)]
        if leaf.end == "budget" and again.end == "truncated":  # by this replay, which knows no tokens
            again.end = leaf.end
        after = replace(summarise(new, again, best), tokens=before.tokens, read=before.read)
        found.append(Rescored(before, after, [t.observation for t in episode(again)] != [t.observation for t in episode(leaf)]))
    return found
