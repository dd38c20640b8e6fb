"""SPARK: which judge tasks come of a batch, who plays them, and what a checkpoint keeps of them."""

from __future__ import annotations

import asyncio
import io
from collections import Counter as Count
from typing import Any

import numpy as np
import pytest
import torch
from credits import group
from forests import add_turn, random_model
from test_rollout import Counter, play, tasks

from agentgym import Lineage, Rollout, Task, TurnTree, call
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.trainers.credit.answers import answer_of, reasoning_of
from agentgym.trainers.credit.prime import PRIME
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.seams import Hosts, Source
from agentgym.trainers.sources.hosting import Hosting
from agentgym.trainers.sources.judging import AGAIN, PAIR, SINGLE, judging, reflecting
from agentgym.trainers.sources.spark import SPARK, TAG, spark_uniform
from agentgym.trainers.sources.uniform import Uniform
from agentgym.trainers.training import Training
from agentgym.turn import total_reward

TASK = Task("t", "What is 2 + {2}?", "4", data={"level": 1})


def answered(rewards: Any, task: str = "t", name: str = "tree", text: str = "answer") -> TurnTree:
    """Episodes of one action each, which all say something of their own."""
    tree = group(*rewards, task=task, prompt=f"Do {task}.", name=name)
    for place, leaf in enumerate(tree.leaves()):
        leaf.action = f"<think>\nthought {place}\n</think>\n{text} {place}" if text else ""
    return tree


def observed(*trees: TurnTree, **settings: Any) -> SPARK:
    source = SPARK(Uniform(tasks(5)), **settings)
    source.observe(trees)
    return source


def labels(source: SPARK) -> list[Any]:
    return [task.answer for task in source.pending["judging"]]


# One task


def test_the_worked_examples() -> None:
    def verdict(right: str | None, wrong: str | None, kind: float = 0.0, order: float = 0.4) -> Any:
        task = judging(TASK, "t/1", right, wrong, kind, order, 0.0)
        return task.answer if task is not None else None

    assert verdict("R", None, 0.5) == "yes"
    assert verdict(None, "W", 0.5) == "no"
    assert verdict("R", "W", 0.5) == "A"
    assert verdict("R", "W", 0.5, 0.6) == "B"
    assert verdict("R", "W", 0.2) == "yes"
    assert verdict("R", "W", 0.2, 0.6) == "no"
    assert verdict("R", "W", 0.3) == "A"
    assert verdict(None, None) is None


def test_of_a_batch_as_in_the_worked_examples() -> None:
    right, wrong = observed(answered([1.0] * 8)), observed(answered([0.0] * 8))
    assert (labels(right), len(right.pending["reflecting"])) == (["yes"], 0)
    assert (labels(wrong), len(wrong.pending["reflecting"])) == (["no"], 1)
    mixed = [observed(answered([1.0, 0.0] * 4), seed=seed) for seed in range(400)]
    counts = Count(label for source in mixed for label in labels(source))
    assert sum(counts.values()) == sum(len(source.pending["reflecting"]) for source in mixed) == 400
    assert (counts["yes"] + counts["no"]) / 400 == pytest.approx(0.3, abs=0.07)
    assert counts["A"] / (counts["A"] + counts["B"]) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("words", [0.0, 0.5, 0.99])
def test_the_right_answer_stands_where_the_label_says(words: float) -> None:
    for order, (first, second) in ((0.1, ("RIGHT", "WRONG")), (0.9, ("WRONG", "RIGHT"))):
        prompt = judging(TASK, "n", "RIGHT", "WRONG", 0.9, order, words).prompt
        assert prompt.index(first) < prompt.index(second)
        assert prompt.index("A:") < prompt.index(first) < prompt.index("B:")
        assert TASK.prompt in prompt
        alone = judging(TASK, "n", "RIGHT", "WRONG", 0.1, order, words).prompt
        assert first in alone
        assert second not in alone


def test_prompts_rotate() -> None:
    for prompts in (SINGLE, PAIR, AGAIN):
        assert len(set(prompts)) == len(prompts) > 1
    assert len({judging(TASK, "n", "R", None, 0, 0, words).prompt for words in (0.1, 0.4, 0.6, 0.9)}) == len(SINGLE)


