"""A teacher with another tokenizer: sums over spans of bytes are exact, and what needs shared ids is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from forests import add_turn
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from resumable_run import Letters

from agentgym.chat import Chat
from agentgym.errors import AgentGymError
from agentgym.expand import Extend, Groups
from agentgym.pack import pack
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyRenderer, TinyTokenizer, load, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policy import Prompt, Sampling
from agentgym.rollout import Limits, Rollout, Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.trainers.alignment import ForeignTeacher, ends, spread
from agentgym.trainers.credit.opd import OPD
from agentgym.trainers.credit.topk import StudentTopK, TopK
from agentgym.trainers.learner import TorchLearner
from agentgym.trainers.loop import train
from agentgym.trainers.recipe import Recipe
from agentgym.trainers.teacher import Teacher, teacher
from agentgym.turn import Turn, TurnTree, path

OTHER_TEXTS = ["Das ist ein anderer Text, über Flüsse und Städte.", "user assistant system tool more", "etao write lake Straße"] * 4


@cache
def _student() -> Chat:
    return load()[1]


@cache
def _other() -> Chat:
    return tiny_chat(TinyTokenizer.train(OTHER_TEXTS))


def _policy(chat: Chat, seed: int = 5) -> TransformersPolicy:
    model = new_model(len(chat.tokenizer), seed)
    for weight in model.parameters():
        weight.data.mul_(2)  # far from uniform
    return TransformersPolicy(model, chat)


def _foreign(student: Chat | None = None) -> ForeignTeacher:
    found = teacher(_policy(_other()), _other(), student or _student())
    assert isinstance(found, ForeignTeacher)
    return found


def _played(policy: TransformersPolicy, n: int = 3) -> TurnTree:
    rollout = Rollout(Letters, Groups(n), {"policy": policy}, policy.chat, Lineage.of(3), limits=Limits(tokens=300, turn_tokens=8))
    return asyncio.run(rollout.run([Start(Letters().tasks("train")[0])]))[0]


def _written(chat: Chat, *actions: str, tree: TurnTree | None = None) -> TurnTree:
    """An episode in which the policy sampled these actions in its tokenizer's own way, each stopped."""
    tree = tree or TurnTree("tree", Task("task", ""))
    replies = [{"role": "user", "content": "Write etaoin."}]
    turn = tree.turns[0] if tree.turns else add_turn(tree, None, chat.open(replies), replies=replies)
    for number, action in enumerate(actions):
        ids = chat.write(action)
        replies = [{"role": "user", "content": f"More {number} über!"}]
        last = number + 1 == len(actions)
        bridge = [] if last else chat.bridge(turn.ids, ids, replies)
        assert bridge is not None
        turn = add_turn(tree, turn, ids + bridge, len(ids), action=action, replies=replies, end="done" if last else None)
        turn.logprobs = np.linspace(-0.1, -2, len(ids)).tolist()
    return tree


def _scores(scorer: Any, *trees: TurnTree) -> dict[Turn, Any]:
    """A teacher's log-probabilities of the sampled tokens of each turn."""
    asyncio.run(OPD().assign(trees, {"teacher": scorer}))
    return {turn: turn.streams["teacher"][: turn.sampled_tokens] for tree in trees for turn in tree.turns if turn.sampled_tokens}


def _log_softmax(policy: TransformersPolicy, ids: list[int]) -> Any:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def _sum(policy: TransformersPolicy, before: list[int], ids: list[int]) -> float:
    logprobs = _log_softmax(policy, before + ids)
    return sum(float(logprobs[len(before) + place - 1, token]) for place, token in enumerate(ids))


# Spans


def test_the_worked_example_keeps_the_total_of_every_span() -> None:
    own = np.array([-0.5, -0.1, -0.9, -0.2])
    found = spread([3, 5, 9, 11], own, [5, 7, 11], np.array([-0.3, -0.4, -0.5]))
    assert found - own == pytest.approx([0.15, 0.15, 0.10, 0.10])
    assert (found - own).sum() == pytest.approx(0.5)


