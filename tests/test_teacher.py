"""A teacher acts in words and scores in the learner's tokens."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from resumable_run import Letters

from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.pack import pack
from agentgym.policies.scripted import Scripted
from agentgym.policies.tiny import TinyTokenizer, load, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.rollout import Limits, Rollout, Start
from agentgym.seeds import Lineage
from agentgym.trainers.teacher import same_tokens, teacher
from agentgym.turn import TurnTree


def _policy() -> TransformersPolicy:
    return TransformersPolicy(*load())


def _played(actor: str, policy: TransformersPolicy) -> TurnTree:
    chat = load()[1]
    actors = {"policy": policy, "teacher": teacher(policy, policy.chat, chat)}
    rollout = Rollout(Letters, Groups(1, actor), actors, chat, Lineage.of(3), limits=Limits(tokens=300, turn_tokens=8))
    return asyncio.run(rollout.run([Start(Letters().tasks("train")[0])]))[0]


def test_what_a_teacher_writes_is_nobodys_sample_and_has_no_ratio() -> None:
    policy = _policy()
    mine, taught = _played("policy", policy), _played("teacher", policy)
    assert any(turn.sampled_tokens for turn in mine.turns)
    assert not any(turn.sampled_tokens or turn.logprobs for turn in taught.turns)
    assert taught.turns[1].action == mine.turns[1].action != ""  # equal weights, prompts and seeds
    assert all(turn.cache is None for turn in taught.turns)


def test_a_teacher_finds_its_own_words_as_likely_as_they_were() -> None:
    policy = _policy()
    tree = _played("policy", policy)
    (packed,) = pack([tree], 10**6)
    scored = teacher(policy, policy.chat, load()[1]).logprobs(packed).numpy()
    assert scored[packed.sampled] == pytest.approx(packed.logprobs[packed.sampled], abs=1e-4)
    assert np.isfinite(scored).all()


def test_equal_tokens_are_known_by_vocabulary_and_by_what_a_probe_gives() -> None:
    shipped = load()[1]
    other = tiny_chat(TinyTokenizer.train(["Write etaoin. More!", "user assistant system"] * 3))
    assert same_tokens(shipped, load()[1])
    assert not same_tokens(shipped, other)


def test_a_teacher_without_weights_is_refused() -> None:
    with pytest.raises(AgentGymError, match="Scripted has no weights to score with"):
        teacher(Scripted(["x"]), None, load()[1])


def test_a_teacher_with_another_number_of_outputs_is_refused() -> None:
    policy = _policy()
    rows = policy.model.config.vocab_size
    teacher(policy, policy.chat, load()[1], rows)
    with pytest.raises(AgentGymError, match=rf"the teacher's model has {rows} outputs and its student's {rows + 8}"):
        teacher(policy, policy.chat, load()[1], rows + 8)
