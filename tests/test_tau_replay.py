"""gpt-4o's recorded episodes in tau-bench's airline, played again: equal answers, equal rewards, equal pass^k."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import pytest
from tau_bench import DATA, as_recorded, rows, shared, started

from agentgym import call, format_action
from agentgym.action import Call
from agentgym.envs.airline import Airline
from agentgym.envs.tau.users import ReplayingUser
from agentgym.statistics import success_at_k

# Its task's own actions were changed after the recording, so that it now earns 1.
CHANGED_LATER = {("airline-test-46", 3)}
WHOLE = (50, {1: 0.420, 2: 0.273, 3: 0.220, 4: 0.200})  # tasks, and pass^k of the recorded rewards
HALF = (28, {1: 0.446, 2: 0.292, 3: 0.241, 4: 0.214})


@cache
def recorded_episodes() -> list[dict[str, Any]]:
    return rows("airline/replay_gpt4o.jsonl")


def action_of(event: dict[str, Any]) -> str:
    if event["t"] == "say":
        return call("respond", content=event["content"])
    return format_action(Call(event["name"], json.loads(event["arguments"])))


def replayed(episode: dict[str, Any]) -> tuple[str, float, Counter[str]]:
    """How the episode ends, its reward, and how many answers of whom were compared."""
    opening, *events = episode["events"]
    env = Airline(DATA, ReplayingUser([event["content"] for event in episode["events"] if event["t"] == "user"]))
    started(env, next(task for task in env.tasks("test") if task.id == episode["task"]))
    assert env.task.prompt == opening["content"]
    compared = Counter[str]()
    reward = 0.0
    for done, answered in zip(events[::2], events[1::2], strict=True):
        observation, reward, *_ = env.step(action_of(done))
        assert as_recorded(str(observation), answered["content"]) == answered["content"], (episode["task"], episode["trial"], done)
        compared[answered["t"]] += 1
    return str(env.ended), float(reward), compared


@cache
def all_replayed() -> dict[tuple[str, int], tuple[str, float, Counter[str]]]:
    return {(episode["task"], episode["trial"]): replayed(episode) for episode in recorded_episodes()}


def pass_hat(rewards: dict[tuple[str, int], float], k: int) -> float:
    trials = defaultdict[str, list[bool]](list)
    for (task, _), reward in sorted(rewards.items()):
        trials[task].append(reward == 1.0)
    assert {len(successes) for successes in trials.values()} == {4}
    return success_at_k(trials, k).all_of_k.estimate


@shared
def test_every_recorded_answer_of_a_tool_is_given_again_and_every_episode_ends_as_it_did() -> None:
    compared = sum((counts for _, _, counts in all_replayed().values()), Counter[str]())
    assert compared["result"] == sum(event["t"] == "result" for episode in recorded_episodes() for event in episode["events"]) >= 651
    for episode in recorded_episodes():
        last = episode["events"][-1]["content"]
        ends = last == "Transfer successful" or "###STOP###" in last
        assert all_replayed()[episode["task"], episode["trial"]][0] == ("done" if ends else "truncated"), episode["task"]


@shared
def test_every_recorded_reward_is_given_again() -> None:
    for episode in recorded_episodes():
        which = (episode["task"], episode["trial"])
        assert all_replayed()[which][1] == (1.0 if which in CHANGED_LATER else episode["reward"]), which


@shared
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_hat_k_of_the_replayed_rewards_is_that_of_the_recorded_ones(k: int) -> None:
    recorded = {(episode["task"], episode["trial"]): episode["reward"] for episode in recorded_episodes()}
    again = {which: recorded[which] if which in CHANGED_LATER else reward for which, (_, reward, _) in all_replayed().items()}
    assert pass_hat(again, k) == pass_hat(recorded, k)
    expected = {tasks: figures[k] for tasks, figures in (WHOLE, HALF)}
    assert round(pass_hat(recorded, k), 3) == expected[len(recorded) // 4]


@shared
def test_a_recorded_success_with_one_more_write_earns_nothing() -> None:
    for episode in [episode for episode in recorded_episodes() if episode["reward"] == 1.0][:10]:
        env = Airline(DATA, ReplayingUser([event["content"] for event in episode["events"] if event["t"] == "user"]))
        started(env, next(task for task in env.tasks("test") if task.id == episode["task"]))
        env.step(call("send_certificate", user_id="mia_li_3668", amount=1))
        actions = [action_of(event) for event in episode["events"] if event["t"] in ("say", "call")]
        assert [float(env.step(action)[1]) for action in actions][-1] == 0.0
