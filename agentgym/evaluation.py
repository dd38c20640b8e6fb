"""Evaluation: k episodes of every task, resumable, with intervals clustered by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from agentgym.chat import Chat
from agentgym.env import AgentEnv
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.outcome import Outcome
from agentgym.policy import Actor
from agentgym.rollout import Limits, Rollout, Start, episode
from agentgym.seeds import Lineage
from agentgym.statistics import Interval, SuccessAtK, clustered_interval, success_at_k
from agentgym.store import RunStore
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree, path, total_reward

TASKS_AT_ONCE = 64
FEWEST_TASKS = 64  # before a figure is precise enough


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished episode. ``reward`` is None where a fault that is not the policy's left it without a verdict."""

    task: str
    reward: float | None
    success: bool
    end: str
    outcomes: dict[str, int]
    turns: int
    tokens: int  # that the policy wrote
    metrics: dict[str, float]
    error: str = ""
    read: int = 0  # tokens, each turn's whole context counted, as servers bill it
    failure: str = ""  # who is to blame, and how it ended: "agent: truncated"; empty for a success
    cut: int = 0  # actions that were longer than they may be


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy does on a set of tasks. Episodes without a verdict are in no average; they are counted in ``lost``."""

    success: SuccessAtK
    reward: Interval
    metrics: dict[str, Interval]
    tasks: int
    episodes: int
    lost: int
    ends: dict[str, int]
    outcomes: dict[str, int]
    turns: float
    tokens: int
    read: int
    cut: int
    failures: dict[str, int]

    def record(self) -> dict[str, Any]:
        return asdict(self)


async def evaluate(
    make_env: Callable[[], AgentEnv],
    actor: Actor,
    tasks: Sequence[Task],
    *,
    chat: Chat | None = None,
    k: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    limits: Limits | None = None,
    store: RunStore | None = None,
    precision: float | None = None,
    done: Callable[[list[Episode]], None] = lambda episodes: None,
) -> tuple[Evaluation, list[Episode]]:
    """Play ``k`` episodes of every task. With a store, tasks that it holds already are not played again, but for those without a verdict.

    With a ``precision``, tasks come in a random order, and no more are played once the 95% interval of success is no wider than that to
    either side: a fixed-width sequential interval (Chow & Robbins 1965), whose measured coverage is in `docs/statistics.md`.
    ``done`` hears the episodes of each batch of tasks.
    """
    if not tasks:
        raise AgentGymError("there are no tasks to evaluate on")
    if precision is not None:
        tasks = Lineage.of(seed, "order").rng().sample(tasks, len(tasks))
    with closing(make_env()) as env:
        best = env.reward_range[1]
    episodes = [Episode(**record) for record in store.read("episodes")] if store else []
    judged = Counter(episode.task for episode in episodes if episode.reward is not None)
    missing = [task for task in tasks if judged[task.id] < k]
    if store is not None and any(judged[one.task] < k for one in episodes):  # a kill came within a task, or a fault that is over now
        episodes = [one for one in episodes if judged[one.task] >= k]
        store.rewrite("episodes", map(asdict, episodes))
    for first in range(0, len(missing), TASKS_AT_ONCE):
        if precision is not None and _precise(episodes, precision):
            break
        batch = missing[first : first + TASKS_AT_ONCE]
        rollout = Rollout(
            make_env,
            Groups(k),
            {"policy": actor},
            chat,
            Lineage.of(seed, "evaluation"),
            limits=limits,
            temperature=temperature,
            committed=store.turn if store else None,
        )
        forest = await rollout.run([Start(task) for task in batch])
        new = [summarise(tree, leaf, best) for tree in forest for leaf in last_turns(tree, k)]
        if store is not None:
            store.append("episodes", *map(asdict, new))
        episodes += new
        done(new)
    return summary(episodes, k), episodes


def _precise(episodes: Sequence[Episode], precision: float) -> bool:
    successes = by_task([one for one in episodes if one.reward is not None], lambda one: float(one.success))
    if len(successes) < FEWEST_TASKS:
        return False
    found = clustered_interval(successes)
    return max(found.high - found.estimate, found.estimate - found.low) <= precision


def last_turns(tree: TurnTree, k: int) -> list[Turn]:
    """The last turns of a task's k episodes, which are all lost where none could begin."""
    return [tree.root] * k if tree.root.end is not None else tree.leaves()