def test_a_reflecting_task_is_the_task_with_its_gold_answer_and_a_wrong_attempt() -> None:
    task = reflecting(TASK, "t/3", "it is 5", 0.0)
    assert (task.answer, task.data, task.split, task.id) == ("4", {"level": 1}, "train", "t/3/reflecting")
    assert TASK.prompt in task.prompt
    assert "it is 5" in task.prompt


def test_an_answer_is_the_last_action_without_its_thought() -> None:
    tree = TurnTree("tree", TASK)
    said = [[{"role": "user", "content": text}] for text in ("The sum is 3.", "Right!")]
    first = add_turn(tree, add_turn(tree, None, [1]), [2], 1, action=call("add", n=3), replies=said[0])
    last = add_turn(tree, first, [3], 1, action="<think>\nhm\n</think>\nSeven.", replies=said[1], end="done")
    assert answer_of(last) == "Seven."
    assert reasoning_of(last) == f"{first.action}\nThe sum is 3.\n{last.action}"
    assert "Right!" not in reasoning_of(last)  # it would tell the verdict
    last.end = "truncated"
    assert answer_of(last) == ""


def test_half_of_the_reflections_show_the_whole_reasoning() -> None:
    shown = [observed(answered([0.0] * 2), seed=seed).pending["reflecting"][0].prompt for seed in range(200)]
    assert sum("thought" in prompt for prompt in shown) / 200 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("change", ["cut", "malformed", "silent", "long"])
def test_an_answer_that_cannot_be_read_is_skipped(change: str) -> None:
    tree = answered([0.0, 1.0])
    wrong, right = tree.leaves()
    match change:
        case "cut":
            wrong.end = "truncated"
        case "malformed":
            wrong.action = "<tool_call>\n{"
        case "silent":
            wrong.action = "<think>\nhm\n</think>"
        case "long":
            wrong.action = "x" * 4001
    source = observed(tree)
    assert labels(source) == ["yes"]
    assert source.pending["reflecting"] == []
    right.action = ""
    assert labels(observed(tree)) == []


def test_episodes_without_a_verdict_are_not_judged() -> None:
    assert labels(observed(answered([None, None]))) == []
    assert labels(observed(answered([None, 1.0]))) == ["yes"]
    with pytest.raises(AgentGymError, match="must be finite"):
        observed(answered([np.nan]))


def test_right_is_a_threshold() -> None:
    assert labels(observed(answered([0.6, 0.6]))) == ["no"]
    assert labels(observed(answered([0.6, 0.6]), right=0.5)) == ["yes"]


# A batch


def batch(n: int) -> list[TurnTree]:
    return [answered([0.0] * 2, task=f"t{i}", name=f"tree{i}") for i in range(n)]


def test_a_batch_holds_a_quarter_of_each_kind_at_most_and_the_rest_is_dropped() -> None:
    source: Source = observed(*batch(12))
    starts = source.draw(16)
    assert Count(start.tags.get(TAG) for start in starts) == {None: 8, "judging": 4, "reflecting": 4}
    assert len({start.task.id for start in starts if TAG in start.tags}) == 8
    assert Count(start.tags.get(TAG) for start in source.draw(16)) == {None: 16}
    with pytest.raises(AgentGymError, match="no room"):
        source.draw(3)
    with pytest.raises(AgentGymError, match=r"0\.5 at most"):
        SPARK(Uniform(tasks(2)), share=0.6)


def test_made_tasks_are_not_recycled_and_their_source_never_hears_of_them() -> None:
    class Hears(Uniform):
        heard: tuple[str, ...] = ()

        def observe(self, trees: Any) -> None:
            self.heard += tuple(tree.id for tree in trees)

        def admit(self, tree: TurnTree) -> str | None:
            return "dropped"

    inner = Hears(tasks(3))
    source = SPARK(inner)
    plain, made = answered([1.0, 1.0]), answered([1.0, 0.0], task="t/1/judging", name="made")
    made.tags[TAG] = "judging"
    source.observe([plain, made])
    assert inner.heard == ("tree",)
    assert labels(source) == ["yes"]
    assert (source.admit(plain), source.admit(made)) == ("dropped", None)
    metrics = source.metrics()
    assert metrics["judge_reward"] == 0.5
    assert (metrics["judge_yes"], metrics["judge_no"], metrics["reflections"], metrics["epoch"]) == (1, 0, 0, 0)


