"""State digests and forks."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from broken_envs import Good, GoodCopy
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import AgentEnv, AgentGymError, SnapshotMismatch, call
from agentgym.snapshot import state_digest


@dataclass
class Cart:
    items: list[str] = field(default_factory=list)
    _coupon: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Place:
    x: Any
    y: Any = 0


class Loose:
    def __init__(self, value: int) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


UNEQUAL: list[Any] = [
    *(None, 0, "0", True, 1, 1.5, 2**70, 2**70 + 1, "a", b"a", ["a"], [["a"]], {"a": 1}, {"a": 2}, {"b": 1}),
    *({1, 2}, {1, 3}, {(1, 2): 2**70}, {(1, 3): 2**70}, 1j, range(3)),
    *(Cart(), Cart(["a"]), Cart(_coupon="a"), Point(1), Point(2), Place(1), Point(2**70), Place(2**70)),
    *(Loose(1), Loose(2), Slotted(1), Slotted(2)),
    *(random.Random(1), random.Random(2), np.random.default_rng(1), np.random.default_rng(2)),
    *(np.arange(3), np.arange(3.0), np.arange(4), np.arange(4).reshape(2, 2)),
]


def test_different_states_have_different_digests() -> None:
    digests = [state_digest(value) for value in UNEQUAL]
    assert len(set(digests)) == len(UNEQUAL)


def test_equal_states_have_equal_digests() -> None:
    assert state_digest({"a": 1, "b": 2}) == state_digest({"b": 2, "a": 1})
    assert state_digest({(1, 2): 0, (0, 1): 2**70}) == state_digest({(0, 1): 2**70, (1, 2): 0})
    assert state_digest(Cart(["a"])) == state_digest(Cart(["a"]))
    assert state_digest(random.Random(5)) == state_digest(random.Random(5))


def test_a_drawn_number_changes_the_digest_of_its_generator() -> None:
    generator = random.Random(1)
    before = state_digest(generator)
    generator.random()
    assert state_digest(generator) != before


def test_digests_are_the_same_in_every_process() -> None:
    state = "({'x', 'y', 'z'}, frozenset({frozenset({'a', 'b'}), frozenset({'c', 'd'})}), {'k': {'p', 'q'}}, {(1, 'r'): {'s', 't'}})"
    code = f"from agentgym.snapshot import state_digest; print(state_digest({state}))"
    seen = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(seen) == 1


def test_a_state_of_no_known_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="may not hold"):
        state_digest(object())


ACTIONS = [
    *(call("look", room="hall"), call("note", text="a"), call("note", text="b"), call("notes"), call("dice"), ""),
    *(call("answer", text="red"), call("save", coins=1), call("save", coins=2, purse="right"), "stop"),
]


def follow(env: AgentEnv, actions: list[str]) -> list[Any]:
    seen = []
    for action in actions:
        if env.ended:
            break
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((observation, reward, terminated, truncated))
    return seen


plans = st.lists(st.sampled_from(ACTIONS), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([Good, GoodCopy]), st.integers(0, 9), plans, plans, plans)
def test_a_fork_has_its_parents_future_and_leaves_the_parent_alone(
    kind: type[AgentEnv], seed: int, before: list[str], after: list[str], other: list[str]
) -> None:
    alone, parent, child = kind(), kind(), kind()
    for env in (alone, parent):
        env.reset(seed=seed)
        follow(env, before)
    snapshot = parent.snapshot()
    for actions in (other, after):
        child.restore(snapshot)
        seen = follow(child, actions)
    expected = follow(alone, after)
    assert seen == expected
    assert follow(parent, after) == expected
    parent.restore(snapshot)
    assert follow(parent, after) == expected


def test_a_snapshot_of_an_ended_episode_stays_ended() -> None:
    env, other = Good(), Good()
    env.reset(seed=0)
    env.step(call("answer", text="red"))
    other.restore(env.snapshot())
    with pytest.raises(AgentGymError, match=r"after the end \(done\)"):
        other.step("")


def test_the_limits_go_on_in_a_fork() -> None:
    env, fork = Good(), Good()
    env.reset(seed=0)
    follow(env, [call("dice")] * 4)
    fork.restore(env.snapshot())
    assert (fork.turn, fork.calls) == (4, 4)
    assert [truncated for _, _, _, truncated in follow(fork, [""] * 9)] == [False, True]


def test_a_value_state_that_was_changed_is_refused() -> None:
    class Claims(GoodCopy):
        snapshots = "value"

    env = Claims()
    env.reset(seed=0)
    snapshot = env.snapshot()
    env.step(call("save", coins=1))
    with pytest.raises(SnapshotMismatch, match=r"Claims, task n\d, turn 0: the state was changed after its snapshot"):
        env.restore(snapshot)


def test_other_kinds_must_bring_their_own() -> None:
    class Machine(Good):
        snapshots = "sandbox"

    env = Machine()
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match=r"Machine: a 'sandbox' snapshot needs its own snapshot\(\)"):
        env.snapshot()
