"""Self-distillation: the teacher is the learner itself, given a hint."""

from __future__ import annotations

import pytest
import torch
from credits import assigned
from distilling import a_learner, copy_of, random_forest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from packs import turn_logprobs

from agentgym.errors import AgentGymError
from agentgym.task import Task
from agentgym.trainers.credit.hints import hinted
from agentgym.trainers.credit.opsd import OPSD
from agentgym.trainers.learner import Frozen
from agentgym.turn import path


class Plain:
    """A tokenizer of digits."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [int(letter) for letter in text]


class PlainChat:
    tokenizer = Plain()


@settings(max_examples=6, deadline=None)
@for_all(st.integers(0, 10**6))
def test_the_teacher_is_the_live_learner_with_the_hint_before_every_context(seed: int) -> None:
    learner = a_learner()
    forest = random_forest(seed)
    for tree in forest:
        tree.task = Task("task", "", answer=123)
    ids = [list(turn.ids) for tree in forest for turn in tree.turns]
    assigned(OPSD("9{task.answer}"), *forest, learner=learner, chat=PlainChat())
    for tree in forest:
        hints = {turn: [9, 1, 2, 3] for turn in tree.turns if turn.parent is None or turn.restarts}
        for turn in tree.turns:
            assert turn.streams["teacher"].shape == (len(turn.ids),)
            line = list(path(turn))
            first = max(place for place, node in enumerate(line) if node in hints)
            context = [token for node in line[first:] for token in [*hints.get(node, []), *node.ids]]
            logits = learner.model(input_ids=torch.tensor([context])).logits[0, :-1].log_softmax(-1).detach()
            expected = [float(logits[place - 1, context[place]]) for place in range(len(context) - len(turn.ids), len(context))]
            assert turn.streams["teacher"] == pytest.approx(expected)
    assert [turn.ids for tree in forest for turn in tree.turns] == ids
    before = [turn.streams["teacher"] for tree in forest for turn in tree.turns]
    learner.model.lm_head.weight.data.mul_(1.5)  # it is the live one
    assigned(OPSD("9{task.answer}"), *forest, learner=learner, chat=PlainChat())
    assert any((old != turn.streams["teacher"]).any() for old, turn in zip(before, (t for tree in forest for t in tree.turns), strict=True))


def test_an_empty_hint_teaches_nothing() -> None:
    learner = a_learner()
    forest = random_forest(8, copy_of(learner))
    metrics = assigned(OPSD(""), *forest, learner=learner, chat=PlainChat())
    assert metrics["groups_with_signal"] == 0
    assert metrics["hinted"] == 1
    plain = turn_logprobs(learner.model, forest[0].turns[-1])
    assert forest[0].turns[-1].streams["teacher"] == pytest.approx(plain.detach().numpy())


def test_a_task_without_an_answer_gives_no_hint_and_does_not_train() -> None:
    forest = random_forest(3)
    forest[0].task = Task("zebra", "", answer=7)
    metrics = assigned(OPSD("{task.answer}"), *forest, learner=a_learner(), chat=PlainChat())
    assert metrics["hinted"] == pytest.approx(1 / 3)
    trained = [sum(turn.streams["trained"].sum() for turn in tree.turns) for tree in forest]
    assert trained[0] > 0
    assert trained[1:] == [0, 0]


def test_hints_of_anything_but_the_task_are_refused() -> None:
    for hint, reason in (
        ("{answer}", "there is no field 'answer'; fields: task.id"),
        ("{task.anser}", "there is no field 'task.anser'"),
        ("{task.answer", "expected '}'"),
    ):
        with pytest.raises(AgentGymError, match=reason):
            OPSD(hint)
    with pytest.raises(AgentGymError, match=r"task task: the hint .* cannot be filled"):
        assigned(OPSD("{task.data[hint]}"), *random_forest(3), learner=a_learner(), chat=PlainChat())


def test_the_learner_need_not_be_given_and_another_teacher_is_its_start() -> None:
    assert OPSD().models == {}
    assert OPSD(teacher="start").models == {"start": Frozen}
    assert hinted(random_forest(1)[0], [5], {}).root.ids[0] == 5
