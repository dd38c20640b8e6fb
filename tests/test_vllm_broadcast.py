"""Weights by a process group, heard by a stand-in for a server; the real one hears them in ``test_vllm_real.py``."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from test_vllm import a_policy, serve
from test_vllm_sync import Learner
from vllm_server import Fake

from agentgym.errors import AgentGymError, InfrastructureError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402

from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.vllm import broadcast  # noqa: E402
from agentgym.policies.vllm.broadcast import BroadcastWeights  # noqa: E402
from agentgym.policies.vllm.export import served_weights  # noqa: E402

__all__ = ["serve"]


class Hearing(Fake):
    """Joins as a server's ``workers`` do, and hears ``most`` weights."""

    def __init__(self, workers=1, most=None, **settings):
        self.workers, self.most = workers, most
        self.announced, self.heard = {}, []
        super().__init__(**settings)

    def control(self, path, body):
        if path == "/get_world_size":
            return 200, {"world_size": self.workers}
        if path == "/init_weight_transfer_engine" and path not in self.broken:
            self.announced = body["init_info"]
        if path == "/update_weights" and path not in self.broken:
            try:
                with ThreadPoolExecutor() as pool:
                    self.heard = list(pool.map(lambda rank: self.hear(rank + 1, **body["update_info"]), range(self.workers)))
            except RuntimeError as error:
                self.updating = False
                return 500, {"error": {"message": str(error)[:100]}}
        return super().control(path, body)

    def hear(self, rank, host, port, world, patience):
        store = dist.TCPStore(host, port, timeout=timedelta(seconds=patience), wait_for_workers=False)
        store.set(f"rank {rank}", "is here")
        options = dist.ProcessGroupGloo._Options()
        options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=host)], timedelta(seconds=patience)
        group = dist.ProcessGroupGloo(store, rank, world, options)
        weights = {}
        for name, dtype, shape in self.announced["weights"][: self.most]:
            weights[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            group.broadcast(weights[name], 0).wait()
        return weights


@pytest.fixture
def hearing(serve):
    return partial(serve, Hearing)


def a_sync(*servers, **settings):
    return BroadcastWeights(a_policy(*servers, **settings), tiny.new_model(569, 0))


def changed(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)


def same(found, wanted):
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_each_worker_of_each_server_hears_all_weights(hearing):
    servers = [hearing(workers=2), hearing()]
    sync = a_sync(*servers)
    asyncio.run(sync.push(Learner(3)))
    wanted = served_weights(sync.model)
    assert [len(server.heard) for server in servers] == [2, 1]
    assert all(same(heard, wanted) for server in servers for heard in server.heard)
    assert {server.version for server in servers} == {"step-3"}


def test_weights_keep_their_type_on_the_way(hearing):
    server = hearing()
    sync = BroadcastWeights(a_policy(server), tiny.new_model(569, 0).to(torch.bfloat16))
    asyncio.run(sync.push(Learner(3)))
    assert {dtype for _, dtype, _ in server.announced["weights"]} == {"bfloat16"}
    assert same(server.heard[0], served_weights(sync.model))


def test_a_line_that_breaks_in_the_middle_loses_the_server_until_a_push_was_whole(hearing):
    servers = [hearing(), hearing()]
    sync = a_sync(*servers)

    async def run():
        await sync.push(Learner(1))
        servers[0].most = 5
        await sync.push(Learner(2))
        (up,) = sync.policy.fleet().up
        servers[0].most = None
        changed(sync.model)  # the learner trains on
        await sync.policy.ready()
        return up.url

    assert asyncio.run(run()) == servers[1].url
    assert servers[0].version == servers[1].version == "step-2"
    assert same(servers[0].heard[0], servers[1].heard[0])
    assert sync.metrics()["vllm_restored"] == 1


def test_a_server_that_does_not_come_is_not_waited_for(hearing, monkeypatch):
    monkeypatch.setattr(broadcast, "PATIENCE", 1e4)
    server = hearing()
    server.broken = {"/update_weights": 500}
    with pytest.raises(InfrastructureError, match="/update_weights: status 500"):
        asyncio.run(a_sync(server, patience=1.0).push(Learner(1)))
    assert server.version == "default"


def test_a_server_of_which_a_worker_does_not_come_is_lost(hearing, monkeypatch):
    monkeypatch.setattr(broadcast, "PATIENCE", 0.5)
    server = hearing()
    whole = server.control
    server.control = lambda path, body: (200, {"world_size": 2}) if path == "/get_world_size" else whole(path, body)
    with pytest.raises(InfrastructureError, match=r"here: not all of 2 came within 0\.5 s"):
        asyncio.run(a_sync(server, patience=1.0).push(Learner(1)))


def test_an_error_of_our_own_is_not_the_servers(hearing, monkeypatch):
    def broken(*_):
        raise TypeError("of our own")

    monkeypatch.setattr(broadcast, "_met", broken)
    monkeypatch.setattr(broadcast, "PATIENCE", 0.5)
    with pytest.raises(TypeError, match="of our own"):
        asyncio.run(a_sync(hearing(), patience=1.0).push(Learner(1)))


def test_a_host_that_is_not_here_is_refused_and_leaves_no_update_open(hearing):
    server = hearing()
    sync = a_sync(server)
    sync.host = "192.0.2.1"
    with pytest.raises(AgentGymError, match=r"weights cannot be sent from host '192\.0\.2\.1'.*name an address of this machine"):
        asyncio.run(sync.push(Learner(1)))
    again = a_sync(server)
    server.paused = False
    asyncio.run(again.push(Learner(1)))
    assert server.version == "step-1"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("3 weights differ: a has the shape (2,), and (3,) in the served model", "serves another architecture"),
        ("Weight transfer not configured.", "takes no weights: start it with --weight-transfer-config="),
    ],
)
def test_what_another_try_would_not_mend_is_refused_before_anything_is_sent(hearing, said, sentence):
    server = hearing()
    server.told = lambda what: (500, {"error": {"message": said}}) if what == "init" else Fake.told(server, what)
    with pytest.raises(AgentGymError, match=sentence):
        asyncio.run(a_sync(server).push(Learner(1)))
    assert server.heard == []


def test_a_run_that_is_resumed_brings_what_was_pushed_last(hearing):
    server, later = hearing(), hearing()
    sync, resumed = a_sync(server), a_sync(later)

    async def run():
        await sync.push(Learner(4))
        state = sync.state_dict()
        changed(sync.model)
        resumed.load_state_dict(state)
        await resumed.policy.ready()

    asyncio.run(run())
    assert later.version == "step-4"
    assert same(later.heard[0], server.heard[0])


def test_the_learner_listens_where_it_is_told_and_no_longer_than_a_push(hearing):
    server = hearing()
    sync = a_sync(server)
    found = []
    hear = server.hear
    server.hear = lambda rank, **where: found.append(where) or hear(rank, **where)
    asyncio.run(sync.push(Learner(1)))
    sync.host = "127.0.0.2"
    asyncio.run(sync.push(Learner(2)))
    assert [place["host"] for place in found] == ["127.0.0.1", "127.0.0.2"]
    for place in found:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((place["host"], place["port"]), 1.0)
