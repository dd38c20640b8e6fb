"""An environment from plain functions."""

from __future__ import annotations

import threading

import gymnasium
import pytest

import agentgym
from agentgym import Call, FunctionEnv, Task, call, format_action, tool


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


def test_read_only_calls_of_a_turn_run_together_and_keep_their_order():
    both_are_in = threading.Barrier(2)

    @tool(effect="read")
    def look(name: str) -> str:
        """Wait for another look."""
        both_are_in.wait(timeout=20)
        return name

    env = FunctionEnv([look, add], TASKS, lambda answer, task: 0.0, blocking=True)
    env.reset(seed=0)
    calls = [Call("look", {"name": "a"}), Call("look", {"name": "b"}), Call("add", {"a": 1, "b": 2}), Call("add", {"a": 2, "b": 2})]
    assert env.step(format_action(*calls))[0] == "a\nb\n3\n4"
    assert env.calls == 4


@pytest.mark.parametrize("blocking", [False, True])
def test_a_tool_that_stops_an_iteration_fails_as_one_that_raises_anything_else(blocking):
    """A future cannot hold a StopIteration, and whoever waits for it would wait for ever."""

    @tool(effect="read")
    def first() -> str:
        """The first of none."""
        return next(iter(()))

    env = FunctionEnv([first], TASKS, lambda answer, task: 0.0, blocking=blocking)
    for calls in ([Call("first", {})], [Call("first", {})] * 2):
        env.reset(seed=0)
        with pytest.raises(RuntimeError, match="first raised StopIteration"):
            env.step(format_action(*calls))


def test_calls_draw_the_same_together_as_one_after_another():
    class Draws(agentgym.AgentEnv):
        max_calls = 5

        def tasks(self, split):
            return TASKS

        @tool(effect="read")
        def draw(self) -> int:
            """Draw."""
            return self.rng("draw").randrange(10**9)

    class Waits(Draws):
        blocking = True

    def drawn(cls, *counts):
        env = cls()
        env.reset(seed=3, options={"task": TASKS[0]})
        return [env.step(format_action(*[Call("draw", {})] * count))[0] for count in counts], env.calls

    assert drawn(Draws, 3, 1) == drawn(Waits, 3, 1)
    assert len(set(drawn(Waits, 3)[0][0].split())) == 3
    assert drawn(Draws, 7) == drawn(Waits, 7)  # with the limit in the middle of a turn
