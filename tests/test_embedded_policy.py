"""The embedded policy: whatever it caches, shares and evicts, it answers as the plain model would."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forests import VOCABULARY, add_turn, random_model

from agentgym.env import AgentEnv, Reply
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.pack import pack
from agentgym.policies.sync import SharedWeights
from agentgym.policies.tiny import TinyTokenizer, new_model, tiny_chat
from agentgym.policies.transformers import TransformersPolicy
from agentgym.policy import Generation, Prompt, Sampling
from agentgym.rollout import Limits, Rollout, Start
from agentgym.seeds import Lineage
from agentgym.task import Task
from agentgym.trainers.learner import TorchLearner
from agentgym.turn import TurnTree, context_ids

STOP = 0
Asked = tuple[list[int], Sampling, Generation]


def _policy(kind: str = "Qwen3", slots: int = 64, stop: int | None = STOP) -> TransformersPolicy:
    chat: Any = SimpleNamespace(stop_ids={stop}, open=lambda messages: [5, 6, 7, 8])
    return TransformersPolicy(random_model(kind).eval(), chat, slots=slots)


def _tree(ids: Sequence[int]) -> TurnTree:
    tree = TurnTree("tree", Task("task", ""))
    add_turn(tree, None, list(ids))
    return tree


def _ask(policy: TransformersPolicy, prompts: Sequence[tuple[Prompt, Sampling]]) -> list[Generation]:
    async def all_at_once() -> list[Generation]:
        return await asyncio.gather(*(policy.generate(*asked) for asked in prompts))

    return asyncio.run(all_at_once())


def _play(policy: TransformersPolicy, forest: list[TurnTree], rounds: int, seed: int, temperature: float) -> list[Asked]:
    """In each round a few turns anywhere in the forest are continued together; the environment answers at random."""
    rng = random.Random(seed)
    asked: list[Asked] = []
    for _ in range(rounds):
        chosen = [(tree, rng.choice(tree.turns[-4:])) for tree in rng.choices(forest, k=rng.randint(1, 6))]
        samplings = [Sampling(temperature, rng.randint(1, 9), rng.randrange(2**40)) for _ in chosen]
        prompts = [Prompt(tree, turn) for tree, turn in chosen]
        found = _ask(policy, list(zip(prompts, samplings, strict=True)))
        for (tree, turn), prompt, sampling, generation in zip(chosen, prompts, samplings, found, strict=True):
            asked.append((prompt.ids, sampling, generation))
            said = [rng.randrange(VOCABULARY) for _ in range(rng.choice([1, 2, 30]))]
            add_turn(tree, turn, generation.ids + said, len(generation.ids), cache=generation.cache)
    return asked


def _logits(model: Any, context: list[int], n: int) -> torch.Tensor:
    """Of the last ``n`` tokens of the context, by one plain forward pass."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([context])).logits[0, -n - 1 : -1]


def _check(model: Any, asked: Sequence[Asked]) -> None:
    for prompt, sampling, generation in asked:
        assert len(generation.ids) == len(generation.logprobs) == sum(n for _, n in generation.versions)
        logits = _logits(model, prompt + generation.ids, len(generation.ids)) / (sampling.temperature or 1.0)
        ids = torch.tensor(generation.ids)
        expected = logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=2e-5, rtol=0)
        if sampling.temperature == 0:
            assert generation.ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
