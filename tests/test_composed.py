"""Several tasks in one episode, graded together, and questions of which one needs the other's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_rollout import tiny_chat

import agentgym
from agentgym import AgentEnv, AgentGymError, Lineage, Outcome, Rollout, SnapshotMismatch, Start, Task, call, tool
from agentgym.envs.composed import SYMBOLS, Composed, NotComposable, compose, compositions
from agentgym.envs.household import Household
from agentgym.envs.simulated import Simulated
from agentgym.envs.user import UserEnv
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.turn import total_reward


class Shelf(AgentEnv):
    """Put a box on the shelf, under a name of one's own or the one that the task gives; the next task is about that box."""

    max_turns = 3
    max_calls = 4
    snapshots = "value"

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}-{i}", f"Store box {i}, name it {{box}}.", answer=f"b{i}", data={"number": i}) for i in range(9)]

    def begin(self, task: Task) -> None:
        self.state = ""

    @tool(effect="read")
    def look(self) -> str:
        """See what is there."""
        return f"{self.task.prompt} {self.rng('dust').randrange(10**6)}"

    @tool(ends=True)
    def store(self, name: str) -> str:
        """Store the box."""
        self.state = name
        return f"Stored {name}."

    def score(self) -> float:
        return float(self.state == self.task.answer)

    def metrics(self) -> dict[str, float]:
        return {"letters": float(len(self.state))}

    def gold(self, task: Task) -> list[str]:
        return [call("look"), call("store", name=task.answer)]


class Chained(Shelf):
    """The next box gets the name of the last one, with a letter more."""

    def artefact(self) -> str:
        return self.state

    def receive(self, task: Task, artefact: str) -> Task:
        return Task(task.id, task.prompt.replace("{box}", f"{artefact}a"), f"{artefact}a", task.split, task.data)


def begun(env: Composed, number: int = 0) -> Composed:
    env.reset(seed=0, options={"task": env.tasks("train")[number]})
    return env


def returns(env: Composed, *actions: str) -> list[float]:
    return [float(env.step(action)[1]) for action in actions]


def right(env: Composed) -> str:
    return call("store", name=env.inner.task.answer)


# Tasks in one episode.


def test_the_reward_is_for_all_parts_together_and_each_has_its_own_return() -> None:
    for solves, earned in (((True, True, True), 1.0), ((True, False, True), 0.0), ((False, False, False), 0.0)):
        env = begun(Composed(Shelf, 3))
        rewards = []
        for solve in solves:
            _, reward, terminated, _, info = env.step(right(env) if solve else call("store", name="wrong"))
            rewards.append(reward)
        assert (rewards, terminated) == ([0.0, 0.0, earned], True)
        found = info["metrics"]
        assert [found[f"part/{i}"] for i in (1, 2, 3)] == [float(solve) for solve in solves]
        assert found["parts"] == pytest.approx(sum(solves) / 3)
        assert found["letters"] == pytest.approx(sum(2 if solve else 5 for solve in solves) / 3)


def test_the_next_task_stands_below_the_last_reply() -> None:
    env = Composed(Shelf)
    text, info = env.reset(seed=0)
    first, second = env.task.data["parts"]
    assert text == f"Task 1 of 2:\n{first['prompt']}" == info["messages"][-1]["content"]
    text, _, _, _, info = env.step(right(env))
    assert text == f"Stored {env.task.answer[0]}.\n\nTask 2 of 2:\n{second['prompt']}"
    assert [message["role"] for message in info["messages"]] == ["tool", "user"]


def test_what_a_part_made_goes_into_the_next_task() -> None:
    env = begun(Composed(Chained, 3))
    env.step(call("store", name="ann"))
    text, *_ = env.step(call("store", name="anna"))
    assert text.endswith("name it annaa.")
    assert returns(env, call("store", name="annaa")) == [0.0]  # the first name was not the one that was asked for
    env = begun(Composed(Chained, 3))
    name = env.task.answer[0]
    assert returns(env, *(call("store", name=name + "a" * i) for i in range(3)))[-1] == 1.0
    assert env.gold(env.task)[-1] == call("store", name=name + "aa")


@pytest.mark.parametrize("make", [partial(Composed, Shelf, 3), partial(Composed, Chained, 2), partial(Composed, "agentgym/Household-v0")])
def test_every_turn_of_a_gold_play_can_be_forked_and_finished(make: Any) -> None:
    env = begun(make())
    gold = env.gold(env.task)
    for turn, action in enumerate(gold):
        fork = make()
        fork.restore(env.snapshot())
        assert (fork.key(), fork.max_turns, fork.calls) == (env.key(), env.max_turns, env.calls)
        assert returns(fork, *gold[turn:])[-1] == 1.0
        env.step(action)


