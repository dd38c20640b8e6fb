"""Two processes learn what one learns."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import together
from processes import HEAVY

from agentgym.errors import AgentGymError
from agentgym.trainers.objectives.clipped import ClippedSurrogate

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    started = [context.Process(target=together.run, args=(rank, 2, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_learn_what_one_learns(two: list[dict[str, Any]]) -> None:
    learner = together.a_learner()
    metrics = together.learn(learner)
    one, other = together.found(learner), two[0]["once"]
    assert two[0]["packs"] == [1, *two[0]["packs"][1:]]
    assert min(two[0]["packs"][1:]) > 2
    assert two[0]["processes"] == 2
    torch.testing.assert_close(other["moments"], one["moments"], **EXACT)
    torch.testing.assert_close(other["model"], one["model"], **EXACT)
    for expected, found in zip(metrics, two[0]["metrics"], strict=True):
        assert [list(of) for of in found] == [list(of) for of in expected]
        assert [list(of.values()) for of in found] == [pytest.approx(list(of.values()), rel=1e-9) for of in expected]


def test_all_processes_have_the_same_weights_to_the_last_bit(two: list[dict[str, Any]]) -> None:
    for name, weight in two[0]["model"].items():
        assert torch.equal(weight, two[1]["model"][name])
    assert all(torch.equal(one, other) for one, other in zip(two[0]["moments"], two[1]["moments"], strict=True))
    assert two[0]["version"] == two[1]["version"] == 8


def test_a_state_of_two_processes_goes_on_in_two_alone(two: list[dict[str, Any]]) -> None:
    with pytest.raises(AgentGymError, match="written by 2 processes and this run has 1"):
        together.a_learner().load_state_dict(two[0]["state"])


def test_a_loaded_state_is_that_of_all(two: list[dict[str, Any]]) -> None:
    learner = together.a_learner()
    state = {**two[0]["once"]["state"], "model": learner.state_dict()["model"], "version": 7, "processes": 1}
    learner.load_state_dict(state)
    learner.accumulate_all(*together.updates()[1])
    learner.step(pace=0.5)
    torch.testing.assert_close(two[1]["model"], learner.state_dict()["model"], **EXACT)
