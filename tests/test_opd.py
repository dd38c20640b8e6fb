"""On-policy distillation on sampled tokens: the worked row, what trains, and what a teacher is asked."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from credits import advantage, assigned
from distilling import Heads, Says, a_learner, advantages_of, copy_of, episode, random_forest
from forests import VOCABULARY, add_turn, random_model
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.outcome import Outcome
from agentgym.pack import Packed, pack
from agentgym.task import Task
from agentgym.trainers.credit.exopd import ExOPD
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.streams import check_streams
from agentgym.trainers.credit.teachers import Routed
from agentgym.trainers.credit.topk import StudentTopK, TopK
from agentgym.trainers.divisors import token_mean, turn_mean
from agentgym.trainers.learner import Frozen, PackScorer, TorchLearner
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.turn import TurnTree


def _masked_row() -> tuple[TurnTree, Says]:
    return episode(([-0.2, -1.0], 2), ([-0.7], 0)), Says([0, -0.1, -2.0, -0.5, -1.0, -0.3])


def test_the_worked_row_gives_advantages_where_the_policy_sampled() -> None:
    tree, teacher = _masked_row()
    metrics = assigned(OPD(), tree, teacher=teacher)
    assert advantages_of(tree) == pytest.approx([0.1, -1, 0, 0, 0.4])
    assert [turn.streams["trained"].tolist() for turn in tree.turns] == [[0], [1, 1, 0, 0], [1]]
    assert metrics["reverse_kl"] == pytest.approx(0.166667, abs=1e-6)
    assert metrics["reverse_kl_p95"] == pytest.approx(np.percentile([-0.1, 1, -0.4], 95))
    assert (metrics["reward"], metrics["teacher_tokens"], metrics["groups_with_signal"]) == (1.0, 3, 1.0)


def test_the_loss_at_ratio_one_is_the_mean_log_ratio() -> None:
    tree, teacher = _masked_row()
    assigned(OPD(), tree, teacher=teacher)
    token_mean([tree])
    (packed,) = pack([tree], 100)
    assert float(ClippedSurrogate()(Heads(torch.from_numpy(packed.logprobs)), packed)[0]) == pytest.approx(0.166667, abs=1e-6)


def test_a_discount_is_counted_in_positions_through_observations() -> None:
    for discount, turns, expected in (
        (0.5, 1.0, [-0.375, -0.95, 0, 0, 0.4]),
        (1.0, 1.0, [-0.5, -0.6, 0, 0, 0.4]),
        (0.5, 0.0, [-0.4, -1, 0, 0, 0.4]),
        (0.5, 0.1, [-0.3975, -0.995, 0, 0, 0.4]),
    ):
        tree, teacher = _masked_row()
        assigned(OPD(discount=discount, turn_discount=turns), tree, teacher=teacher)
        assert advantages_of(tree) == pytest.approx(expected), (discount, turns)


def test_coefficient_and_clip_come_last() -> None:
    tree, teacher = _masked_row()
    assigned(OPD(coefficient=2, clip=0.5), tree, teacher=teacher)
    assert advantages_of(tree) == pytest.approx([0.2, -0.5, 0, 0, 0.5])


def test_a_token_that_the_teacher_may_not_write_needs_a_clip() -> None:
    tree, teacher = _masked_row()
    teacher.values[1] = -np.inf
    with pytest.raises(AgentGymError, match=r"task task, turn 1 of tree tree: the teacher's .* is not finite: set clip"):
        assigned(OPD(), tree, teacher=teacher)
    assert np.isfinite(assigned(OPD(clip=5, discount=0.5), tree, teacher=teacher)["reverse_kl"])
    assert advantages_of(tree)[:2] == pytest.approx([-5, -1])
    teacher.values[3] = -np.inf  # an observation
    assigned(OPD(clip=5), tree, teacher=teacher)


def test_a_window_trains_the_first_sampled_tokens_of_every_episode() -> None:
    tree, teacher = _masked_row()
    assert assigned(OPD(window=2), tree, teacher=teacher)["teacher_tokens"] == 2
    assert advantages_of(tree) == pytest.approx([0.1, -1, 0, 0, 0])
    tree = TurnTree("tree", Task("task", ""))
    stem = add_turn(tree, add_turn(tree, None, [0]), [1, 1, 1], 2)
    for _ in range(2):
        add_turn(tree, stem, [1, 1, 1], 3, end="done", reward=0.0)
    assigned(OPD(window=3), tree, teacher=Says(np.zeros(10)))
    assert [turn.streams["trained"].tolist() for turn in tree.turns] == [[0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_given_up_episodes_and_labels_train_and_turns_that_failed_do_not() -> None:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, [0])
    add_turn(tree, root, [1], 1, end="truncated", reward=None, outcome=Outcome.CANCELLED)
    add_turn(tree, root, [2], 1, end="error", reward=None, outcome=Outcome.TIMEOUT)
    add_turn(tree, root, [3], 1, executed=False)
    add_turn(tree, root, [4], 0, executed=False)
    metrics = assigned(OPD(), tree, teacher=Says(np.full(5, -1.0)))
    assert [turn.streams["trained"].item() for turn in tree.turns] == [0, 1, 0, 1, 0]
    assert [advantage(turn) for turn in tree.turns] == [0, 2, 0, 2, 0]
    assert np.isnan(metrics["reward"])
    token_mean([tree])
    assert [turn.streams["weight"].item() for turn in tree.turns] == [0, 0.5, 0, 0.5, 0]


def test_what_is_shared_leads_to_the_mean_of_its_episodes() -> None:
    tree = TurnTree("tree", Task("task", ""))
    stem = add_turn(tree, add_turn(tree, None, [0]), [1], 1)
    half = add_turn(tree, stem, [1, 1], 1)
    for _ in range(2):
        add_turn(tree, half, [1], 1, end="done", reward=0.0)
    add_turn(tree, stem, [1], 1, end="done", reward=0.0)
    add_turn(tree, stem, [1], 1, end="error", reward=None)
    add_turn(tree, stem, [1], 1, executed=False)
    for turn in tree.turns:
        turn.logprobs = [0.0] * len(turn.logprobs)
    assigned(OPD(discount=1, turn_discount=1), tree, teacher=Says([0, -1, -2, 0, -4, -8, -16, -100, -100]))
    assert [advantage(turn) for turn in tree.turns[:6]] == pytest.approx([0, -1 - (2 * (2 + 6) + 16) / 3, -2 - 6, -4, -8, -16])


def test_segments_of_one_action_are_one_turn() -> None:
    tree = TurnTree("tree", Task("task", ""))
    part = add_turn(tree, add_turn(tree, None, [0]), [1], 1, partial=True, executed=False)
    add_turn(tree, part, [1], 1, end="done")
    assigned(OPD(discount=0.5), tree, teacher=Says([0, -4.0, -5.0]))
    assert [advantage(turn) for turn in tree.turns] == [0, -1 - 1, -2]


def test_means_over_tokens_and_turns_are_the_worked_ones() -> None:
    values = [0.1, -0.2, 0.3, 0, 0, -0.5, 0.1, 0, 1.0]
    for divisor, window, expected in (
        (token_mean, 3, 0.066667),
        (token_mean, 5, -0.04),
        (token_mean, 6, 0.133333),
        (turn_mean, 6, 0.288889),
    ):
        tree = episode(([0.0] * 3, 2), ([0.0] * 2, 1), ([0.0], 0))
        assigned(OPD(window=window), tree, teacher=Says([0, *values]))
        divisor([tree])
        streams = [turn.streams for turn in tree.turns]
        assert sum((own["weight"] * own["advantage"]).sum() for own in streams) == pytest.approx(expected, abs=1e-6)


def test_each_task_may_have_a_teacher_of_its_own() -> None:
    forest = [episode(([0.0], 0)) for _ in range(3)]
    for tree, domain in zip(forest, ("maths", "code", "maths"), strict=True):
        tree.task = Task(domain, "", data={"domain": domain})
    credit = OPD(Routed("domain", {"maths": "one", "code": "two"}))
    assert set(credit.models) == {"one", "two"}
    assigned(credit, *forest, one=Says([0, -1.0, 0, -2.0]), two=Says([0, -3.0]))
    assert [advantage(tree.turns[1]) for tree in forest] == [-1, -3, -2]
    with pytest.raises(AgentGymError, match="task code: no teacher for domain 'code'; there are teachers for maths"):
        assigned(OPD(Routed("domain", {"maths": "one"})), *forest, one=Says([0]))


def test_a_teacher_equal_to_its_student_has_no_group_with_signal() -> None:
    learner = a_learner()
    forest = random_forest(5, copy_of(learner))
    metrics = assigned(OPD(), *forest, learner=learner, teacher=Frozen(learner.model))
    assert metrics["groups_with_signal"] == 0
    assert metrics["reverse_kl"] == 0


def test_a_shared_token_is_scored_once() -> None:
    class Counts(PackScorer):
        tokens = 0

        def logprobs(self, packed: Packed) -> Tensor:
            self.tokens += len(packed)
            return super().logprobs(packed)

    teacher = Counts(random_model("Llama"))
    forest = random_forest(6)
    metrics = assigned(OPD(), *forest, teacher=teacher)
    assert teacher.tokens == sum(len(turn.ids) for tree in forest for turn in tree.turns)
    assert metrics["teacher_tokens"] == sum(turn.sampled_tokens for tree in forest for turn in tree.turns)


def test_a_uniform_teacher_gives_every_token_of_a_dialogue_the_same_score() -> None:
    model = random_model("Llama").double()
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    tree = episode(([-1.0, -2.0], 3), ([-0.5], 0))
    assigned(OPD(), tree, teacher=PackScorer(model))
    for turn in tree.turns[1:]:
        assert turn.streams["teacher"] == pytest.approx(-np.log(VOCABULARY))
    assert advantages_of(tree) == pytest.approx([1 - 3.465736, 2 - 3.465736, 0, 0, 0, 0.5 - 3.465736], abs=1e-6)


@pytest.mark.parametrize("credit", [OPD(), TopK(4), TopK(None), StudentTopK(4), ExOPD()])
def test_a_batch_that_the_environment_lost_teaches_nothing_and_ends_no_run(credit: Any) -> None:
    lost = TurnTree("lost", Task("t", ""))
    add_turn(lost, None, [], end="error", reward=None)
    models: Any = {name: PackScorer(random_model("Llama")) for name in ("teacher", "reference")}
    asyncio.run(credit.assign([lost], {**models, "learner": TorchLearner(random_model("Llama"), 0.1)}))
    assert not any(turn.streams["trained"].any() for turn in lost.turns)
    check_streams([lost])
