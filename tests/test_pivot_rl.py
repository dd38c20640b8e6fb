"""PivotRL: the trees that the rollout engine grows."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from credits import assigned
from doors import TASKS, Doors, Tries, grown, leads, tries_at
from forests import forest_record
from test_chat import CHATS

from agentgym import Lineage, Outcome, Reply, Start, call
from agentgym.envs.search import Search
from agentgym.envs.search.expert import Expert
from agentgym.errors import AgentGymError
from agentgym.policies.scripted import Scripted
from agentgym.policy import Generation
from agentgym.trainers.credit.arguments import PerTool
from agentgym.trainers.credit.equivalence import Exact, SameObservation, SameState
from agentgym.trainers.credit.pivot_rl import PivotRL as Credit
from agentgym.trainers.demonstrations import demonstrated
from agentgym.trainers.expanders.pivot_rl import PivotRL
from agentgym.turn import total_reward


def test_a_tree_holds_a_demonstration_and_tries_at_each_of_its_turns() -> None:
    for tree in grown(TASKS):
        assert tree.closed
        shown = demonstrated(tree)
        assert [turn.key for turn in shown] == [tree.task.answer[: n + 1] for n in range(3)]
        assert total_reward(shown[-1]) == 1.0
        assert [len(tries_at(turn)) for turn in shown] == [4, 4, 4]
        assert len(tree.turns) == 1 + 3 + 12
        assert len(tree.leaves()) == 13
        for number, turn in enumerate(shown):
            for one in tries_at(turn):
                assert (one.children, one.error) == ([], "")
                assert one.depth == number + 1
                assert one.end == "done" or (one.outcome, one.reward) == (Outcome.CANCELLED, None)
                assert (one.end == "done") == (number == 2 and "locked" not in one.action)
                assert ("Behind" in one.observation) == ("locked" not in one.action)


def test_tries_start_from_the_state_of_the_demonstration() -> None:
    for tree in grown(TASKS, PivotRL(8)):
        for number, turn in enumerate(demonstrated(tree)):
            before = tree.task.answer[:number]
            assert {one.key[:number] for one in tries_at(turn)} == {before}
            assert {len(one.key) for one in tries_at(turn)} <= {number, number + 1}


def test_tags_name_the_turns_that_are_tried() -> None:
    trees = grown([Start(TASKS[0], {"pivots": pivots}) for pivots in ([1], [0, 2], [], [7])])
    assert [[len(tries_at(turn)) for turn in demonstrated(tree)] for tree in trees] == [[0, 4, 0], [4, 0, 4], [0] * 3, [0] * 3]
    assert all(tree.closed for tree in trees)


def test_the_policy_is_rewarded_for_doing_what_has_the_same_effect() -> None:
    trees = grown(TASKS, PivotRL(16))
    for rule, capital in ((SameObservation(), 1), (SameState(), 1), (Exact(), 0), (PerTool({"go": SameState()}), 1)):
        metrics = assigned(Credit(rule), *trees)
        assert metrics["demonstrations_failed"] == metrics["turns_rejected"] == 0
        assert metrics["pivots_seen"] == 12
        for turn in (turn for tree in trees for turn in demonstrated(tree) if "pivot" in turn.metrics):
            right = turn.key[-1]
            for one in tries_at(turn):
                if f'"{right}"' in one.action:
                    assert one.metrics["equivalent"] == 1
                elif f'"{right.upper()}"' in one.action:
                    assert one.metrics["equivalent"] == capital
                else:
                    assert one.metrics["equivalent"] == 0
            assert all(len(one.streams["trained"]) == len(one.ids) for one in tries_at(turn))


def test_a_demonstration_that_fails_is_closed_untried_and_the_others_go_on() -> None:
    def errs(prompt: Any) -> str:
        doors = {"tabc": "broken", "tbca": "a"}
        return call("go", door=doors[prompt.tree.task.id]) if prompt.tree.task.id in doors else leads(prompt)

    trees = grown(TASKS, teacher=Scripted(errs))
    assert all(tree.closed for tree in trees)
    assert [sum(turn.author == "policy" for turn in tree.turns) for tree in trees] == [0, 0, 12, 12]
    assert [total_reward(tree.leaves()[0]) for tree in trees] == [None, 0.0, 1.0, 1.0]
    assert assigned(Credit(), *trees)["demonstrations_failed"] == 2


def test_a_try_that_fails_fills_its_place() -> None:
    (tree,) = grown(TASKS[:1], PivotRL(6), Tries("a", "b", "broken"))
    assert tree.closed
    faults = [one for one in tree.turns if one.end == "error"]
    assert faults
    assigned(Credit(), tree)
    assert not any(one.streams["trained"].any() or "equivalent" in one.metrics for one in faults)


def test_equal_seeds_grow_equal_trees_however_long_each_part_takes() -> None:
    expected = grown(TASKS)
    assert forest_record(grown(TASKS)) == forest_record(expected)
    assert forest_record(grown(TASKS, step=1)) != forest_record(expected)

    def by_seed(trees: Any) -> Any:
        return [sorted((turn.seed, turn.action, turn.observation, turn.end) for turn in tree.turns) for tree in trees]

    assert by_seed(grown(TASKS, policy=Tries(late=3))) == by_seed(expected)


@pytest.mark.parametrize("deadly", [0, 5, 11, 20, 40])
def test_a_half_grown_forest_that_is_killed_grows_again_just_so(deadly: int) -> None:
    expected = forest_record(grown(TASKS))
    expander, commits = PivotRL(4), itertools.count()

    def kill(tree: Any, turn: Any) -> None:
        if next(commits) == deadly:
            raise KeyError("killed")

    with pytest.raises(KeyError, match="killed"):
        grown(TASKS, expander, committed=kill)
    fresh = PivotRL(4)
    fresh.load_state_dict(json.loads(json.dumps(expander.state_dict())))
    assert forest_record(grown(TASKS, fresh)) == expected


def test_where_the_template_rewrites_history_tries_begin_after_the_new_context() -> None:
    chat = CHATS["qwen3 tool cycle"]

    class Plain(Doors):
        def act(self, action: Any) -> Reply:  # as a user's words, after which this template drops thoughts
            return Reply((reply := super().act(action)).text, reply.reward, reply.ends, reply.outcome)

    (tree,) = grown(TASKS[:1], policy=Tries(chat=chat), chat=chat, make_env=Plain)
    assert tree.closed
    shown = demonstrated(tree)
    assert [turn.parent.restarts for turn in shown] == [False, True, True]
    assert [len(tries_at(turn)) for turn in shown] == [4, 4, 4]
    assert not [turn.error for turn in tree.turns if turn.error]
    assert assigned(Credit(), tree)["pivots_seen"] == 3


def test_trees_of_fewer_than_two_tries_are_refused() -> None:
    with pytest.raises(AgentGymError, match="size is 1"):
        PivotRL(1)


def test_on_search_with_the_scripted_expert() -> None:
    tasks = [task for task in Search().tasks("train") if len(task.data["plan"]) == 2][:3]

    class Wavers:
        async def generate(self, prompt: Any, sampling: Any) -> Generation:
            rng = Lineage.of(sampling.seed).rng()
            right = Expert().act(prompt, rng)
            return Generation(text=rng.choice([right, call("search", query="Reykjavík"), call("answer", text="nowhere")]))

    trees = grown(tasks, PivotRL(8), Wavers(), Expert(), make_env=Search)
    for rule in (SameObservation(), Exact()):
        metrics = assigned(Credit(rule), *trees)
        assert metrics["demonstrations_failed"] == 0
        assert metrics["pivots_seen"] == 9
        assert 0.15 < metrics["reward"] < 0.55
        assert metrics["pivots_kept"] >= 5
    for tree in trees:
        answered = demonstrated(tree)[-1]
        assert all(one.observation == answered.observation for one in tries_at(answered) if "answer" in one.action)
        assert {one.metrics["equivalent"] for one in tries_at(answered) if "nowhere" in one.action} <= {0.0}
