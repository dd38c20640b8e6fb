"""Plans that branch within episodes, with a model in this process: entropies, counted tokens, a step of training, resumption."""

import asyncio
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from forests import VOCABULARY, add_turn, random_model  # noqa: E402
from resumable_run import play as play_letters  # noqa: E402
from steps import one_step  # noqa: E402
from test_rollout import Counter  # noqa: E402

from agentgym import Limits, Lineage, Rollout, Start, Task  # noqa: E402
from agentgym.envs.search import Search  # noqa: E402
from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.sync import SharedWeights  # noqa: E402
from agentgym.policies.transformers import TransformersPolicy  # noqa: E402
from agentgym.policy import Prompt, Sampling  # noqa: E402
from agentgym.store import RunStore  # noqa: E402
from agentgym.trainers.credit import aepo, appo, treepo  # noqa: E402
from agentgym.trainers.credit.grpo import GRPO  # noqa: E402
from agentgym.trainers.expanders.aepo import AEPO  # noqa: E402
from agentgym.trainers.expanders.appo import APPO  # noqa: E402
from agentgym.trainers.expanders.arpo import ARPO  # noqa: E402
from agentgym.trainers.expanders.latr import LATR  # noqa: E402
from agentgym.trainers.expanders.treepo import TreePO  # noqa: E402
from agentgym.trainers.learner import TorchLearner  # noqa: E402
from agentgym.trainers.objectives.aepo import KeptGradient  # noqa: E402
from agentgym.trainers.objectives.clipped import ClippedSurrogate  # noqa: E402
from agentgym.trainers.sources.uniform import Uniform  # noqa: E402
from agentgym.trainers.training import Training  # noqa: E402
from agentgym.turn import TurnTree, context_ids  # noqa: E402

METHODS = {
    "TreePO": (lambda: TreePO(episodes=6, segment=12), treepo.TreePO, ClippedSurrogate),
    "ARPO": (lambda: ARPO(rollouts=6, initial=3, vocabulary=576), GRPO, ClippedSurrogate),
    "AEPO": (lambda: AEPO(rollouts=6, vocabulary=576), aepo.AEPO, KeptGradient),
    "APPO": (lambda: APPO(rollouts=6, initial=3, segment=8), appo.APPO, ClippedSurrogate),
    "LATR": (lambda: LATR(rollouts=6, segment=5, lookahead=(10, 20)), GRPO, ClippedSurrogate),
}
every_method = pytest.mark.parametrize(("make", "credit", "objective"), METHODS.values(), ids=METHODS)


class Ends:
    """As much of a chat format as the policy looks at."""

    stop_ids = frozenset({0})


def generate(model, temperature):
    tree = TurnTree("tree", Task("t", ""))
    root = add_turn(tree, None, [3, 1, 4])
    policy = TransformersPolicy(model, Ends())
    return root.ids, asyncio.run(policy.generate(Prompt(tree, root), Sampling(temperature, 12, seed=5)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_an_entropy_is_that_of_the_distribution_that_was_sampled_from(temperature):
    model = random_model("Qwen3")
    prompt, found = generate(model, temperature)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + found.ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.distributions.Categorical(logits=logits / temperature).entropy()
    assert found.entropies == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(set(found.entropies)) > 3


def test_tokens_that_cannot_come_have_no_share_in_an_entropy():
    model = random_model("Qwen3")
    model.lm_head.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, torch.arange(2, VOCABULARY), -math.inf))
    _, found = generate(model, 1.0)
    assert all(0 < entropy <= math.log(2) + 1e-6 for entropy in found.entropies)


@every_method
def test_no_prefix_is_run_twice(make, credit, objective):
    model, chat = tiny.load()
    policy = TransformersPolicy(model, chat, slots=64)
    rollout = Rollout(Counter, make(), {"policy": policy}, chat, Lineage.of(3), limits=Limits(tokens=300, turn_tokens=40))
    (tree,) = asyncio.run(rollout.run([Start(Task("t", "Count!"))]))
    assert any(len(turn.children) > 1 for turn in tree.turns)
    below = {turn for turn in tree.turns if turn.children}  # what nothing follows is never put through the model
    endings = sum(turn.action_tokens - 1 for turn in tree.turns if turn not in below)
    assert policy.tokens_computed == sum(len(turn.ids) for turn in below) + endings