@pytest.mark.parametrize("slots", [2, 7, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_it_answers_as_the_plain_model_through_forks_evictions_and_ragged_lengths(kind: str, slots: int, temperature: float) -> None:
    policy = _policy(kind, slots)
    forest = [_tree(range(1, 2 + 7 * n)) for n in range(3)] + [_tree([n] * 300) for n in (3, 4, 5)]
    _check(policy.model, _play(policy, forest, rounds=10, seed=slots, temperature=temperature))


def test_nothing_is_computed_twice_where_slots_suffice() -> None:
    policy = _policy(slots=128)
    forest = [_tree([n] * 20) for n in range(1, 4)]
    asked = _play(policy, forest, rounds=12, seed=0, temperature=1.0)
    assert len(asked) < 128
    turns = [turn for tree in forest for turn in tree.turns]
    begun = [turn for turn in turns if turn.children]
    ended = [turn for turn in turns if not turn.children and turn.parent]
    # a turn that is continued was read to its end; of another, the last sampled token was never read
    assert policy.tokens_computed == sum(len(turn.ids) for turn in begun) + sum(turn.sampled_tokens - 1 for turn in ended)
    assert any(len(turn.children) > 1 for turn in turns)


def test_siblings_share_one_prompt() -> None:
    policy = _policy(stop=None)
    tree = _tree(range(20))
    found = _ask(policy, [(Prompt(tree, tree.root), Sampling(1.0, 5, seed)) for seed in range(8)])
    assert policy.tokens_computed == 20 + 8 * 4
    assert len({tuple(generation.ids) for generation in found}) > 1


def test_equal_seeds_give_equal_tokens_in_any_company() -> None:
    forest = [[n, 1, 2] * n for n in range(1, 9)]
    samplings = [Sampling(1.0, 12, seed) for seed in range(8)]

    def ask(order: Sequence[int], slots: int) -> dict[int, list[int]]:
        trees = {n: _tree(forest[n]) for n in order}
        found = _ask(_policy(slots=slots), [(Prompt(trees[n], trees[n].root), samplings[n]) for n in order])
        return {n: generation.ids for n, generation in zip(order, found, strict=True)}

    expected = ask(range(8), 64)
    assert ask([5, 2, 7, 0, 6, 1, 3, 4], 64) == expected
    assert ask(range(8), 3) == expected
    assert {n: ids for k in range(8) for n, ids in ask([k], 1).items()} == expected


def test_tokens_are_drawn_in_proportion_to_their_probability() -> None:
    policy = _policy(slots=400)
    tree = _tree([3, 1, 4])
    found = _ask(policy, [(Prompt(tree, tree.root), Sampling(1.0, 1, seed)) for seed in range(400)])
    expected = _logits(policy.model, [3, 1, 4, 0], 1)[0].softmax(-1)
    counts = torch.bincount(torch.tensor([generation.ids[0] for generation in found]), minlength=VOCABULARY) / 400
    assert float((counts - expected).abs().max()) < 0.1


def test_a_generation_ends_at_its_stop_token_or_its_length() -> None:
    policy = _policy()
    trees = [_tree([n, 9]) for n in range(1, 30)]
    found = _ask(policy, [(Prompt(tree, tree.root), Sampling(1.0, 8, n)) for n, tree in enumerate(trees)])
    assert {generation.finish for generation in found} == {"stop", "length"}
    for generation in found:
        stops = generation.ids.index(STOP) + 1 if STOP in generation.ids else None
        assert generation.finish == ("stop" if stops else "length")
        assert len(generation.ids) == (stops or 8)


def test_new_weights_drop_what_was_computed_with_the_old() -> None:
    policy = _policy()
    forest = [_tree([n] * 10) for n in range(1, 4)]
    before = _play(policy, forest, 4, seed=1, temperature=0.0)
    _change(policy.model)
    policy.new_weights(3)
    after = _play(policy, forest, 4, seed=2, temperature=0.0)
    _check(policy.model, after)
    assert {version for _, _, generation in before for version, _ in generation.versions} == {0}
    assert {version for _, _, generation in after for version, _ in generation.versions} == {3}


def test_weights_that_change_within_a_generation_apply_from_the_next_token() -> None:
    policy = _policy(stop=None)
    old = random_model("Qwen3").eval()
    tree = _tree(range(10))

    async def play() -> list[Generation]:
        tasks = [asyncio.create_task(policy.generate(Prompt(tree, tree.root), Sampling(1.0, 20, seed))) for seed in range(3)]
        for _ in range(40):
            await asyncio.sleep(0)
        _change(policy.model)
        policy.new_weights(1)
        return await asyncio.gather(*tasks)

    for generation in asyncio.run(play()):
        (_, first), (_, second) = generation.versions
        assert [version for version, _ in generation.versions] == [0, 1]
        assert first + second == 20
        logits = [_logits(model, [*range(10), *generation.ids], 20) for model in (old, policy.model)]
        expected = torch.cat([logits[0][:first], logits[1][first:]]).log_softmax(-1)
        chosen = expected.gather(-1, torch.tensor(generation.ids)[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(generation.logprobs), chosen, atol=2e-5, rtol=0)


def test_two_policies_on_one_tree_do_not_read_each_others_caches() -> None:
    one, two = _policy("Qwen3", slots=3), _policy("Llama", slots=8)
    forest = [_tree([n] * 10) for n in range(1, 4)]
    for seed in range(3):
        for policy in (one, two):
            _check(policy.model, _play(policy, forest, 2, seed, temperature=1.0))


def test_whoever_gives_up_frees_a_slot() -> None:
    policy = _policy(slots=1, stop=None)
    tree = _tree([1, 2, 3])

    async def play() -> Generation:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await policy.generate(Prompt(tree, tree.root), Sampling(1.0, 10**6))
        return await policy.generate(Prompt(tree, tree.root), Sampling(0.0, 5))

    _check(policy.model, [([1, 2, 3], Sampling(0.0, 5), asyncio.run(play()))])


def test_a_policy_outlives_a_loop_that_was_closed_under_it() -> None:
    policy = _policy(slots=2, stop=None)
    tree = _tree([1, 2, 3])

    async def leave() -> None:
        task = asyncio.create_task(policy.generate(Prompt(tree, tree.root), Sampling(1.0, 10**6)))
        await asyncio.sleep(0.05)
        assert not task.done()

    asyncio.run(leave())
    (found,) = _ask(policy, [(Prompt(tree, tree.root), Sampling(0.0, 5))])
    _check(policy.model, [([1, 2, 3], Sampling(0.0, 5), found)])


def test_an_error_of_the_model_reaches_everybody_and_spoils_nothing_later() -> None:
    policy = _policy(slots=2)
    forward, trees = policy.model.forward, [_tree([n, 2]) for n in range(1, 6)]
    policy.model.forward = _raise

    async def play() -> list[Any]:
        waiting = (policy.generate(Prompt(tree, tree.root), Sampling()) for tree in trees)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [str(error) for error in asyncio.run(play())] == ["out of memory"] * 5
    policy.model.forward = forward
    _check(policy.model, _play(policy, trees, 3, seed=0, temperature=1.0))


def test_a_prompt_without_tokens_is_refused() -> None:
    tree = _tree([])
    with pytest.raises(AgentGymError, match="no tokens"):
        _ask(_policy(), [(Prompt(tree, tree.root), Sampling())])


@pytest.mark.parametrize("hint", [None, [], [9, 10, 11]])
def test_scores_are_those_of_the_plain_model(hint: list[int] | None) -> None:
    policy, ids = _policy(), [4, 5, 6, 7]
    scores = asyncio.run(policy.score(ids, topk=3, hint=hint))
    n = 4 if hint else 3
    expected = _logits(policy.model, [*(hint or []), *ids], n).log_softmax(-1)
    chosen = expected.gather(-1, torch.tensor(ids[-n:])[:, None]).squeeze(-1)
    torch.testing.assert_close(scores.logprobs[-n:], chosen)
    torch.testing.assert_close(scores.topk_logprobs[-n:], expected.topk(3).values)
    assert torch.equal(scores.topk_ids[-n:], expected.topk(3).indices)
    assert hint or scores.logprobs[0] == 0


# Weights


def test_a_push_of_the_shared_model_proves_itself() -> None:
    policy = _policy()
    learner = TorchLearner(policy.model, 1e-3)
    learner.version = 7
    asyncio.run(SharedWeights(policy).push(learner))
    assert policy.version == 7


@pytest.mark.parametrize("amount", [0.02, float("nan")])
def test_a_push_of_a_model_that_the_actor_does_not_have_fails(amount: float) -> None:
    policy = _policy()
    other = random_model("Qwen3")
    _change(other, amount)
    with pytest.raises(AgentGymError, match="does not answer with the weights"):
        asyncio.run(SharedWeights(policy).push(TorchLearner(other, 1e-3)))


# In a rollout


class Echo(AgentEnv):
    max_turns = 3

    def tasks(self, split: str) -> list[Task]:
        return [Task(str(n), "Say something. " * n) for n in range(1, 4)]

    def act(self, action: Any) -> Reply:
        return Reply("You said it. " * (1 + len(action.content) % 3), reward=0.5)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    tokenizer = TinyTokenizer.train(["Say something. You said it."] * 50)
    return new_model(len(tokenizer), seed=0).eval(), tiny_chat(tokenizer)


def _roll(tiny: tuple[Any, Any], limits: Limits, slots: int) -> tuple[TransformersPolicy, list[TurnTree]]:
    policy = TransformersPolicy(*tiny, slots=slots)
    rollout = Rollout(Echo, Groups(3), {"policy": policy}, tiny[1], Lineage.of(0, "test"), limits=limits)
    return policy, asyncio.run(rollout.run([Start(task) for task in Echo().tasks("train")]))


def test_a_rollouts_logprobs_are_those_that_the_learner_finds(tiny: tuple[Any, Any]) -> None:
    policy, forest = _roll(tiny, Limits(turn_tokens=24), slots=32)
    learner = TorchLearner(policy.model, 1e-3)
    for packed in pack(forest, 10**6):
        found = learner.logprobs(packed)[torch.from_numpy(packed.sampled)]
        torch.testing.assert_close(found, torch.tensor(packed.logprobs[packed.sampled]).float(), atol=2e-5, rtol=0)
    turns = [turn for tree in forest for turn in tree.turns]
    assert sum(turn.end is not None for turn in turns) == 9
    assert policy.tokens_computed == sum(len(t.ids) for t in turns) - sum(t.end is not None for t in turns)


def test_a_rollout_is_the_same_whatever_runs_at_once(tiny: tuple[Any, Any]) -> None:
    tokens: Callable[[list[TurnTree]], list[list[list[int]]]] = lambda forest: [  # noqa: E731
        sorted(context_ids(leaf) for leaf in tree.leaves()) for tree in forest
    ]
    expected = tokens(_roll(tiny, Limits(turn_tokens=16), slots=32)[1])
    assert tokens(_roll(tiny, Limits(turn_tokens=16, width=1), slots=32)[1]) == expected
    assert tokens(_roll(tiny, Limits(turn_tokens=16), slots=2)[1]) == expected


def _change(model: Any, amount: float = 0.05) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn_like(parameter)


def _raise(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of memory")