def test_it_goes_on_where_it_was_saved_and_equal_seeds_make_equal_tasks() -> None:
    source = observed(*batch(6), seed=3)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    other = SPARK(Uniform(tasks(5)), seed=3)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for each in (source, other):
        each.observe([answered([1.0, 0.0])])
    assert other.pending == source.pending
    assert other.draw(20) == source.draw(20)
    one, same, unlike = (observed(*batch(6), seed=seed) for seed in (3, 3, 4))
    assert one.pending == same.pending != unlike.pending


# Played


def played(source: SPARK, n: int, judge: str) -> list[TurnTree]:
    def acts(prompt: Any) -> str:
        if prompt.tree.task.split == "judge":
            return call("verdict", answer=judge)
        return [call("add", n=100), call("stop_here")][prompt.turn.depth]

    rollout = Rollout(source.host(Counter), Groups(2), {"policy": Scripted(acts)}, None, Lineage.of(0))
    return asyncio.run(rollout.run(source.draw(n)))


def test_judge_tasks_are_played_beside_the_others_and_a_right_verdict_is_rewarded() -> None:
    source = spark_uniform(tasks(4), right=1.0)
    assert isinstance(source, Hosts)
    source.observe(first := played(source, 4, "yes"))
    assert [total_reward(leaf) for tree in first for leaf in tree.leaves()] == [1.0] * 8
    assert labels(source) == ["yes"] * 4
    forest = played(source, 4, " Yes ")
    kinds = [tree.tags.get(TAG) for tree in forest]
    assert kinds == [None, None, None, "judging"]
    (judge,) = (tree for tree in forest if TAG in tree.tags)
    assert [total_reward(leaf) for leaf in judge.leaves()] == [1.0, 1.0]
    assert "verdict" in str(judge.tools)
    assert "stop_here" in str(forest[0].tools)
    source.observe(forest)
    assert source.metrics()["judge_reward"] == 1.0
    source.observe(played(source, 4, "no"))
    assert source.metrics()["judge_reward"] == 0.0


def test_a_reflecting_task_is_graded_by_its_own_environment() -> None:
    source = spark_uniform(tasks(4))
    source.observe(play(tasks(4), [call("add", n=3), call("stop_here")]))
    forest = played(source, 8, "no")
    again = [tree for tree in forest if tree.tags.get(TAG) == "reflecting"]
    assert len(again) == 2
    assert [total_reward(leaf) for tree in again for leaf in tree.leaves()] == [1.0] * 4
    assert all("Count, number" in tree.task.prompt and "stop_here" in tree.task.prompt for tree in again)


def test_an_environment_that_hosts_can_be_forked() -> None:
    env: Any = Hosting(Counter())
    env.reset(options={"task": tasks(1)[0]})
    env.step(call("add", n=5))
    saved, key = env.snapshot(), env.key()
    env.reset(options={"task": judging(TASK, "n", "R", None, 0, 0, 0)})
    assert env.step(call("verdict", answer="yes"))[1:3] == (1.0, True)
    env.restore(saved)
    assert env.key() == key
    assert env.blocking is False


def test_a_training_asks_its_source_for_the_environment() -> None:
    nothing: Any = None
    learner = TorchLearner(random_model("Llama"), 1e-3)

    def training(source: Source) -> Training:
        return Training(Counter, nothing, nothing, source, Groups(2), nothing, ClippedSurrogate(), learner, nothing)

    assert isinstance(training(SPARK(Uniform(tasks(2)))).make_env(), Hosting)
    assert isinstance(training(Uniform(tasks(2))).make_env(), Counter)


def test_a_recipe_makes_the_models_that_its_credit_asks_for() -> None:
    from agentgym.trainers.recipe import Recipe

    class Named(Counter):
        def tasks(self, split: str) -> Any:
            return tasks(4)

    recipe = Recipe.model_validate(
        {
            "env": {"id": "none"},
            "steps": 1,
            "credit": {"class": "agentgym.trainers.credit.prime:PRIME", "rate": 1e-3},
            "source": {"class": "agentgym.trainers.sources.spark:spark_uniform", "share": 0.5},
        }
    )
    nothing: Any = None
    run = recipe.training(Named, nothing, random_model("Llama"), nothing, nothing, nothing)
    assert isinstance(run.credit, PRIME)
    assert set(run.models) == {"process", "reference"}
    assert run.models["process"].model is not run.learner.model
    assert isinstance(run.make_env(), Hosting)
