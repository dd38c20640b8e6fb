"""Bringing weights to servers that answer as a real one did; saving a policy in a form that vLLM reads; starting the server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from test_vllm import CHAT, a_policy, prompt, serve
from vllm_server import RECORDED

from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.pack import pack
from agentgym.policy import Prompt, Sampling
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.sync import Canary  # noqa: E402
from agentgym.policies.vllm.export import save_served, served_weights  # noqa: E402
from agentgym.policies.vllm.replica import Lost  # noqa: E402
from agentgym.policies.vllm.server import VllmServer  # noqa: E402
from agentgym.policies.vllm.sync import FileWeights, by_reload  # noqa: E402
from agentgym.policies.vllm.teacher import VllmTeacher  # noqa: E402

__all__ = ["serve"]
PUSH = ["/pause", "/update_weights", "/weight_info", "/resume"]


class Learner:
    """Its weights answer the canary as the recorded server did, ``off`` by so much."""

    def __init__(self, version=0, off=0.0, half=False):
        self.version, self.off, self.half = version, off, half

    def logprobs(self, packed):
        ids = Canary.prompt(CHAT)
        places = RECORDED["scores"]["body"]["prompt_logprobs"]
        assert len(packed) == len(ids) == len(places)
        return torch.tensor([0.0, *(place[str(id)]["logprob"] + self.off for id, place in zip(ids[1:], places[1:], strict=True))])


def a_sync(*servers, route=None, **settings):
    return FileWeights(a_policy(*servers, **settings), tiny.new_model(569, 0), route=route)


def routes(log, wanted=PUSH):
    return [(port, route) for port, route in log if route in wanted]


def test_all_servers_stand_still_before_any_is_updated_and_go_on_after_all_confirmed(serve):
    log = []
    servers = [serve(log=log) for _ in range(3)]
    sync = a_sync(*servers)
    asyncio.run(sync.push(Learner(17)))
    order = [route for _, route in routes(log)]
    assert order == [route for route in PUSH for _ in servers]
    assert {server.version for server in servers} == {"step-17"}
    assert sync.metrics()["actor_version"] == 17
    assert sync.metrics()["canary_gap"] < 1e-6


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_a_server_that_answers_otherwise_than_the_learner_fails_the_push(serve, off):
    with pytest.raises(AgentGymError, match="learner step 4: its log-probabilities differ by"):
        asyncio.run(a_sync(serve()).push(Learner(4, off)))


def test_a_learner_that_multiplies_in_16_bits_may_differ_by_more(serve):
    asyncio.run(a_sync(serve()).push(Learner(4, off=0.05, half=True)))
    with pytest.raises(AgentGymError, match="its log-probabilities differ by"):
        asyncio.run(a_sync(serve()).push(Learner(4, off=0.11, half=True)))


def test_a_server_that_never_takes_the_weights_is_not_resumed(serve):
    server = serve()
    sync = a_sync(server, patience=0.5)

    async def forgetful(replica, folder, version):
        pass

    sync.route = forgetful
    with pytest.raises(InfrastructureError, match="has weights 'default' after a push of 'step-4"):
        asyncio.run(sync.push(Learner(4)))
    assert server.paused
    assert "/resume" not in {route for _, route in server.log}


def test_a_server_that_is_lost_in_a_push_gets_the_weights_as_soon_as_it_can(serve):
    servers = [serve(), serve()]
    sync = a_sync(*servers)

    async def run():
        await sync.push(Learner(1))
        servers[0].broken = {"/update_weights": 500}
        await sync.push(Learner(2))
        (up,) = sync.policy.fleet().up
        servers[0].broken = {}
        await sync.policy.ready()
        return up.url

    assert asyncio.run(run()) == servers[1].url
    assert servers[0].version == servers[1].version == "step-2"
    assert not servers[0].paused
    assert sync.metrics()["vllm_restored"] == 1


def test_a_server_that_was_restarted_unnoticed_is_never_sampled_from_before_it_has_its_weights(serve):
    server = serve()
    sync = a_sync(server)

    async def run():
        await sync.push(Learner(3))
        server.version = "default"
        return await sync.policy.generate(prompt(), Sampling(1.0, 64))

    found = asyncio.run(run())
    assert found.versions == [(3, len(found.ids))]
    assert len(server.samplings) == 2
    assert sync.metrics()["vllm_stale"] == sync.metrics()["vllm_restored"] == 1


async def dead(replica):
    raise Lost("the line is dead")


def test_a_canary_that_gets_lost_is_sung_again_before_the_server_is_asked(serve):
    server = serve()
    sync = a_sync(server)
    lines = iter([dead, *[sync._listen] * 2])
    sync._listen = lambda replica: next(lines)(replica)
    with pytest.raises(AgentGymError, match="differ by"):
        asyncio.run(sync.push(Learner(4, 0.5)))


def test_a_resumed_run_brings_the_saved_weights_and_not_the_learners(serve):
    server = serve()
    first = a_sync(server)
    asyncio.run(first.push(Learner(5)))
    second = a_sync(server)
    second.load_state_dict(first.state_dict())
    found = asyncio.run(second.policy.generate(prompt(), Sampling(1.0, 64)))
    assert found.versions == [(5, len(found.ids))]
    assert sum(route == "/update_weights" for _, route in server.log) == 2
    saved = first.state_dict()["weights"]
    brought = second.state_dict()["weights"]
    assert all(torch.equal(saved[name], brought[name]) for name in saved)


def test_saved_weights_that_are_loaded_in_mid_run_are_brought_before_anything_is_sampled(serve):
    sync = a_sync(serve())

    async def run():
        await sync.push(Learner(5))
        saved = sync.state_dict()
        await sync.push(Learner(6))
        sync.load_state_dict(saved)
        return await sync.policy.generate(prompt(), Sampling(1.0, 64))

    assert asyncio.run(run()).versions == [(5, len(RECORDED["sample"]["body"]["choices"][0]["token_ids"]))]


def test_a_server_that_a_killed_run_left_paused_goes_on_with_the_next_push(serve):
    server = serve()
    server.paused = True
    asyncio.run(a_sync(server).push(Learner(0)))
    assert not server.paused


def test_a_server_that_takes_no_weights_is_refused_with_what_it_needs(serve, monkeypatch):
    message = "Call to collective_rpc method failed: Weight transfer not configured."
    monkeypatch.setitem(RECORDED, "not configured", {"status": 500, "body": {"error": {"message": message}}})
    for route, answer, sentence in (
        ("/init_weight_transfer_engine", "not configured", "--weight-transfer-config"),
        ("/pause", "no such route", "VLLM_SERVER_DEV_MODE"),
        ("/update_weights", "no such file", "a folder that it shares"),
    ):
        server = serve()
        server.broken = {route: answer}
        with pytest.raises(AgentGymError, match=sentence):
            asyncio.run(a_sync(server).push(Learner(0)))


def test_a_served_teacher_scores_packs_between_two_awaits_and_writes_in_words(serve):
    server = serve()
    teacher = VllmTeacher(server.url, "tiny", backoff=0.01)
    ids = Canary.prompt(CHAT)
    tree = TurnTree("canary", Task("canary", ""))
    root = tree.add(Turn(0, None, "env", 0, ids=ids[:4]))
    for _ in range(2):
        tree.add(Turn(0, root, "policy", 0, ids=ids[4:]))
    (packed,) = pack([tree], 100)

    async def credit():
        written = await teacher.generate(Prompt(tree, root), Sampling(1.0, 64))
        return written, teacher.logprobs(packed), teacher.topk(packed, 2)

    written, logprobs, (best, values) = asyncio.run(credit())
    assert written.text == CHAT.read(RECORDED["sample"]["body"]["choices"][0]["token_ids"])
    assert (written.ids, root.cache) == ([], None)
    learnt = Learner().logprobs(ids)
    assert torch.allclose(logprobs, torch.cat([learnt, learnt[4:]]))
    assert best.shape == values.shape == (16, 2)
    assert torch.equal(values[4:10], values[10:])
    with pytest.raises(AgentGymError, match="no whole distributions"):
        teacher.topk(packed, None)


def test_weights_come_by_a_reload_where_there_is_no_plugin(serve):
    server = serve()
    server.broken = {"/collective_rpc": "resume", "/update_weights": 500}
    asyncio.run(a_sync(server, route=by_reload).push(Learner(8)))
    assert server.version == "step-8"


def a_qwen(**sizes):
    config = transformers.Qwen3Config(
        **{
            "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "tie_word_embeddings": True, **sizes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
            if "q_proj" in name:
                weight.mul_(1e-3)  # so that the norm's epsilon counts
    return model


@pytest.mark.parametrize("sizes", [{}, {"head_dim": 16}, {"head_dim": 32}, {"head_dim": 20, "tie_word_embeddings": False}])
def test_a_policy_with_widened_heads_says_the_same(tmp_path, sizes):
    model = a_qwen(**sizes)
    save_served(model, SimpleNamespace(tokenizer=tiny.load()[1].tokenizer), tmp_path)
    served = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.randint(0, 48, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(served(ids).logits, model(ids).logits, rtol=0, atol=1e-4)  # norms work in float32
    assert served.config.head_dim in (32, 80)
    assert not served.config.tie_word_embeddings
    assert {name: weight.shape for name, weight in served.state_dict().items()} == {n: w.shape for n, w in served_weights(model).items()}


def test_heads_that_vllm_lacks_and_that_cannot_be_widened_are_refused():
    with pytest.raises(AgentGymError, match="heads of size 24"):
        served_weights(transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=8, hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        )))  # fmt: skip


def test_the_saved_tokenizer_is_the_policys(tmp_path):
    model, chat = tiny.load()
    save_served(model, chat, tmp_path)
    text = "Übung 12. Which airport lies in São Tomé?<|im_end|>\n"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False) == chat.tokenizer.encode(text)


STUB = """
import subprocess, sys, time
sys.path[:0] = {tests!r}, {root!r}
from vllm_server import Fake
port = next(int(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("--port="))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("engine", child.pid, flush=True)
server = Fake(port=port)
while True:
    time.sleep(1)
"""


@pytest.fixture
def stub(tmp_path):
    here = os.path.dirname(__file__)
    script = tmp_path / "stub.py"
    script.write_text(STUB.format(tests=here, root=os.path.dirname(here)))
    return script


def gone(pid):
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def engine(log):
    return int(log.read_text().split("engine ")[-1].split()[0])


def test_a_server_is_stopped_with_all_its_processes(stub, tmp_path):
    with VllmServer("MODEL", command=(sys.executable, str(stub)), log=tmp_path / "log") as server:
        assert server.healthy()
        assert server.running()
        child = engine(tmp_path / "log")
        assert alive(child)
    assert not server.running()
    assert gone(child)


def test_a_server_ends_with_who_started_it_however_that_ends(stub, tmp_path):
    start = f"VllmServer('MODEL', command=({sys.executable!r}, {str(stub)!r}), log={str(tmp_path / 'log')!r}).start()"
    code = f"import time; from agentgym.policies.vllm.server import VllmServer; server = {start}; print('up', flush=True); time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"up\n"
    child = engine(tmp_path / "log")
    assert alive(child)
    owner.kill()
    owner.communicate()
    assert gone(child)


def test_a_server_that_dies_as_it_starts_says_why(tmp_path):
    broken = (sys.executable, "-c", "raise ValueError('no room for the cache')")
    with pytest.raises(AgentGymError, match=r"status 1.*ValueError: no room for the cache"):
        VllmServer("MODEL", command=broken, log=tmp_path / "log").start()
    with pytest.raises(AgentGymError, match="'/no/python' cannot be started"):
        VllmServer("MODEL", python="/no/python", log=tmp_path / "log").start()
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    with pytest.raises(AgentGymError, match="does not answer"):
        VllmServer("MODEL", command=silent, log=tmp_path / "log").start(timeout=0.5)


def test_the_command_serves_a_policy_starts_it_again_and_ends_with_it(stub, tmp_path):
    wrapper = tmp_path / "python"
    wrapper.write_text(f"#!/bin/sh\nexec {sys.executable} {stub} \"$@\"\n")
    wrapper.chmod(0o755)
    command = [sys.executable, "-c", "from agentgym.cli import main; main()", "serve-policy", "some/model", "--port", "0"]
    with subprocess.Popen([*command, "--python", str(wrapper), "--log", "log"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        assert "serves some/model" in lines[1]
        first = engine(tmp_path / "log")
        os.killpg(os.getpgid(first), signal.SIGKILL)
        assert "starting it again" in process.stdout.readline()
        until = time.monotonic() + 30
        while engine(tmp_path / "log") == first and time.monotonic() < until:
            time.sleep(0.05)
        second = engine(tmp_path / "log")
        assert alive(second)
        assert gone(first)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert gone(second)
