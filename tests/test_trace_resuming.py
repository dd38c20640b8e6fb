"""TRACE, stopped or killed, goes on as if it had not been."""

from __future__ import annotations

import itertools

import pytest
from forests import forest_record
from processes import finish, kill, start, what_it_left
from resumable_run import through_a_file
from words import Told, a_task, play

from agentgym.store import RunStore
from agentgym.trainers.expanders.gps import GPS
from agentgym.trainers.expanders.shared import SharedPredictor
from agentgym.trainers.expanders.trace import TRACE
from agentgym.trainers.expanders.value import TaskPosterior


def small_trace(predictor=None):
    return TRACE(10, 3, predictor or SharedPredictor(hidden=8, words=16, warm_up=2), waves=2)


TASKS = [a_task(f"t{i}", wins) for i, wins in enumerate([("aaa",), ("aaa", "aab", "bbb"), (), ("aba", "abb", "aaa", "baa", "bab")])]


@pytest.mark.parametrize(
    "predictor",
    [
        lambda: SharedPredictor(hidden=8, words=16, warm_up=2),
        lambda: GPS(hidden=8, latent=2, words=16, warm_up=2),
        lambda: TaskPosterior(0.9),
    ],
)
def test_a_saved_trace_goes_on_as_if_it_had_never_stopped(predictor):
    whole, again = small_trace(predictor()), small_trace(predictor())
    for step in range(3):
        play(whole, TASKS, step=step)
    again.load_state_dict(through_a_file(whole.state_dict()))
    for step in range(3, 6):
        assert forest_record(play(whole, TASKS, step=step)) == forest_record(play(again, TASKS, step=step))
        assert whole.metrics() == again.metrics()
    assert repr(whole.state_dict()) == repr(again.state_dict())


@pytest.mark.parametrize("deadly", [1, 5, 17, 30, 38, 44])
def test_a_half_grown_forest_that_is_killed_grows_again_just_so(deadly):
    """At the roots, among the rollouts, and in both waves of continuations."""
    first = small_trace()
    play(first, TASKS)
    saved = through_a_file(first.state_dict())
    expected = forest_record(play(first, TASKS, step=1))
    assert sum(len(turns) for _, _, turns in expected) > 44
    after = small_trace()
    after.load_state_dict(saved)
    commits = itertools.count()

    def kill(tree, turn):
        if next(commits) == deadly:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        play(after, TASKS, step=1, committed=kill)
    for expander in (after, small_trace()):  # in the same process, and in a new one
        expander.load_state_dict(saved)
        assert forest_record(play(expander, TASKS, step=1)) == expected
        assert expander.metrics() == first.metrics()


def test_what_a_broken_off_rollout_left_is_forgotten():
    expander = TRACE(4, 1, Told({}))

    def kill(tree, turn):
        if turn.depth == 2:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        play(expander, [a_task()], step=1, committed=kill)
    assert expander._growing
    play(expander, [a_task()], step=2)
    assert expander._growing == {}


def test_tasks_of_one_turn_are_still_known_after_resuming():
    one, other = (TRACE(4, 3, Told({})) for _ in range(2))
    tasks = [a_task("one", turns=1), a_task("three")]
    play(one, tasks)
    other.load_state_dict(through_a_file(one.state_dict()))
    assert [len(tree.root.children) for tree in play(other, tasks, step=1)] == [4, 3]


STEPS = 5


@pytest.mark.long
def test_training_with_trace_that_is_killed_in_mid_expansion_ends_like_one_that_was_not(tmp_path):
    pytest.importorskip("accelerate")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish("main_with_trace", whole, STEPS)
    forks = [turn for tree in RunStore.open(whole).trees() for turn in tree.turns if turn.parent and len(turn.children) > 1]
    assert forks, "nothing was expanded, so nothing was compared"
    kill(start("main_with_trace", killed, STEPS), killed / "turns.jsonl", 0.7 * (whole / "turns.jsonl").stat().st_size)
    assert any(not turn.children and turn.end is None for tree in RunStore.open(killed).trees() for turn in tree.turns)
    finish("main_with_trace", killed, STEPS)
    assert what_it_left(killed) == what_it_left(whole)