def test_a_fork_draws_what_its_parent_draws_and_a_changed_one_is_refused() -> None:
    env, fork = begun(Composed(Shelf)), Composed(Shelf)
    env.step(right(env))
    saved = env.snapshot()
    fork.restore(saved)
    assert env.step(call("look"))[0] == fork.step(call("look"))[0]
    object.__setattr__(saved.state[0], "earned", 9.0)
    with pytest.raises(SnapshotMismatch, match="changed after its snapshot"):
        fork.restore(saved)


def test_each_part_draws_its_own() -> None:
    env = begun(Composed(Shelf, 3))
    drawn = []
    for _ in range(3):
        drawn.append(str(env.step(call("look"))[0]).split()[-1])
        env.step(right(env))
    assert len(set(drawn)) == 3


def test_limits_are_those_of_the_parts() -> None:
    env = begun(Composed(Shelf))
    assert (env.max_turns, env.max_calls) == (6, 8)
    ends = [env.step("")[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    env = begun(Composed(Shelf))
    env.step(right(env))
    assert (env.max_turns, env.max_calls) == (4, 5)
    _, _, terminated, truncated, info = env.step(call("look") * 9)
    assert (terminated, truncated, info["outcome"], env.calls) == (False, True, Outcome.MODEL_ERROR, 5)


def test_an_episode_that_is_stopped_counts_the_part_that_it_was_in() -> None:
    env = begun(Composed(Shelf))
    env.step(right(env))
    reward, metrics = env.stop("budget")
    assert (reward, metrics["part/1"], metrics["part/2"], metrics["parts"]) == (0.0, 1.0, 0.0, 0.5)
    env = begun(Composed(UserEnv))
    gold = env.gold(env.task)
    for action in gold[:-1]:  # all but the last word: the phone is connected
        env.step(action)
    assert env.stop("budget")[0] == 1.0


def test_every_task_is_in_one_composition_and_seeds_compose_otherwise() -> None:
    env = Composed(Shelf, 2)
    parts = [part["id"] for task in env.tasks("train") for part in task.data["parts"]]
    assert (len(parts), len(set(parts))) == (8, 8)
    assert [task.id for task in env.tasks("train")] == [task.id for task in Composed(Shelf, 2).tasks("train")]
    assert [task.id for task in env.tasks("train")] != [task.id for task in Composed(Shelf, 2, seed=1).tasks("train")]


def test_the_engine_plays_a_composition_with_tokens_and_forks() -> None:
    env = Composed(Shelf)
    gold = {task.id: env.gold(task) for task in env.tasks("train")}
    actor = Scripted(lambda prompt: gold[prompt.tree.task.id][prompt.turn.depth])
    rollout = Rollout(partial(Composed, Shelf), Groups(2, "agent"), {"agent": actor}, tiny_chat(), Lineage.of(0, "composed"))
    (tree,) = asyncio.run(rollout.run([Start(env.tasks("train")[1])]))
    assert [total_reward(leaf) for leaf in tree.leaves()] == [1.0, 1.0]


class Settled(Shelf):
    def gold(self, task: Task) -> None:
        return None


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(AgentGymError, match="one part at least"):
        Composed(Shelf, 0)
    env = begun(Composed(Settled))
    assert env.gold(env.task) is None
    env = begun(Composed(Simulated, 2))
    with pytest.raises(AgentGymError, match="other tools than the part before it"):
        returns(env, *env.inner.gold(env.inner.task))


@pytest.mark.long
def test_the_contract_holds_for_compositions() -> None:
    agentgym.check_env(partial(Composed, Shelf, 3), gymnasium_check=False).raise_if_broken()
    assert isinstance(Composed("agentgym/Household-v0").inner, Household)


# Questions.


def question(id: str, prompt: str, answer: Any, **data: Any) -> Task:
    return Task(id, prompt, answer, data=data)


TWELVE = question("a", "What is 3 times 4?", "12")
APPLES = question("b", "Tom has 5 apples and buys 15 more. How many has he?", "20", level=2)


def test_the_worked_example_of_two_questions() -> None:
    one = compose(TWELVE, APPLES)
    assert one.prompt == (
        "What is 3 times 4?\n\nLet X be the answer to this question. Y is 7 less than X.\n\n"
        "Tom has Y apples and buys 15 more. How many has he?"
    )
    assert (one.answer, one.id, one.data) == ("20", "a+b", {"level": 2, "composed": ["a", "b"]})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("2", "answer to this question. Y is 3 more than X."),
        (5, "answer to this question. Y equals X."),
        (["1,005", "1005"], "answer to this question. Y is 1000 less than X."),
        ("2.25", "answer to this question. Y is 2.75 more than X."),
        ("-1", "answer to this question. Y is 6 more than X."),
        ("Rome", "number of letters in the answer to this question. Y is 1 more than X."),
        ("St. Louis", "number of letters in the answer to this question. Y is 2 less than X."),
        ("O’Hara-Smith", "number of letters in the answer to this question. Y is 5 less than X."),
        (["São Paulo"], "number of letters in the answer to this question. Y is 3 less than X."),
    ],
)
def test_any_answer_that_decides_a_number_can_hide_one(answer: Any, said: str) -> None:
    assert f"Let X be the {said}" in compose(question("a", "Which?", answer), APPLES).prompt


