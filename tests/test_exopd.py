"""ExOPD: a student that goes beyond its teacher, away from a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from credits import assigned
from distilling import Says, Silent, advantages_of, differentiated, episode, expected_gradient, log
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.pack import Packed
from agentgym.trainers.credit.exopd import ExOPD, WholeExOPD
from agentgym.trainers.learner import Frozen
from agentgym.trainers.objectives.clipped import ClippedSurrogate
from agentgym.trainers.objectives.divergences import ReverseKL
from agentgym.turn import TurnTree

WORKED = {
    0: [-0.693147, -0.693147, 0.0],
    0.5: [0.0, -0.346574, -0.804719],
    1: [0.693147, 0.0, -1.609438],
    1.25: [1.039721, 0.173287, -2.011797],
    1.5: [1.386294, 0.346574, -2.414157],
}


def _three() -> tuple[TurnTree, Says, Says]:
    student, teacher, reference = np.log([[0.2, 0.5, 0.1], [0.4, 0.5, 0.02], [0.1, 0.25, 0.1]])
    return episode((student.tolist(), 0)), Says([0, *teacher]), Says([0, *reference])


@pytest.mark.parametrize("scale", WORKED)
def test_exopd_goes_as_far_as_its_scale(scale: float) -> None:
    tree, teacher, reference = _three()
    assigned(ExOPD(scale), tree, teacher=teacher, reference=reference)
    assert advantages_of(tree) == pytest.approx(WORKED[scale], abs=1e-6)


def test_exopd_at_scale_one_never_asks_the_reference() -> None:
    credit = ExOPD(1.0)
    assert set(credit.models) == {"teacher"}
    assert "reference" not in credit.writes
    assert ExOPD().models["reference"] is Frozen
    assert "reference" in ExOPD().writes
    tree, teacher, _ = _three()
    assigned(credit, tree, teacher=teacher, reference=Silent())
    assigned(credit, tree, teacher=teacher)


def test_exopd_bounds_how_far_the_teacher_may_have_gone() -> None:
    tree, teacher, reference = _three()
    assigned(ExOPD(1.5, bound=0.6), tree, teacher=teacher, reference=reference)
    assert advantages_of(tree) == pytest.approx([0.693147 + 0.3, 0.3, -1.609438 - 0.3], abs=1e-6)


def test_the_optimum_of_exopd_and_its_whole_gradient_are_the_worked_ones() -> None:
    teacher, reference, student = log([0.7, 0.2, 0.1]), log([0.4, 0.4, 0.2]), log([0.5, 0.3, 0.2])

    class Gives:
        def __init__(self, own: Tensor) -> None:
            self.own = own

        def topk(self, packed: Packed, k: Any) -> tuple[Tensor, Tensor]:
            return torch.arange(3).expand(len(packed), 3), self.own.expand(len(packed), 3)

        def at(self, packed: Packed, ids: Tensor) -> Tensor:
            return self.own[ids]

    for scale, expected in (
        (0.5, [0.555006, 0.296663, 0.148331]),
        (1.25, [0.761421, 0.159052, 0.079526]),
        (2.0, [0.890909, 0.072727, 0.036364]),
    ):
        tree = episode(([-1.0], 0))
        assigned(WholeExOPD(scale), tree, teacher=Gives(teacher), reference=Gives(reference))
        goal = torch.from_numpy(tree.turns[1].streams["teacher_logprobs"][0])
        assert goal.exp().tolist() == pytest.approx(expected, abs=1e-6)
        if scale == 1.25:
            value, gradient = differentiated(ReverseKL(), student, goal, lambda logprobs: logprobs)
            assert value == pytest.approx(0.164521, abs=1e-6)
            assert gradient == pytest.approx([-0.292550, 0.141008, 0.151542], abs=1e-6)
            advantages = teacher - student + 0.25 * (teacher - reference)
            assert advantages.tolist() == pytest.approx([0.476376, -0.578752, -0.866434], abs=1e-6)
            assert expected_gradient(student, advantages.tolist(), None, ClippedSurrogate()) == pytest.approx(gradient)


def test_the_advantage_has_a_clip_of_its_own_which_bounds_a_teacher_that_never_writes_a_token() -> None:
    tree, _, reference = _three()
    never = Says([0.0, -80.0, float("-inf"), -1.0])  # nats
    assigned(ExOPD(1.25, clip=5.0), tree, teacher=never, reference=reference)
    assert np.abs(advantages_of(tree)).max() == pytest.approx(5.0)
    with pytest.raises(AgentGymError, match="set clip"):
        assigned(ExOPD(1.0), tree, teacher=never)