def training(policy, expander, credit, objective, batch):
    return Training(
        make_env=Search,
        actor=policy,
        chat=policy.chat,
        source=Uniform(Search().tasks("train")),
        expander=expander,
        credit=credit,
        objective=objective,
        learner=TorchLearner(policy.model, 1e-4),
        sync=SharedWeights(policy),
        limits=Limits(tokens=448, turn_tokens=72),
        batch=batch,
    )


@every_method
def test_it_plays_real_tasks_and_trains_a_step(make, credit, objective):
    model, chat = tiny.load()
    policy = TransformersPolicy(model, chat, slots=64)
    run = training(policy, make(), credit(), objective(), batch=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics, forest = one_step(run)
    assert (metrics["episodes"], metrics["lost"]) == (5 * 6, 0)
    assert all(tree.closed for tree in forest)
    assert metrics["groups_with_signal"] > 0
    assert all(math.isfinite(value) for value in metrics.values())
    assert abs(metrics["kl" if "kl" in metrics else "clip_fraction"]) < 0.2
    assert any((value != before[name]).any() for name, value in model.state_dict().items())
    unfinished = [turn for tree in forest for turn in tree.turns if not turn.children and turn.end is None]
    assert not unfinished
    assert all(len(turn.entropies) == turn.sampled_tokens for tree in forest for turn in tree.turns)
    assert max(len(context_ids(turn)) for tree in forest for turn in tree.turns) <= 448 + 200


class Killed(BaseException):
    """What a kill leaves: nothing after it is done."""


@pytest.mark.parametrize(
    ("plan", "credit"),
    [
        (lambda: TreePO(episodes=6, first=3, segment=3), treepo.TreePO),
        (lambda: LATR(rollouts=4, segment=3, lookahead=(4, 6), absolute=0.0, schedule=((0, 1.0), (2, 0.5))), GRPO),
    ],
    ids=["TreePO", "LATR"],
)
def test_a_run_that_ends_in_the_middle_of_a_tree_is_resumed_as_if_it_had_not(tmp_path, monkeypatch, plan, credit):
    asyncio.run(play_letters(tmp_path / "whole", 4, plan(), credit()))
    logged = RunStore.turn

    def log_until_killed(store, tree, turn):
        logged(store, tree, turn)
        if (store.folder / "checkpoints").exists() and tree.id.startswith("0/train/3/") and len(tree.turns) == 4:
            raise Killed

    monkeypatch.setattr(RunStore, "turn", log_until_killed)
    with pytest.raises(Killed):
        asyncio.run(play_letters(tmp_path / "killed", 4, plan(), credit()))
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "weights").exists()
    asyncio.run(play_letters(tmp_path / "killed", 4, plan(), credit()))
    for file in ("weights", "metrics.jsonl", "turns.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    forked = [turn for tree in RunStore.open(tmp_path / "whole").trees() for turn in tree.turns[1:] if len(turn.children) > 1]
    assert forked


def test_cancelled_episodes_are_neither_lost_nor_counted():
    model, chat = tiny.load()
    policy = TransformersPolicy(model, chat, slots=64)
    expander = LATR(rollouts=3, segment=5, lookahead=(10, 20))
    run = training(policy, expander, GRPO(), ClippedSurrogate(), batch=6)
    metrics, forest = one_step(run)
    assert metrics["cancelled"] > 0
    assert (metrics["episodes"], metrics["lost"]) == (18, 0)
    assert sum(len(tree.leaves()) for tree in forest) == 18 + metrics["cancelled"]
    given_up = [turn for tree in forest for turn in tree.leaves() if turn.reward is None]
    assert not any(turn.streams[name].any() for turn in given_up for name in ("advantage", "weight") if name in turn.streams)
