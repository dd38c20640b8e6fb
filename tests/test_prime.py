"""PRIME: rewards for tokens from a learner that is taught outcomes alone."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from credit_models import Says, credited, episodes, flat
from forests import add_turn, random_model, random_tree

from agentgym.errors import AgentGymError
from agentgym.pack import pack
from agentgym.task import Task
from agentgym.trainers.credit.prime import PRIME, largest_return, token_advantages
from agentgym.trainers.credit.process_rewards import process_learner
from agentgym.trainers.credit.tokens import whitened
from agentgym.trainers.learner import Frozen
from agentgym.trainers.objectives.implicit_reward import ImplicitReward
from agentgym.turn import TurnTree

Q = [np.array([0.2, 0.4]), np.array([-0.1, 0.0, 0.4])]
WHITENED = [1.059307, 1.059307, -1.087937, -0.658488, -0.372189]


def test_prime_has_the_worked_numbers() -> None:
    none = token_advantages(Q, np.array([0.0, 0.0]))
    assert flat(none) == pytest.approx([0.4, 0.4, -0.6, 0.0, 0.4], abs=1e-4)
    total = flat(token_advantages(Q, np.array([1.0, 0.0])))
    assert total == pytest.approx([1.4, 1.4, -1.6, -1.0, -0.6], abs=1e-4)
    assert whitened(np.array(total)) == pytest.approx(WHITENED, abs=1e-4)


def test_prime_writes_the_worked_numbers_on_a_tree() -> None:
    models = {"process": Says(*flat(Q)), "reference": Says()}
    found = credited(PRIME(normalise=False), models, episodes(2, 3, rewards=[1.0, 0.0]))
    assert flat(found) == pytest.approx(WHITENED, abs=1e-4)


def test_prime_takes_the_references_log_probabilities_off() -> None:
    reference = np.array([-2.0, -1.0, -3.0, -0.5, -4.0])
    models = {"process": Says(*(np.array(flat(Q)) + reference)), "reference": Says(*reference)}
    found = credited(PRIME(normalise=False), models, episodes(2, 3, rewards=[1.0, 0.0]))
    assert flat(found) == pytest.approx(WHITENED, abs=1e-4)


def test_primes_normaliser_is_the_largest_return_of_the_batch() -> None:
    assert largest_return([Q]) == pytest.approx(0.6)
    assert largest_return([Q, [np.array([-0.9]), np.array([0.1])]]) == pytest.approx(0.9)
    assert largest_return([[np.zeros(2)]]) == largest_return([]) == 1.0
    scaled = whitened(np.array(flat(token_advantages([q / 0.6 for q in Q], np.array([1.0, 0.0])))))
    models = {"process": Says(*flat(Q)), "reference": Says()}
    assert flat(credited(PRIME(), models, episodes(2, 3, rewards=[1.0, 0.0]))) == pytest.approx(scaled.tolist())


def test_primes_loss_is_that_of_the_worked_example() -> None:
    packed = pack([episodes(2, 3, rewards=[1.0, 0.0])], 100)[0]
    packed.streams.update({"weight": packed.sampled.astype(float), "reference": np.zeros(len(packed))})
    loss, metrics = ImplicitReward(2)(_Given(flat(Q)), packed)
    assert float(loss.detach()) == pytest.approx(0.689467, abs=1e-4)
    assert metrics == {"process_accuracy": 0.5}
    logits = 0.05 * torch.tensor([0.6, 0.3])
    assert logits.sigmoid().tolist() == pytest.approx([0.507499, 0.503750], abs=1e-4)


def test_primes_loss_has_the_gradient_of_finite_differences() -> None:
    tree = random_tree(random.Random(4), turns=12)
    packed = pack([tree], 10**6)[0]
    count = sum(1 for leaf in tree.leaves())
    packed.streams.update({"weight": packed.sampled.astype(float), "reference": np.random.default_rng(0).normal(size=len(packed))})
    given = _Given(np.random.default_rng(1).normal(size=int(packed.sampled.sum())), packed)
    objective = ImplicitReward(count, beta=0.7)
    (found,) = torch.autograd.grad(objective(given, packed)[0], given.logprobs)
    for place in np.flatnonzero(packed.sampled):
        both = []
        for sign in (1, -1):
            moved = given.logprobs.detach().clone()
            moved[place] += sign * 1e-6
            both.append(float(objective(_At(moved), packed)[0]))
        assert float(found[place]) == pytest.approx((both[0] - both[1]) / 2e-6, abs=1e-8)
    assert found.abs().max() > 1e-3


class _At:
    def __init__(self, logprobs: Any) -> None:
        self.logprobs = logprobs


class _Given(_At):
    def __init__(self, values: Any, packed: Any = None) -> None:
        values = torch.tensor(np.asarray(values), dtype=torch.float64)
        if packed is None:
            super().__init__(torch.cat([torch.zeros(1, dtype=torch.float64), values]).requires_grad_())
            return
        logprobs = torch.zeros(len(packed), dtype=torch.float64)
        logprobs[torch.from_numpy(packed.sampled)] = values
        super().__init__(logprobs.requires_grad_())


def test_all_right_leaves_the_process_part_and_equal_tokens_leave_nothing() -> None:
    models = {"process": Says(*flat(Q)), "reference": Says()}
    found = flat(credited(PRIME(normalise=False), models, episodes(2, 3, rewards=[1.0, 1.0])))
    assert found == pytest.approx(whitened(np.array([0.4, 0.4, -0.6, 0.0, 0.4])).tolist())
    assert models["process"].steps == 1
    assert not any(flat(credited(PRIME(), {"process": Says(), "reference": Says()}, episodes(2, 3, rewards=[1.0, 1.0]))))


def test_a_constant_on_outcomes_and_permuted_episodes_change_nothing() -> None:
    rng = np.random.default_rng(3)
    q, rewards = [rng.normal(size=n) for n in (2, 5, 1, 3)], np.array([0.0, 0.5, 0.25, 0.5])
    found = token_advantages(q, rewards)
    assert flat(token_advantages(q, rewards + 0.5)) == pytest.approx(flat(found))
    order = [2, 0, 3, 1]
    assert flat(token_advantages([q[i] for i in order], rewards[order])) == pytest.approx(flat([found[i] for i in order]))


def test_a_shared_turn_has_the_mean_over_its_episodes() -> None:
    tree = TurnTree("tree", Task("task", ""))
    shared = add_turn(tree, add_turn(tree, None, [1]), [2, 3], 1)
    leaves = [add_turn(tree, shared, [4 + i], 1, end="done", reward=reward) for i, reward in enumerate((1.0, 0.0))]
    add_turn(tree, tree.root, [6], 1, end="done", reward=0.0)
    q = [np.array([0.3, 0.1]), np.array([0.3, -0.2]), np.array([0.4])]
    models = {"process": Says(0.3, 0.1, -0.2, 0.4), "reference": Says()}
    found = credited(PRIME(normalise=False), models, tree)
    each = token_advantages(q, np.array([1.0, 0.0, 0.0]))
    expected = whitened(np.array([(each[0][0] + each[1][0]) / 2, each[0][1], each[1][1], each[2][0]]))
    assert flat(found) == pytest.approx(expected.tolist())
    assert shared.streams["advantage"][1] == 0
    assert leaves[0].streams["advantage"][0] > leaves[1].streams["advantage"][0]


def test_an_episode_without_a_verdict_teaches_prime_nothing() -> None:
    models = [{"process": Says(*flat(Q), *more), "reference": Says()} for more in ([], [9.0, 9.0])]
    plain = credited(PRIME(), models[0], episodes(2, 3, rewards=[1.0, 0.0]))
    lost = episodes(2, 3, 2, rewards=[1.0, 0.0, None])
    assert credited(PRIME(), models[1], lost) == [*plain, [0.0, 0.0]]
    packed, objective = models[1]["process"].seen[0]
    assert objective.episodes == 2
    assert not packed.streams["weight"][packed.turn == 3].any()
    alone = episodes(2, 3, rewards=[1.0, None])  # one verdict is left
    assert not any(flat(credited(PRIME(), {"process": Says(), "reference": Says(*[1.0] * 5)}, alone)))


def test_prime_refuses_a_task_with_one_episode_and_rewards_beyond_its_range() -> None:
    models = {"process": Says(), "reference": Says()}
    with pytest.raises(AgentGymError, match="task alone: PRIME compares"):
        credited(PRIME(), models, episodes(2, rewards=[1.0], task="alone"))
    with pytest.raises(AgentGymError, match=r"ends in turn 2 is not in \[0, 1\]"):
        credited(PRIME(), models, episodes(2, 2, rewards=[1.0, -1.0]))
    with pytest.raises(AgentGymError, match="must be finite"):
        credited(PRIME(), models, episodes(2, 2, rewards=[1.0, math.nan]))
    with pytest.raises(AgentGymError, match="'after' or 'before'"):
        PRIME(update="never")


def test_prime_scores_with_what_it_knew_before_or_after_its_update() -> None:
    found = {}
    for update in ("after", "before"):
        learner = process_learner(random_model("Llama"), 1e-2)
        models = {"process": learner, "reference": Frozen(random_model("Llama"))}
        found[update] = flat(credited(PRIME(update=update), models, episodes(2, 3, rewards=[1.0, 0.0])))
        assert learner.version == 1
    assert found["after"][0] == found["after"][1] > 0 > found["after"][2] == found["after"][4]  # its outcomes alone
    assert len(set(found["before"])) == 5


def test_primes_learner_tells_right_from_wrong_after_some_steps() -> None:
    def forest(seed: int) -> list[TurnTree]:
        rng, tree = random.Random(seed), TurnTree(f"tree{seed}", Task(f"task{seed}", ""))
        root = add_turn(tree, None, [rng.randrange(8, 32), rng.randrange(8, 32)])
        for _ in range(6):  # right is what holds token 5
            ids = [rng.randrange(8, 32) for _ in range(4)]
            right = rng.random() < 0.5
            ids[rng.randrange(4)] = 5 if right else 6
            add_turn(tree, root, ids, 4, end="done", reward=float(right))
        return [tree]

    model = random_model("Llama", seed=2)
    credit = PRIME(rate=1e-2, beta=0.5)
    models = {name: make(model) for name, make in credit.models.items()}
    before = [parameter.clone() for parameter in model.parameters()]
    losses = []
    for seed in range(25):
        asyncio.run(credit.assign([tree for part in range(3) for tree in forest(10 * seed + part)], models))
        losses.append(credit.metrics()["process_loss"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.3
    unseen = [tree for seed in range(1000, 1010) for tree in forest(seed)]
    asyncio.run(credit.assign(unseen, models))
    sums = {leaf: (leaf.streams["process"] - leaf.streams["reference"]).sum() for tree in unseen for leaf in tree.leaves()}
    assert np.mean([(total > 0) == (leaf.reward == 1.0) for leaf, total in sums.items()]) > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # the policy's own stays