@settings(deadline=None)
@for_all(st.text(max_size=40), st.lists(st.integers(0, 575), max_size=12))
def test_sums_over_spans_are_the_teachers_whatever_was_sampled(text: str, strange: list[int]) -> None:
    student, other = _student().tokenizer, _other().tokenizer
    for ids in (student.encode(text), strange):  # written as the tokenizer would, and token by token as a policy may
        spelled = student.decode(ids)
        theirs = other.encode(spelled)
        one, two = ends(student, ids, spelled), ends(other, theirs, spelled)
        for reached, tokens in ((one, ids), (two, theirs)):
            assert reached == sorted(reached)
            assert len(reached) == len(tokens)
            assert not reached or reached[-1] == len(spelled.encode())
        rng = np.random.default_rng(0)
        own, scores = rng.normal(size=len(ids)), rng.normal(size=len(theirs))
        found = spread(one, own, two, scores)
        if ids and theirs:
            assert found.sum() == pytest.approx(scores.sum())
        for end in set(one) & set(two):
            assert found[np.array(one) <= end].sum() == pytest.approx(scores[np.array(two) <= end].sum())


def test_a_token_within_a_character_reaches_to_its_end() -> None:
    tokenizer = _student().tokenizer
    for character in "ü€😀":
        ids = [tokenizer.get_vocab()[_letter(byte)] for byte in character.encode()]
        assert tokenizer.decode(ids) == character
        assert ends(tokenizer, [*ids, *tokenizer.encode("x")], f"{character}x") == [len(ids)] * len(ids) + [len(ids) + 1]


def test_tokens_that_spell_nothing_keep_their_own_log_probabilities() -> None:
    assert spread([0, 0], np.array([-1.0, -2.0]), [], np.zeros(0)).tolist() == [-1, -2]
    assert spread([0, 1], np.array([-1.0, -2.0]), [1], np.array([-5.0])).tolist() == [-2, -3]


