"""The environment kernel: a real Gymnasium environment, text in and text out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from broken_envs import TASKS, Good, GoodCopy
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from agentgym import (
    Action,
    AgentEnv,
    AgentGymError,
    Call,
    InfrastructureError,
    Lineage,
    Outcome,
    Reply,
    Task,
    ToolError,
    call,
    format_action,
    make,
    register,
    tool,
)

ID = "test/House-v0"
if ID not in gymnasium.registry:
    register(ID)(Good)


def test_gymnasiums_own_check_passes() -> None:
    for env in (Good(), GoodCopy()):
        check_env(env, skip_render_check=True)


def test_gymnasium_makes_it_and_its_wrappers_play_it() -> None:
    env = gymnasium.make(ID)
    observation, info = env.reset(seed=0, options={"task": "t5"})
    assert (observation, info["task"]) == ("Which colour has the hall?", "t5")
    assert env.step(call("look", room="hall"))[0] == "The hall is red."
    *_, terminated, truncated, last = env.step(call("answer", text="red"))
    assert (terminated, truncated, last["outcome"]) == (True, False, Outcome.OK)
    assert isinstance(make(ID), Good)


def test_a_specification_survives_json() -> None:
    spec = gymnasium.spec(ID)
    read = EnvSpec.from_json(spec.to_json())
    assert read == spec
    assert gymnasium.make(read).reset(seed=3)[0] == gymnasium.make(ID).reset(seed=3)[0]


@pytest.mark.parametrize(("mode", "how"), [("sync", {}), ("async", {"shared_memory": False})])
def test_vector_environments_play_it(mode: str, how: dict[str, Any]) -> None:
    envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=mode, vector_kwargs=how)
    try:
        single = Good()
        observations, _ = envs.reset(seed=[4, 5])
        assert list(observations) == [single.reset(seed=seed)[0] for seed in (4, 5)]
        observations, rewards, terminated, _, _ = envs.step([call("look", room="hall"), call("answer", text="none")])
        assert list(observations) == ["The hall is red.", "Answered."]
        assert (list(rewards), list(terminated)) == ([0.0, 0.0], [False, True])
    finally:
        envs.close()


def test_reset_gives_prompt_messages_and_tools() -> None:
    env = Good()
    env.system = "You are in a house."
    observation, info = env.reset(seed=0)
    assert info["messages"] == [{"role": "system", "content": env.system}, {"role": "user", "content": observation}]
    assert [spec["function"]["name"] for spec in info["tools"]] == ["look", "note", "notes", "dice", "answer"]


def test_a_turn_gives_one_message_for_each_call() -> None:
    env = Good()
    env.reset(seed=0)
    observation, _, _, _, info = env.step(format_action(Call("look", {"room": "hall"}), Call("notes", {})))
    assert observation == "The hall is red.\n[]"
    assert info["messages"] == [
        {"role": "tool", "name": "look", "content": "The hall is red."},
        {"role": "tool", "name": "notes", "content": "[]"},
    ]


def test_equal_seeds_give_equal_episodes_and_the_next_resets_follow() -> None:
    def episodes() -> list[str]:
        env = Good()
        first = env.reset(seed=11)[0]
        return [first, *(env.reset()[0] for _ in range(20))]

    assert episodes() == episodes()
    assert len(set(episodes())) > 2


def test_unseeded_environments_differ() -> None:
    assert len({Good().reset()[0] for _ in range(40)}) > 1


def test_a_lineage_sets_all_draws() -> None:
    def dice(lineage: Lineage) -> str:
        env = Good()
        env.reset(options={"task": TASKS[0], "lineage": lineage})
        return str(env.step(call("dice", sides=10**9))[0])

    assert dice(Lineage.of(1, "a")) == dice(Lineage.of(1, "a"))
    assert dice(Lineage.of(1, "a")) != dice(Lineage.of(1, "b"))


def test_draws_of_different_turns_differ_and_do_not_depend_on_each_other() -> None:
    env, other = Good(), Good()
    for each in (env, other):
        each.reset(options={"task": TASKS[0], "lineage": Lineage.of(1)})
    first, second = (env.step(call("dice", sides=10**9))[0] for _ in range(2))
    other.step("")
    assert first != second
    assert other.step(call("dice", sides=10**9))[0] == second


def test_two_calls_of_one_turn_draw_apart() -> None:
    env = Good()
    env.reset(options={"task": TASKS[0], "lineage": Lineage.of(1)})
    thrown = env.step(format_action(*(Call("dice", {"sides": 10**9}) for _ in range(3))))[0].split("\n")
    assert len(set(thrown)) == 3


def test_global_generators_are_neither_read_nor_moved() -> None:
    before = random.getstate(), repr(np.random.get_state())
    env = Good()
    env.reset(seed=0)
    env.step(call("dice"))
    assert (random.getstate(), repr(np.random.get_state())) == before


@pytest.mark.parametrize(
    ("action", "words", "outcome"),
    [
        ("words", "no tool call", Outcome.MODEL_ERROR),
        ("<tool_call>{</tool_call>", "not JSON", Outcome.MODEL_ERROR),
        (call("fly"), "no tool named 'fly'. Tools: look, note", Outcome.MODEL_ERROR),
        (call("look"), "look: room: field required", Outcome.MODEL_ERROR),
        (call("look", room="attic"), "there is no attic", Outcome.TOOL_ERROR),
    ],
)
def test_a_bad_action_is_answered_and_the_episode_goes_on(action: str, words: str, outcome: Outcome) -> None:
    env = Good()
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert words in observation
    assert observation.startswith("Error: ")
    assert (reward, terminated, truncated, info["outcome"]) == (0.0, False, False, outcome)


def test_the_first_fault_of_a_turn_is_its_outcome() -> None:
    env = Good()
    env.reset(seed=0)
    calls = Call("look", {"room": "attic"}), Call("fly", {}), Call("notes", {})
    assert env.step(format_action(*calls))[4]["outcome"] is Outcome.TOOL_ERROR


def test_calls_after_one_that_ends_are_not_made() -> None:
    env = Good()
    env.reset(seed=0, options={"task": "t5"})
    _, reward, terminated, _, info = env.step(format_action(Call("answer", {"text": "red"}), Call("answer", {"text": "blue"})))
    assert (reward, terminated, len(info["messages"])) == (1.0, True, 1)


def test_the_episode_is_truncated_at_its_last_turn_and_scored() -> None:
    env = GoodCopy()
    env.reset(seed=0)
    seen = [env.step("")[1:4] for _ in range(5)]
    assert seen == [(0.0, False, False)] * 4 + [(-1.0, False, True)]


def test_ending_at_the_last_turn_is_no_truncation() -> None:
    env = Good()
    env.reset(seed=0)
    for _ in range(5):
        env.step("")
    assert env.step(call("answer", text="red"))[2:4] == (True, False)


def test_calls_beyond_the_limit_are_refused() -> None:
    env = Good()
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(format_action(*[Call("note", {"text": "a"})] * 10))
    assert [message["content"] for message in info["messages"]] == ["Noted."] * 8 + ["Error: the limit of 8 tool calls is reached."] * 2
    assert (terminated, truncated, len(env.state.notes)) == (False, True, 8)


@pytest.mark.parametrize("last", [call("answer", text="red"), ""])
def test_a_step_after_the_end_raises_until_the_next_reset(last: str) -> None:
    env = Good()
    with pytest.raises(AgentGymError, match="before the first reset"):
        env.step("")
    env.reset(seed=0)
    while env.ended is None:
        env.step(last)
    for _ in range(2):
        with pytest.raises(AgentGymError, match=r"after the end \((done|truncated)\): call reset\(\) first"):
            env.step("")
    env.reset()
    env.step("")


class Faulty(Good):
    fault: Exception | None = None

    def begin(self, task: Task) -> None:
        super().begin(task)
        if self.fault is not None and task.id == "t1":
            raise self.fault

    @tool
    def dice(self, sides: int = 6) -> int:
        """Throw a die."""
        raise self.fault or AssertionError


@pytest.mark.parametrize("error", [ToolError("no"), ValueError("no"), KeyError("no"), ZeroDivisionError("no")])
def test_a_tools_refusal_is_read_by_the_policy(error: Exception) -> None:
    env = Faulty()
    env.fault = error
    env.reset(seed=0, options={"task": "t0"})
    observation, _, _, _, info = env.step(call("dice"))
    assert "no" in observation
    assert info["outcome"] is Outcome.TOOL_ERROR


@pytest.mark.parametrize("error", [InfrastructureError("down"), RuntimeError("bug"), TypeError("bug")])
def test_a_fault_of_the_environment_is_raised_and_ends_the_episode(error: Exception) -> None:
    env = Faulty()
    env.fault = error
    env.reset(seed=0, options={"task": "t0"})
    with pytest.raises(type(error), match=str(error)):
        env.step(call("dice"))
    with pytest.raises(AgentGymError, match=r"an error in step\(\)"):
        env.step("")
    with pytest.raises(type(error), match=str(error)):
        env.reset(options={"task": "t1"})
    with pytest.raises(AgentGymError, match=r"an error in begin\(\)"):
        env.step("")


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    class Broken(Good):
        def score(self) -> float:
            return float("nan")

    env = Broken()
    env.reset(seed=0, options={"task": "t2"})
    with pytest.raises(AgentGymError, match="Broken, task t2: reward nan is not finite"):
        env.step(call("answer", text=""))


def test_a_tool_may_reply_with_reward_and_end() -> None:
    class Paying(Good):
        @tool
        def dice(self, sides: int = 6) -> Reply:
            """Throw a die."""
            return Reply("You lose.", reward=0.25, ends=sides == 1)

    env = Paying()
    env.reset(seed=0)
    assert env.step(format_action(Call("dice", {}), Call("dice", {"sides": 1})))[:3] == ("You lose.\nYou lose.", 0.5, True)


def test_stopping_from_outside_scores_as_it_stands() -> None:
    env = GoodCopy()
    env.reset(seed=0, options={"task": "n2"})
    env.step(call("save", coins=2))
    assert env.stop("budget") == (1.0, {})
    with pytest.raises(AgentGymError, match=r"after the end \(budget\)"):
        env.step("")


def test_a_score_that_is_no_number_is_refused_also_when_stopped_from_outside() -> None:
    class Lost(GoodCopy):
        def score(self) -> float:
            return float("nan")

    env = Lost()
    env.reset(seed=0)
    with pytest.raises(AgentGymError, match="reward nan is not finite"):
        env.stop("budget")


def test_tasks_are_chosen_by_object_id_and_split() -> None:
    env = Good()
    mine = Task("mine", "Anything?", "no")
    assert env.reset(seed=0, options={"task": mine})[1]["task"] == "mine"
    assert env.reset(seed=0, options={"task": "t3"})[1]["task"] == "t3"
    with pytest.raises(AgentGymError, match="no task 'missing' in split 'train'"):
        env.reset(seed=0, options={"task": "missing"})


def test_an_empty_split_is_named() -> None:
    class Empty(Good):
        splits = ("train", "test")

        def tasks(self, split: str) -> Sequence[Task]:
            return () if split == "test" else TASKS

    with pytest.raises(AgentGymError, match="Empty has no tasks in split 'test'; splits: train, test"):
        Empty().reset(seed=0, options={"split": "test"})


def test_tools_are_found_in_the_order_of_their_definition_base_classes_first() -> None:
    class More(Good):
        notes = None  # type: ignore[assignment]

        @tool
        def shout(self) -> str:
            """Shout."""
            return "!"

        @tool
        def look(self, room: str) -> str:
            """Look no more."""
            return "dark"

    def count(text: str) -> int:
        """Count letters."""
        return len(text)

    class WithFunction(More):
        def __init__(self) -> None:
            super().__init__(tools=[count])

    env = WithFunction()
    assert [each.name for each in env.tools] == ["look", "note", "dice", "answer", "shout", "count"]
    env.reset(seed=0)
    assert env.step(call("look", room="hall"))[0] == "dark"
    assert env.step(call("count", text="abc"))[0] == "3"


def test_an_environment_may_answer_actions_itself() -> None:
    class Echo(AgentEnv):
        def tasks(self, split: str) -> Sequence[Task]:
            return [Task("e", "Say it.")]

        def act(self, action: Action) -> Reply:
            return Reply(action.content, reward=0.5, ends=True)

    env = Echo()
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("hello")
    assert (observation, reward, terminated) == ("hello", 0.5, True)
    assert info["messages"] == [{"role": "user", "content": "hello"}]


def test_the_spaces_take_any_text() -> None:
    env = Good()
    assert env.action_space.contains("ß 漢字 \n <tool_call>")
    assert not env.action_space.contains(3)
    assert env.observation_space.contains("")