NO_WORDS = ["\\frac{1}{2}", "x = 3", "12 km", "def f(): pass", {"n": 3}, ["3", {"n": 3}], [["Rome"]], float("nan"), 1e30, b"Rome"]


@pytest.mark.parametrize("answer", ["", None, True, [], "?!", ["Rome", "Roma Capitale"], ["3", "4"], *NO_WORDS])
def test_an_answer_that_decides_no_number_is_rejected(answer: Any) -> None:
    with pytest.raises(NotComposable, match="decides no one number"):
        compose(question("a", "Which?", answer), APPLES)


@pytest.mark.parametrize(
    "prompt",
    ["How many?", "On 2024-05-06?", "Is 3.5 or 1,000 right?", "Give H2O, the 2nd, and 007.", "Twice 4 is 4 and 4?", "At 10:30, 1/2?"],
)
def test_a_second_question_without_a_plain_number_that_stands_once_is_rejected(prompt: str) -> None:
    with pytest.raises(NotComposable, match="no plain integer"):
        compose(TWELVE, question("b", prompt, "1"))


def test_the_smallest_number_is_hidden_and_a_repeated_one_is_not() -> None:
    assert "Of Y and 3 and 3 take 9." in compose(TWELVE, question("b", "Of 7 and 3 and 3 take 9.", "1")).prompt


def test_symbols_do_not_clash() -> None:
    text = compose(TWELVE, question("b", "Let X be 4. Is Z or Y more?", "1")).prompt
    assert "Let A be the answer to this question. B is 8 less than A." in text
    assert "Let X be B." in text
    with pytest.raises(NotComposable, match="all letters are taken"):
        compose(TWELVE, question("b", f"Of 4: {' '.join(SYMBOLS)}", "1"))
    with pytest.raises(NotComposable, match="with itself"):
        compose(TWELVE, TWELVE)


@given(st.integers(-(10**6), 10**6), st.integers(1, 999), st.integers(0, 999))
def test_whoever_knows_the_first_answer_can_read_the_second_question(answer: int, hidden: int, other: int) -> None:
    assume(str(hidden) != str(other) and hidden < other)
    one = compose(question("a", "Which?", str(answer)), question("b", f"Take {hidden} from {other}.", "1"))
    relation = one.prompt.split("\n\n")[1].partition("question. ")[2].removesuffix(".").split(" ")
    difference = 0 if relation[1] == "equals" else Decimal(relation[2]) * (1 if relation[3] == "more" else -1)
    assert one.prompt.split("\n\n")[2].replace("Y", str(answer + difference)) == f"Take {hidden} from {other}."


def test_chains_are_as_deep_as_asked_and_leave_out_what_does_not_fit() -> None:
    tasks = [question(f"q{i}", f"What is {i + 2} plus 1000?", str(i + 1002)) for i in range(9)]
    unfit = [question("w", "Who?", "?"), question("n", "Why?", "7")]
    for depth in (2, 3):
        chains = compositions([*tasks, *unfit], depth)
        assert {len(task.data["composed"]) for task in chains} == {depth}
        used = [name for task in chains for name in task.data["composed"]]
        assert len(used) == len(set(used)) >= 9 // depth * depth - 1
        assert "w" not in used
        assert "n" not in [name for task in chains for name in task.data["composed"][1:]]
    assert compositions(tasks, 2, seed=1) != compositions(tasks, 2) == compositions(tasks, 2)
    with pytest.raises(AgentGymError, match="two questions at least"):
        compositions(tasks, 1)