def _letter(byte: int) -> str:
    """How byte-level tokenizers write a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in plain else chr(256 + sorted(set(range(256)) - set(plain)).index(byte))


# Against a plain forward pass


def test_every_turn_of_a_played_tree_has_the_teachers_sum() -> None:
    policy = TransformersPolicy(*load())
    tree = _played(policy)
    foreign = _foreign()
    found = _scores(foreign, tree)
    chat, student = foreign.chat, policy.chat
    assert len(found) == 6
    for turn, scores in found.items():
        ids = chat.open(tree.root.replies)
        for node in path(turn)[1:]:
            sampled = node.ids[: node.sampled_tokens]
            action = chat.tokenizer.encode(student.decode(sampled)) + [chat.tokenizer.eos_token_id] * (sampled[-1] in student.stop_ids)
            if node is turn:
                assert scores.sum() == pytest.approx(_sum(foreign.policy, ids, action), abs=1e-4)
            bridge = chat.bridge(ids, action, node.replies)
            assert bridge is not None
            ids = ids + action + bridge


def test_the_stop_token_stands_against_the_teachers_stop_token() -> None:
    tree = _written(_student(), "etaoin", "x")
    foreign = _foreign()
    scores = _scores(foreign, tree)
    ids = [*foreign.chat.open(tree.root.replies), *foreign.chat.tokenizer.encode("etaoin")]
    expected = float(_log_softmax(foreign.policy, ids)[-1, foreign.chat.tokenizer.eos_token_id])
    assert scores[tree.turns[1]][-1] == pytest.approx(expected, abs=1e-4)


def test_with_the_same_tokenizer_it_is_the_plain_teacher() -> None:
    policy = TransformersPolicy(*load())
    tree = _written(_student(), "I search for Rome.", '<tool_call>\n{"name": "finish", "arguments": {}}\n</tool_call>')
    _written(_student(), "Another way to begin.", "etaoin", "x", tree=tree)
    plain = _scores(Teacher(policy), tree)
    foreign = _scores(ForeignTeacher(policy, policy.chat, _student()), tree)
    assert len(plain) == 5
    for turn, scores in plain.items():
        assert foreign[turn] == pytest.approx(scores, abs=1e-4)


def test_a_uniform_teacher_gives_the_sums_that_are_known_by_hand() -> None:
    foreign = _foreign()
    for weight in foreign.policy.model.parameters():
        torch.nn.init.zeros_(weight)
    tree = _written(_student(), "etaoin", "more of it")
    vocabulary = foreign.policy.model.config.vocab_size
    for turn, scores in _scores(foreign, tree).items():
        assert scores.sum() == pytest.approx(-len(foreign.chat.write(turn.action)) * np.log(vocabulary), abs=1e-4)


def test_what_others_wrote_is_context_and_what_is_cut_off_gets_no_stop_token() -> None:
    tree = _written(_student(), "etaoin", "more", "x")
    _, expert, second, third = tree.turns
    expert.sampled_tokens, expert.logprobs = 0, []
    stop = second.sampled_tokens = second.sampled_tokens - 1
    second.ids = [*second.ids[:stop], *second.ids[stop + 1 :]]
    second.logprobs.pop()
    foreign = _foreign()
    found = _scores(foreign, tree)
    assert set(found) == {second, third}
    chat = foreign.chat
    ids = chat.open(tree.root.replies)
    ids = [*ids, *chat.write("etaoin"), *(chat.bridge(ids, chat.write("etaoin"), expert.replies) or [])]
    assert found[second].sum() == pytest.approx(_sum(foreign.policy, ids, chat.tokenizer.encode("more")), abs=1e-4)


class Rewrites(TinyRenderer):
    """A template that never goes on from what was sampled."""

    def bridge_to_next_turn(self, *arguments: Any) -> Any:
        return None


def test_a_teacher_whose_template_rewrites_history_reads_it_as_it_would_be_written() -> None:
    chat = Chat(_other().tokenizer, Rewrites(_other().tokenizer))
    foreign = ForeignTeacher(_policy(chat), chat, _student())
    tree = _written(_student(), "etaoin", "more")
    found = _scores(foreign, tree)
    before = chat.open(Prompt(tree, tree.turns[1]).messages)
    assert before[: len(chat.open(tree.root.replies))] != before
    assert found[tree.turns[2]].sum() == pytest.approx(_sum(foreign.policy, before, chat.write("more")), abs=1e-4)


@pytest.mark.parametrize("cut", [10**6, 40])
def test_a_learner_whose_template_rewrites_history_changes_nothing_for_the_teacher(cut: int) -> None:
    tree = _written(_student(), "etaoin", "more")
    plain = [scores.tolist() for scores in _scores(_foreign(), tree).values()]
    rewritten = TurnTree("tree", Task("task", ""))
    root, first, second = tree.turns
    root.children, first.children, second.children = [], [], []
    size = len(_student().write("etaoin"))
    first.ids, first.sampled_tokens = first.ids[:size], min(size, first.sampled_tokens)
    for turn in (root, first):
        rewritten.add(turn)
    fresh = add_turn(rewritten, first, _student().open(Prompt(rewritten, first).messages), restarts=True)
    second.parent = fresh
    rewritten.add(second)
    foreign = _foreign()
    asyncio.run(OPD(max_tokens=cut).assign([rewritten], {"teacher": foreign}))
    again = [turn.streams["teacher"][: turn.sampled_tokens] for turn in (first, second)]
    for scores, expected in zip(again, plain, strict=True):
        assert scores == pytest.approx(expected, abs=1e-4)


def test_specifications_of_tools_are_in_the_teachers_prompt() -> None:
    class Hears(Chat):
        def open(self, messages: Any, tools: Any = ()) -> list[int]:
            heard.append(list(tools))
            return super().open(messages, tools)

    heard: list[Any] = []
    chat = Hears(_other().tokenizer, TinyRenderer(_other().tokenizer))
    tree = _written(_student(), "etaoin")
    tree.tools = [{"type": "function", "function": {"name": "look"}}]
    foreign = ForeignTeacher(_policy(chat), chat, _student())
    with pytest.raises(AgentGymError, match=r"call read_tools\(trees\)"):
        foreign.logprobs(pack([tree], 1000)[0])
    _scores(foreign, tree)
    assert heard == [tree.tools]


# What it cannot do


def test_what_needs_shared_ids_is_refused() -> None:
    tree = _played(TransformersPolicy(*load()), 1)
    for credit in (TopK(), StudentTopK()):
        with pytest.raises(AgentGymError, match="the teacher has another tokenizer, so it cannot say how likely"):
            asyncio.run(credit.assign([tree], {"teacher": _foreign(), "learner": TorchLearner(load()[0], 1e-3)}))


def test_segments_of_an_action_are_refused() -> None:
    tree = TurnTree("tree", Task("task", ""))
    root = add_turn(tree, None, _student().open([{"role": "user", "content": "x"}]), replies=[{"role": "user", "content": "x"}])
    part = add_turn(tree, root, [5], 1, partial=True, executed=False)
    add_turn(tree, part, [6], 1, end="done")
    with pytest.raises(AgentGymError, match="turn 1 is a segment of an action"):
        _scores(_foreign(), tree)


# As an actor, and in a training


def test_it_acts_in_words_from_its_own_rendering() -> None:
    foreign = _foreign()
    actors = {"policy": TransformersPolicy(*load()), "teacher": foreign}
    rollout = Rollout(Letters, Groups(1, "teacher"), actors, _student(), Lineage.of(3), limits=Limits(tokens=300, turn_tokens=8))
    tree = asyncio.run(rollout.run([Start(Letters().tasks("train")[0])]))[0]
    assert len(tree.turns) == 3
    assert not any(turn.sampled_tokens for turn in tree.turns)
    first = tree.turns[1]
    ids = foreign.chat.open(tree.root.replies, tree.tools)
    alone = Turn(0, None, "env", 0, ids=ids, length=len(ids))
    again = asyncio.run(foreign.policy.generate(Prompt(tree, alone), Sampling(1.0, 8, first.seed)))
    assert first.action == foreign.chat.read(again.ids) != ""


def test_it_goes_on_with_an_action_that_the_learner_began() -> None:
    class Continues(Groups):
        def plan(self, forest: Any, event: Any) -> Iterator[Any]:
            for command in super().plan(forest, event):
                begun = isinstance(command, Extend) and command.turn.parent is None
                yield Extend(command.tree, command.turn, segment=True, max_tokens=3) if begun else (
                    Extend(command.tree, command.turn, 1, "teacher") if isinstance(command, Extend) else command
                )

    seen: list[list[int]] = []
    foreign = _foreign()

    class Listens:
        model, chat = foreign.policy.model, foreign.chat

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Any:
            seen.append(prompt.ids)
            return await foreign.policy.generate(prompt, sampling)

    listening = ForeignTeacher(Listens(), foreign.chat, _student())
    actors = {"policy": TransformersPolicy(*load()), "teacher": listening}
    rollout = Rollout(Letters, Continues(1), actors, _student(), Lineage.of(3), limits=Limits(tokens=300, turn_tokens=8))
    tree = asyncio.run(rollout.run([Start(Letters().tasks("train")[0])]))[0]
    assert tree.turns[1].partial
    said = _student().decode(tree.turns[1].ids)
    assert seen[0] == foreign.chat.open(tree.root.replies, tree.tools) + foreign.chat.tokenizer.encode(said)


def test_a_recipe_distils_from_a_teacher_with_another_tokenizer() -> None:
    model, chat = load()
    policy = TransformersPolicy(model, chat)
    recipe = Recipe.model_validate(
        {"env": {"id": "Letters"}, "steps": 2, "batch": 2, "models": {"teacher": "other"}, "limits": {"tokens": 200, "turn_tokens": 8}}
        | {"expander": {"class": "agentgym.expand:Groups", "size": 2}, "learning_rate": 1e-4}
        | {"credit": {"class": "agentgym.trainers.credit.opd:OPD", "clip": 5}}
    )
    run = recipe.training(Letters, policy, model, chat, SharedWeights(policy), lambda name: (_policy(_other()), _other()))
    assert isinstance(run.models["teacher"], ForeignTeacher)
    logged: list[dict[str, float]] = []
    asyncio.run(train(run, 2, done=lambda step, metrics, trees: logged.append(metrics)))
    assert all(np.isfinite(metrics["reverse_kl"]) and metrics["groups_with_signal"] == 1 for metrics in logged)
    assert all(metrics["teacher_tokens"] == metrics["sampled_tokens"] > 0 for metrics in logged)
