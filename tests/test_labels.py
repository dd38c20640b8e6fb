"""Labels: what the teacher says beside the one who acts, and what of that is learnt."""

from __future__ import annotations

import asyncio
import collections
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from corridor import (
    CHAT,
    GARBLED,
    LEFT,
    RIGHT,
    Corridor,
    Long,
    Samples,
    Says,
    actions,
    always_right,
    learnt,
    play,
    rows,
    states,
    stored,
    turns_back_at_2,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import Given

from agentgym import Limits, Lineage, Outcome, Rollout, Start, Task, call
from agentgym.expand import Groups
from agentgym.pack import pack
from agentgym.policy import Prompt
from agentgym.rollout import episode
from agentgym.trainers.cloning import mark_demonstrations
from agentgym.trainers.credit.labels import Labels, visits
from agentgym.trainers.divisors import Constant, token_mean
from agentgym.trainers.expanders.dagger import DAgger
from agentgym.trainers.expanders.mixing import PerTurn, SingleSwitch
from agentgym.trainers.objectives.cross_entropy import CrossEntropy
from agentgym.turn import Turn, TurnTree, context_ids


def test_e2_a_row_for_every_turn_whoever_acts():
    takes = "SSTTTTST"
    acts = lambda turn, iteration, episodes: int(takes[len(episode(turn))] == "T")  # noqa: E731
    (tree,) = play(DAgger(acts), policy=lambda prompt, seed: LEFT, env=Long)
    found = learnt(tree)
    assert found["labels"] == len(rows(tree)) == 8
    assert found["agreement"] == 0.0
    done = episode(tree.leaves()[0])
    assert [number for number, turn in enumerate(done, 1) if turn.action != RIGHT] == [1, 2, 7]
    assert [row.executed for row in rows(tree)].count(False) == 3
    assert {row.action for row in rows(tree)} == {RIGHT}
    second = done[1].parent
    assert CHAT.decode(context_ids(second)).count(LEFT) == 1  # the history of turn 2 has the policy's first action
    assert all(turn.executed or not turn.children for turn in tree.turns)


def test_e3_the_loss_of_a_label():
    tree = TurnTree("tree", Task("task", ""))
    root = tree.add(Turn(0, None, "env", 0, ids=[0]))
    tree.add(Turn(-1, root, "policy", 0, ids=[4, 5], sampled_tokens=2, logprobs=[-1.0] * 2, action_tokens=2, action=LEFT, end="done"))
    tree.add(Turn(-1, root, "teacher", 0, ids=[2, 3], action_tokens=2, action=RIGHT, executed=False))
    learnt(tree)
    for divide, loss in ((Constant(1.0), 2.079442), (token_mean, 1.039721)):
        divide([tree])
        (packed,) = pack([tree], 100)
        heads: Any = Given(torch.log(torch.tensor([1.0, 0.9, 0.8, 0.5, 0.25], dtype=torch.float64)))
        assert float(CrossEntropy()(heads, packed)[0]) == pytest.approx(loss, abs=1e-6)


def test_e4_the_policy_alone_reaches_states_that_the_teacher_never_shows():
    (shown,) = play(DAgger(PerTurn(1)))
    assert learnt(shown)["labels"] == 4
    assert (states(shown), actions(shown)) == ([0, 1, 2, 3], list("RRRR"))
    (own,) = play(DAgger(PerTurn(0)))
    found = learnt(own)
    assert (states(own), actions(own)) == ([0, 1, 2, 1, 2, 1], list("RRLRLR"))
    assert {row.action for tree in (shown, own) for row in rows(tree)} == {RIGHT}
    assert found["agreement"] == pytest.approx(4 / 6)
    assert (found["reward"], found["labels"], found["labels_lost"], found["teacher_turns"]) == (0.0, 6, 0, 0)
    assert found["teacher_tokens"] == 6 * len(CHAT.write(RIGHT))


@pytest.mark.parametrize("size", [1, 3])
def test_a_share_of_1_is_sft_on_the_teachers_episodes(size):
    def stumbles(prompt, seed):
        return random.Random(seed).choice([RIGHT, RIGHT, LEFT])

    taught, groups = (play(expander, stumbles, tasks=3) for expander in (DAgger(PerTurn(1), size), Groups(size, "teacher")))
    learnt(*taught)
    mark_demonstrations(groups)
    for one, other in zip(taught, groups, strict=True):
        assert stored(one) == stored(other)
        for turn, same in zip(one.turns, other.turns, strict=True):
            np.testing.assert_array_equal(turn.streams["trained"], same.streams["trained"])


def test_episodes_of_one_root_each_have_their_label_there():
    (tree,) = play(DAgger(PerTurn(0), size=3))
    assert learnt(tree)["labels"] == 18
    assert len(tree.leaves()) == 3
    assert states(tree).count(0) == 3


def test_what_does_not_parse_is_asked_for_once_more_and_then_given_up():
    asked: collections.Counter[str] = collections.Counter()

    def clears_up(prompt, seed):
        asked[prompt.turn.key] += 1
        return GARBLED if prompt.turn.key == "1" or asked[prompt.turn.key] == 1 else RIGHT

    (tree,) = play(DAgger(PerTurn(0)), clears_up, policy=always_right)
    found = learnt(tree)
    assert asked == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert states(tree) == [0, 2, 3]
    assert (found["labels"], found["labels_lost"], found["reward"]) == (3, 1, 1)
    assert found["teacher_tokens"] == 5 * len(CHAT.write(GARBLED)) + 3 * len(CHAT.write(RIGHT))


def test_a_label_that_was_cut_off_or_is_longer_than_an_action_is_asked_for_once_more():
    class Cut(Says):
        async def generate(self, prompt, sampling):
            generation = await super().generate(prompt, sampling)
            return replace(generation, finish="length" if prompt.turn.key == "1" else "stop")

    (tree,) = play(DAgger(PerTurn(0)), Cut(always_right), policy=always_right)
    found = learnt(tree)
    assert states(tree) == [0, 2, 3]
    assert (found["labels"], found["labels_lost"]) == (3, 1)
    (tree,) = play(DAgger(PerTurn(0)), lambda prompt, seed: RIGHT + " on" * 300 * (prompt.turn.key == "2"), policy=always_right)
    assert learnt(tree)["labels_lost"] == 1
    assert states(tree) == [0, 1, 3]


def test_where_the_teacher_garbles_its_own_turn_a_label_takes_its_place():
    garbled = iter([True])
    (tree,) = play(DAgger(PerTurn(1)), lambda prompt, seed: GARBLED if next(garbled, False) else RIGHT)
    assert learnt(tree)["labels"] == 5
    assert [turn.executed for turn in rows(tree) if turn.parent is tree.root] == [False]
    assert states(tree) == [0, 0, 1, 2, 3]


def test_a_teacher_that_fails_on_a_label_ends_nothing():
    def fails_at_1(prompt, seed):
        if prompt.turn.key == "1":
            raise ConnectionError("no route")
        return RIGHT

    (tree,) = play(DAgger(PerTurn(0)), fails_at_1, policy=always_right)
    found = learnt(tree)
    assert states(tree) == [0, 2, 3]
    assert (found["labels"], found["labels_lost"], found["reward"], found["agreement"]) == (3, 1, 1, 1)


def test_an_episode_that_breaks_keeps_its_rows_up_to_there():
    (tree,) = play(DAgger(PerTurn(0)), policy=lambda prompt, seed: call("break") if prompt.turn.key == "2" else RIGHT)
    found = learnt(tree)
    assert states(tree) == [0, 1, 2]
    assert math.isnan(found["reward"])
    assert found["agreement"] == 1


def test_nothing_below_a_failed_turn_is_a_label():
    (tree,) = play(DAgger(PerTurn(0)))
    tree.turns[0].children[0].outcome = Outcome.INFRASTRUCTURE
    learnt(tree)
    assert [row.parent for row in rows(tree)] == [tree.root]


@pytest.mark.parametrize(("repeats", "kept"), [(3, 3), (1, 1), (6, 6)])
def test_of_a_loop_only_so_many_rows_stay(repeats, kept):
    (tree,) = play(DAgger(PerTurn(0)), policy=lambda prompt, seed: call("stay"))
    found = learnt(tree, repeats=repeats)
    assert (found["labels"], found["labels_lost"]) == (kept, 0)
    assert [row.parent.depth for row in rows(tree)] == list(range(kept))
    assert Labels().repeats == 3


def test_two_of_the_same_are_no_loop_and_another_action_or_actor_breaks_it():
    steps = iter([LEFT, LEFT, LEFT, RIGHT, LEFT, LEFT])
    (tree,) = play(DAgger(PerTurn(0)), policy=lambda prompt, seed: next(steps))
    assert learnt(tree, repeats=2)["labels"] == 5
    acts = lambda turn, iteration, episodes: int(len(episode(turn)) == 3)  # noqa: E731
    (tree,) = play(DAgger(acts), lambda prompt, seed: LEFT, policy=lambda prompt, seed: LEFT)
    assert learnt(tree, repeats=3)["labels"] == 6


def test_a_history_that_the_template_rewrites_is_labelled_too():
    class Rewrites(type(CHAT)):
        def bridge(self, before, completion, messages):
            return None

    chat = Rewrites(CHAT.tokenizer, CHAT.renderer)
    garbled = iter([True])
    actors: Any = {"policy": Samples(turns_back_at_2), "teacher": Says(lambda prompt, seed: GARBLED if next(garbled, False) else RIGHT)}
    rollout = Rollout(Corridor, DAgger(PerTurn(0.5)), actors, chat, Lineage.of(3), limits=Limits(tokens=10**4))
    (tree,) = asyncio.run(rollout.run([Start(Task("t", "Go."))]))
    found = learnt(tree)
    assert tree.closed
    assert any(turn.restarts for turn in tree.turns)
    assert (found["labels"], found["labels_lost"]) == (len(episode(tree.leaves()[0])), 0)


def test_a_state_has_one_row_even_where_two_labels_are_good_and_the_executed_one_comes_first():
    tree = TurnTree("tree", Task("task", ""))
    root = tree.add(Turn(0, None, "env", 0, ids=[0]))
    for author, executed in (("teacher", False), ("teacher", True), ("teacher", False)):
        tree.add(Turn(-1, root, author, 0, ids=[2, 3], action_tokens=2, action=RIGHT, executed=executed))
    assert learnt(tree)["labels"] == 1
    assert [row.index for row in rows(tree)] == [2]


def test_a_prompt_of_a_label_is_the_policys_own():
    shown: dict[str, list[Prompt]] = {"teacher": [], "policy": []}

    def note(who, says):
        def act(prompt, seed):
            shown[who].append(prompt)
            return says(prompt, seed)

        return act

    play(DAgger(PerTurn(0)), note("teacher", always_right), note("policy", turns_back_at_2))
    teacher, policy = ([prompt.messages for prompt in prompts] for prompts in shown.values())
    assert len(teacher) == 6
    assert sorted(teacher, key=len) == sorted(policy, key=len)


def erratic(says):
    """Says one of ``says`` by the seed alone; raises for "fail"."""

    def act(prompt, seed):
        said = random.Random(seed).choice(says)
        if said == "fail":
            raise ConnectionError("no route")
        return said

    return act


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 0.3, 0.7, 1]), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_only_what_nobody_sampled_is_a_target_and_each_visit_has_one_row(seed, share, size, repeats, switch):
    teacher = Says(erratic([RIGHT, RIGHT, LEFT, RIGHT, GARBLED, " ", "fail"]))
    policy = erratic([RIGHT, LEFT, LEFT, GARBLED, call("break"), "words"] if seed % 3 else [LEFT, call("stay")])
    acts = SingleSwitch(4) if switch else PerTurn(share)
    trees = play(DAgger(acts, size), teacher, policy, seed=seed, tasks=2)
    found = learnt(*trees, repeats=repeats)
    token_mean(trees)
    for packed in pack(trees, 200):
        assert not packed.streams["weight"][packed.sampled].any()
        assert "advantage" not in packed.streams
    visited = kept = 0
    for tree in trees:
        for state in tree.turns:
            taken = [turn for turn in state.children if turn.executed]
            taught = [turn for turn in state.children if turn.streams["trained"].any()]
            good = [t for t in state.children if t.author == "teacher" and t.action in (RIGHT, LEFT) and t.end != "error"]
            visited += len(taken)
            kept += len(taught)
            assert len(taught) in (0, min(len(taken), len(good)))
            assert all(turn in taught for turn in good if turn.executed)
            assert sum(turn.author == "teacher" for turn in state.children) <= 2 * len(taken)
            assert not any(child.children for child in state.children if not child.executed)
            for turn in taught:
                assert turn.author == "teacher"
                assert turn.streams["trained"].tolist() == [1.0] * turn.action_tokens + [0.0] * (len(turn.ids) - turn.action_tokens)
    looped = sum(len(visit.rows) for tree in trees for visit in visits(tree) if visit.loop > repeats)
    assert found["labels"] == kept
    assert visited == kept + found["labels_lost"] + looped
    assert found["teacher_tokens"] == sum(len(CHAT.write(text)) for text in teacher.written)
    assert sum(len(tree.leaves()) for tree in trees) == 2 * size
