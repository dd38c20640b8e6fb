"""What predicts the reward: the mean of a task, and a network that all tasks share."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from credits import near
from hypothesis import given
from hypothesis import strategies as st
from resumable_run import through_a_file
from words import Told, a_group, play, worked_tree

from agentgym import Task
from agentgym.errors import AgentGymError
from agentgym.policy import Generation, Prompt
from agentgym.trainers.expanders.allocation import root_contrasts
from agentgym.trainers.expanders.features import hashed_words
from agentgym.trainers.expanders.shared import SharedPredictor
from agentgym.trainers.expanders.trace import TRACE
from agentgym.trainers.expanders.value import TaskPosterior, bare_rewards, prefixes, rewards_through

# Of a task.


def test_targets_are_the_mean_rewards_below():
    tree, turns = worked_tree()
    through = rewards_through(tree)
    assert (np.mean(through[turns["a1"]]), len(through[turns["a1"]])) == (near(2 / 3), 3)
    assert np.mean(through[tree.root]) == near(0.5)
    assert bare_rewards(tree) == [1.0, 0.0]


def test_the_posterior_of_a_task_expects_less_contrast_than_its_mean_promises():
    posterior = TaskPosterior()
    seen, unseen = a_group(1, 1, 1, 0, id="seen"), a_group(id="unseen")
    posterior.learn([seen])
    belief = posterior.predict([Prompt(tree, tree.root) for tree in (seen, unseen)])
    contrasts = root_contrasts(belief.value, 4, belief.confidence)
    assert contrasts[:, [2, 4]] == near(np.array([[0.380952, 0.68254], [0.333333, 0.6]]))
    assert root_contrasts(belief.value, 4)[0, [2, 4]] == near([0.444444, 0.790123])


def test_predictors_refuse_what_cannot_be():
    for wrong in ({"hidden": 0}, {"words": 0}, {"warm_up": 0}, {"confidence": 0.0}, {"prefix_confidence": 0.0}):
        with pytest.raises(AgentGymError, match="SharedPredictor needs"):
            SharedPredictor(**wrong)
    for decay in (0.0, 1.5):
        with pytest.raises(AgentGymError, match="decay"):
            TaskPosterior(decay)


# Shared.


class Skill:
    """Wins easy tasks nine times out of ten, hard ones once; a first letter b is always a mistake."""

    async def generate(self, prompt, sampling):
        rng = random.Random(sampling.seed)
        wins = rng.random() < (0.9 if "easy" in prompt.tree.task.prompt else 0.1)
        return Generation(text="a" if wins else "b")


def some_tasks(step):
    rng = random.Random(step)
    return [
        Task(f"{kind}{step}-{i}", f"An {kind} word, please, number {rng.randrange(99)}.", ["a", "aa"], data={"turns": 2})
        for i in range(6)
        for kind in ("easy", "hard")
    ]


def taught(forests):
    predictor = SharedPredictor(warm_up=3)
    for step in range(forests):
        forest = play(TRACE(48, 2, Told({})), some_tasks(step), Skill(), step)
        predictor.learn(forest)
    return predictor


def test_the_shared_predictor_tells_easy_tasks_from_hard_ones_that_it_never_saw():
    predictor = taught(8)
    trees = play(TRACE(12, 0, Told({}, cold=True)), some_tasks(99), Skill())
    roots = predictor.predict([Prompt(tree, tree.root) for tree in trees])
    easy, hard = roots.value[::2], roots.value[1::2]
    assert easy.min() > hard.max() + 0.3
    assert (easy.mean(), hard.mean()) == (pytest.approx(0.9, abs=0.15), pytest.approx(0.1, abs=0.15))
    begun = [turn for tree in trees for turn in prefixes(rewards_through(tree))]
    assert begun
    values = predictor.predict([Prompt(tree, turn) for tree in trees for turn in prefixes(rewards_through(tree))]).value
    lost = [value for value, turn in zip(values, begun, strict=True) if turn.action == "b"]
    won = [value for value, turn in zip(values, begun, strict=True) if turn.action == "a"]
    assert max(lost) < np.mean(won)  # a mistake is seen in the prefix, on any task
    assert {"predictor_loss", "predictor_updates"} <= predictor.metrics().keys()


def test_a_predictor_that_knows_nothing_says_one_half_and_a_young_one_leans_on_the_mean():
    predictor = SharedPredictor(warm_up=4)
    tree = a_group(id="new")
    anchor = [Prompt(tree, tree.root)]
    assert predictor.predict(anchor).value.tolist() == [0.5]
    predictor.learn([a_group(1, 1, 1, 0, id="other")])
    with torch.no_grad():
        own = float(predictor._forward(predictor._features(anchor)))
    assert predictor.cold
    assert predictor.predict(anchor).value == near([0.75 * 0.75 + 0.25 * own])
    assert len(predictor.predict([]).value) == 0


def test_predictions_stay_away_from_certainty():
    predictor = SharedPredictor(hidden=4, words=8, warm_up=1)
    tree = a_group(1)
    predictor.learn([tree])
    for certain, limit in ((30.0, 0.995), (-30.0, 0.005)):
        predictor.model[-1].bias.data.fill_(certain)
        assert predictor.predict([Prompt(tree, tree.root)]).value.tolist() == [limit]


def test_the_shared_predictor_is_saved_to_the_last_bit():
    one = taught(3)
    other = SharedPredictor(warm_up=3)
    other.load_state_dict(through_a_file(one.state_dict()))
    for step in (3, 4):
        forest = play(TRACE(48, 2, Told({})), some_tasks(step), Skill(), step)
        anchors = [Prompt(tree, tree.root) for tree in forest]
        assert one.predict(anchors).value.tolist() == other.predict(anchors).value.tolist()
        one.learn(forest)
        other.learn(forest)
        assert one.metrics() == other.metrics()


def test_the_predictor_leaves_the_random_numbers_of_others_alone():
    before = torch.get_rng_state()
    taught(1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.text())
def test_a_bag_of_words_has_mean_square_one_or_is_nothing(text):
    square = np.mean(hashed_words(text, 16) ** 2)
    assert square == (pytest.approx(1.0) if re.search(r"\w", text) else 0.0)
    assert hashed_words(text, 16).tolist() == hashed_words(text.lower(), 16).tolist()
