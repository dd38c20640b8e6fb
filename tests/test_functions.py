"""An environment from plain functions."""

from __future__ import annotations

import gymnasium
import pytest

import agentgym
from agentgym import Task, call


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


TASKS = [Task(f"{a}+{b}", f"What is {a} + {b}?", str(a + b)) for a in range(3) for b in range(3)]


@pytest.fixture
def env():
    agentgym.register_functions("test/Sums-v0", [add], TASKS, lambda answer, task: float(answer == task.answer))
    yield agentgym.make("test/Sums-v0")
    del gymnasium.registry["test/Sums-v0"]


def test_tools_answer_and_grade(env):
    env.reset(options={"task": "1+2"})
    observation, reward, terminated, _, _ = env.step(call("add", a=1, b=2))
    assert (observation, reward, terminated) == ("3", 0.0, False)
    _, reward, terminated, _, _ = env.step(call("answer", text="3"))
    assert (reward, terminated) == (1.0, True)


def test_a_wrong_answer_scores_nothing(env):
    env.reset(options={"task": "1+2"})
    assert env.step(call("answer", text="4"))[1] == 0.0


def test_the_contract_holds(env):
    agentgym.check_env("test/Sums-v0").raise_if_broken()
