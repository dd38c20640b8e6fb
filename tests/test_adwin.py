"""ADWIN: episodes up to a window, and probes to their end."""

from __future__ import annotations

from typing import Any

import pytest
from test_rollout import Counter
from windowed import ADDS, STOPS, Given, Lasts, credited, lengths, play, probes

from agentgym import AgentGymError, Outcome
from agentgym.rollout import episode
from agentgym.trainers.expanders.adwin import ADWIN
from agentgym.trainers.expanders.growing_window import GrowingWindow
from agentgym.trainers.expanders.windows import Tokens, Turns
from agentgym.turn import path, total_reward


def test_a_window_of_turns_ends_between_turns() -> None:
    forest = play(ADWIN(Turns((2,)), size=3, probes=0), [1, 2, 4])
    assert [turns for turns, _ in lengths(forest)] == [1] * 3 + [2] * 6
    assert [leaf.outcome is Outcome.CANCELLED for tree in forest for leaf in tree.leaves()] == [False] * 6 + [True] * 3
    assert [total_reward(leaf) for leaf in forest[2].leaves()] == [None] * 3
    assert not any(turn.partial for tree in forest for turn in tree.turns)


def test_a_window_of_tokens_cuts_an_action_that_is_not_whole_by_then() -> None:
    window = 3 * ADDS + 2
    forest = play(ADWIN(Tokens((window,)), size=2, probes=0), [1, 5])
    assert lengths(forest) == [(1, STOPS)] * 2 + [(3, window)] * 2
    for leaf in forest[1].leaves():
        assert leaf.partial
        assert leaf.sampled_tokens == 2
        assert (leaf.outcome, leaf.reward) == (Outcome.CANCELLED, None)


def test_a_window_of_tokens_that_ends_with_an_action_ends_there() -> None:
    (tree,) = play(ADWIN(Tokens((2 * ADDS,)), probes=0), [4])
    assert lengths([tree]) == [(2, 2 * ADDS)]
    assert not tree.leaves()[0].partial


def test_probes_are_some_of_the_unfinished_and_go_to_their_end() -> None:
    forest = play(ADWIN(Turns((2, 3)), probes=2), [1, 2, 3, 4, 4, 5])
    drawn = probes(forest)
    assert len(drawn) == 2
    assert set(drawn) <= {"3", "4", "5"}
    for tree, (turns, _) in zip(forest, lengths(forest), strict=True):
        whole, probed = int(tree.task.id), bool(tree.tags["window"]["probes"])
        assert turns == (whole if probed else min(whole, 2))
        (leaf,) = tree.leaves()
        assert (leaf.outcome is Outcome.CANCELLED) == (whole > 2 and not probed)
        if probed:
            assert (leaf.end, total_reward(leaf)) == ("done", sum(range(whole)) / 100)


def test_a_cut_action_is_gone_on_with_as_if_it_had_not_been_cut() -> None:
    probed = play(ADWIN(Tokens((ADDS + 3,)), size=2, probes=9), [4])[0]
    whole = play(ADWIN(Tokens((999,)), size=2, probes=0), [4])[0]
    assert [total_reward(leaf) for leaf in probed.leaves()] == [0.06, 0.06]
    for one, other in zip(probed.leaves(), whole.leaves(), strict=True):
        assert any(turn.partial for turn in path(one))
        assert [turn.action for turn in episode(one)] == [turn.action for turn in episode(other)]
        assert [turn.observation.split(";")[0] for turn in episode(one)] == [turn.observation.split(";")[0] for turn in episode(other)]


@pytest.mark.parametrize("windows", [Turns((2, 3)), Tokens((20, 40))])
def test_no_clock_decides_who_is_probed(windows: Any) -> None:
    def shape(forest: Any) -> Any:
        return [sorted((turn.seed, tuple(turn.ids), turn.end) for turn in tree.turns) for tree in forest]

    tasks = [4, 5, 4, 3, 2, 5]
    plain = shape(play(ADWIN(windows, size=2, probes=3), tasks))
    assert shape(play(ADWIN(windows, size=2, probes=3), tasks, Lasts(late=1))) == plain
    assert shape(play(ADWIN(windows, size=2, probes=3), tasks, Lasts(late=2))) == plain