def summarise(tree: TurnTree, leaf: Turn, best: float) -> Episode:
    turns = episode(leaf)
    reward = total_reward(leaf)
    success = reward is not None and reward >= best - 1e-9
    return Episode(
        task=tree.task.id,
        reward=reward,
        success=success,
        end=str(leaf.end),
        outcomes=dict(Counter(str(turn.outcome) for turn in (turns or path(leaf)))),
        turns=len(turns),
        tokens=sum(turn.tokens_written or turn.sampled_tokens or turn.action_tokens for turn in turns),
        read=sum(turn.tokens_read or turn.parent.length for turn in turns if turn.parent is not None),
        failure="" if success else f"{blamed(leaf, success)}: {_manner(leaf)}",
        cut=sum("cut_off" in turn.metrics for turn in turns),
        metrics={name: value for name, value in leaf.metrics.items() if name != "cut_off"},
        error=next((turn.error for turn in reversed(path(leaf)) if turn.error), ""),
    )


def blamed(leaf: Turn, success: bool) -> str:
    """Who is to blame for a failure: whom a metric ``blame_...`` of the episode names, else the agent. Empty for a success."""
    named = (name.removeprefix("blame_") for name, value in leaf.metrics.items() if name.startswith("blame_") and value)
    return "" if success else next(named, "agent")


def _manner(leaf: Turn) -> str:
    """How an episode ended, in a word or two."""
    if not leaf.outcome.blames_policy:
        return str(leaf.outcome)
    return str(leaf.end) if leaf.outcome is Outcome.OK else f"{leaf.end} after {leaf.outcome}"


def summary(episodes: Sequence[Episode], k: int) -> Evaluation:
    judged = [one for one in episodes if one.reward is not None]
    if not judged:
        reasons = Counter(one.error for one in episodes).most_common(1)
        raise AgentGymError(f"no episode has a verdict; the commonest reason: {reasons[0][0] if reasons else 'none played'}")
    successes = by_task(judged, lambda one: one.success)
    fewest = min(map(len, successes.values()))
    names = sorted({name for one in judged for name in one.metrics})
    outcomes: Counter[str] = Counter()
    for one in episodes:
        outcomes.update(one.outcomes)
    return Evaluation(
        success=success_at_k(successes, min(k, fewest)),
        reward=clustered_interval(by_task(judged, lambda one: float(one.reward or 0.0))),
        metrics={name: _metric(name, judged) for name in names},
        tasks=len(successes),
        episodes=len(judged),
        lost=len(episodes) - len(judged),
        ends=dict(Counter(one.end for one in episodes)),
        outcomes=dict(outcomes),
        turns=sum(one.turns for one in judged) / len(judged),
        tokens=sum(one.tokens for one in episodes),
        read=sum(one.read for one in episodes),
        cut=sum(one.cut for one in episodes),
        failures=dict(Counter(one.failure for one in episodes if one.failure).most_common()),
    )


def _metric(name: str, episodes: Sequence[Episode]) -> Interval:
    """Over the episodes that have it: a figure for one type of task says nothing about the others."""
    having = [one for one in episodes if name in one.metrics]
    return clustered_interval(by_task(having, lambda one: one.metrics[name]))


def by_task(episodes: Sequence[Episode], value: Callable[..., Any]) -> Mapping[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for one in episodes:
        values.setdefault(one.task, []).append(value(one))
    return values