def test_other_rollouts_probe_others() -> None:
    forests = [play(ADWIN(Turns((1,)), probes=2), [3] * 6, root=root) for root in range(6)]
    assert len({tuple(bool(tree.tags["window"]["probes"]) for tree in forest) for forest in forests}) > 1


def test_where_all_episodes_are_whole_they_are_audited_for_nothing() -> None:
    forest = play(ADWIN(Turns((1, 4)), probes=2, start=4), [1, 2, 3])
    assert [turns for turns, _ in lengths(forest)] == [1, 2, 3]
    assert len(probes(forest)) == 2
    credit = credited(forest, Given([[1.0, 0.0], [0.1, 0.0], [0.0, 0.0]]))
    assert credit.metrics()["window_next"] == 1
    assert credit.metrics()["probe_tokens"] == 0


def test_a_broken_episode_is_never_audited() -> None:
    class Breaks(Counter):
        def act(self, action: Any) -> Any:
            if self.turn == 2:
                raise RuntimeError("the machine is gone")
            return super().act(action)

    expander = ADWIN(Turns((1, 4)), probes=3)
    forest = play(expander, [4, 4], make_env=Breaks)
    assert len(probes(forest)) == 2
    assert all(leaf.end == "error" for tree in forest for leaf in tree.leaves())
    assert "window_next" not in credited(forest).metrics()
    play(expander, [4, 4])
    assert (expander.window, expander.age) == (1, 6)  # as due as before

    class NoBeginning(Counter):
        def begin(self, task: Any) -> None:
            raise RuntimeError("the machine did not start")

    broken = play(ADWIN(Turns()), [1], make_env=NoBeginning)
    assert "window" not in broken[0].tags
    credited(broken)


def test_an_audit_comes_every_so_many_rollouts_and_its_window_is_played_from_then_on() -> None:
    expander = ADWIN(Turns((1, 2, 3)), probes=2, stale=3)
    played = []
    for rollout in range(8):
        forest = play(expander, [5, 5, 5], root=rollout)
        metrics = expander.metrics()
        played.append((metrics["window"], metrics["probes"], metrics["audit_age"], sum(turns for turns, _ in lengths(forest))))
        for tree in forest:
            if tree.tags["window"]["probes"]:
                tree.tags["window"]["next"] = 3 if rollout < 3 else 2
    whole = 5 + 5
    assert played == [
        (1, 2, 3, whole + 1),
        (3, 0, 1, 9),
        (3, 0, 2, 9),
        (3, 2, 3, whole + 3),
        (2, 0, 1, 6),
        (2, 0, 2, 6),
        (2, 2, 3, whole + 2),
        (2, 0, 1, 6),
    ]


def test_what_is_in_a_checkpoint_is_what_comes_next() -> None:
    expander = ADWIN(Turns((1, 2, 3)), probes=2, stale=3)
    for tree in play(expander, [5, 5]):
        tree.tags["window"]["next"] = 3
    state = expander.state_dict()
    assert state == {"window": 3, "age": 1}
    assert expander.state_dict() == state
    other = ADWIN(Turns((1, 2, 3)), probes=2, stale=3)
    other.load_state_dict(state)
    for rollout in range(1, 4):
        one, two = (play(plan, [5, 5, 4, 4], root=rollout) for plan in (expander, other))
        assert [tree.tags for tree in one] == [tree.tags for tree in two]
        assert expander.metrics() == other.metrics()
    assert len(probes(one)) == 2


def test_a_linear_schedule_reaches_the_last_candidate_and_stays() -> None:
    expander = GrowingWindow(Turns((1, 2, 5)), steps=4)
    windows = []
    for rollout in range(7):
        forest = play(expander, [5, 5], root=rollout)
        windows.append(expander.metrics()["window"])
        assert [turns for turns, _ in lengths(forest)] == [windows[-1]] * 2
        if rollout == 2:
            state = expander.state_dict()
            expander = GrowingWindow(Turns((1, 2, 5)), steps=4)
            expander.load_state_dict(state)
    assert windows == [1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("windows", [(), (0, 1), (2, 2), (3, 1)])
def test_windows_that_do_not_rise_are_refused(windows: Any) -> None:
    for unit in (Tokens, Turns):
        with pytest.raises(AgentGymError, match="shortest first"):
            unit(windows)
