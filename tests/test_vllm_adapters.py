"""Bringing adapters alone to servers that answer as a real one did; writing an adapter in a form that vLLM reads."""

from __future__ import annotations

import asyncio
import json

import pytest
from test_vllm import a_policy, a_recipe, prompt, serve
from test_vllm_sync import Learner, a_qwen

from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.policy import Sampling

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from agentgym.cli.training import build  # noqa: E402
from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.adapters import adapt  # noqa: E402
from agentgym.policies.vllm.adapters import FileAdapters  # noqa: E402
from agentgym.policies.vllm.export import served_adapter, served_weights  # noqa: E402
from agentgym.policies.vllm.server import VllmServer  # noqa: E402

__all__ = ["serve"]


def adapted(model=None, rank=4):
    model = model or tiny.new_model(569, 0)
    adapt(model, rank, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def a_sync(*servers, folder=None, **settings):
    return FileAdapters(a_policy(*servers, **settings), adapted(), folder=folder)


def names(server):
    return [body["model"] for body in server.samplings]


@pytest.mark.parametrize("sizes", [{}, {"head_dim": 16}, {"head_dim": 32}, {"head_dim": 20, "tie_word_embeddings": False}])
def test_a_served_adapter_adds_to_the_served_weights_what_the_learners_adds_to_its_own(sizes):
    model = adapted(a_qwen(**sizes), rank=3)
    whole, factors = served_weights(model), served_adapter(model)
    base = served_weights(a_qwen(**sizes))
    layers = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in factors}
    assert len(layers) == 2 * 7
    for layer in layers:
        a, b = (factors[f"base_model.model.{layer}.lora_{factor}.weight"] for factor in "AB")
        torch.testing.assert_close(base[f"{layer}.weight"] + 8 / 3 * b @ a, whole[f"{layer}.weight"], rtol=0, atol=1e-12)
        assert (b @ a).abs().max() > 1e-4
    assert all(torch.equal(weight, base[name]) for name, weight in whole.items() if name.removesuffix(".weight") not in layers)


def test_what_is_brought_is_a_folder_that_peft_reads(serve):
    from peft import LoraConfig
    from safetensors.torch import load_file

    server = serve()
    sync = a_sync(server)
    asyncio.run(sync.push(Learner(3)))
    (name,) = server.adapters
    folder = sync.folder / name
    assert server.adapters[name] == str(folder)
    config = LoraConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha) == (4, 8)
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    brought = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(weight, brought[name]) for name, weight in served_adapter(sync.model).items())


def test_every_request_names_the_adapter_of_the_last_push_and_nothing_stands_still(serve):
    servers = [serve(), serve()]
    sync = a_sync(*servers)

    async def run():
        found = []
        for version in (3, 4):
            await sync.push(Learner(version))
            found.append([await sync.policy.generate(prompt(str(tree)), Sampling(1.0, 64)) for tree in range(8)])
        return found

    for version, generations in zip((3, 4), asyncio.run(run()), strict=True):
        assert {tuple(generation.versions) for generation in generations} == {((version, len(generations[0].ids)),)}
    for server in servers:
        asked = list(dict.fromkeys(names(server)))
        assert [name.rpartition("-")[0] for name in asked] == ["step-3", "step-4"]
        assert list(server.adapters) == asked[1:]
        assert "/pause" not in {route for _, route in server.log}
    assert sync.metrics()["actor_version"] == 4
    assert sync.metrics()["canary_gap"] < 1e-6


def test_two_pushes_at_one_step_share_no_name(serve):
    server = serve()
    sync = a_sync(server)

    async def run():
        for _ in range(2):
            await sync.push(Learner(3))
            await sync.policy.generate(prompt(), Sampling(1.0, 64))

    asyncio.run(run())
    assert len({*names(server)}) == 2


def test_what_is_under_way_ends_with_its_adapter_which_stays_as_long(serve):
    server = serve()
    sync = a_sync(server)

    async def run():
        await sync.push(Learner(1))
        server.work = 0.5
        writing = asyncio.create_task(sync.policy.generate(prompt(), Sampling(1.0, 64)))
        while not server.samplings:
            await asyncio.sleep(0.01)
        await sync.push(Learner(2))
        kept, under_way = list(server.adapters), not writing.done()
        written = await writing
        await sync.push(Learner(3))
        return kept, under_way, written

    kept, under_way, written = asyncio.run(run())
    assert under_way
    assert [name.rpartition("-")[0] for name in kept] == ["step-1", "step-2"]
    assert written.versions == [(1, len(written.ids))]
    assert [name.rpartition("-")[0] for name in server.adapters] == ["step-3"]
    assert sorted(path.name.rpartition("-")[0] for path in sync.folder.iterdir()) == ["step-1", "step-2", "step-3"]
    asyncio.run(sync.push(Learner(4)))
    assert sorted(path.name.rpartition("-")[0] for path in sync.folder.iterdir()) == ["step-3", "step-4"]


def test_a_server_that_was_restarted_unnoticed_gets_the_adapter_before_it_is_asked_again(serve):
    server = serve()
    sync = a_sync(server)

    async def run():
        await sync.push(Learner(3))
        server.adapters.clear()
        return await sync.policy.generate(prompt(), Sampling(1.0, 64))

    found = asyncio.run(run())
    assert found.versions == [(3, len(found.ids))]
    assert names(server) == list(server.adapters)
    assert sync.metrics()["vllm_restored"] == sync.metrics()["vllm_lost"] == 1


def test_an_adapter_that_arrived_though_the_answer_was_lost_is_no_error(serve):
    server = serve()
    sync = a_sync(server)
    lend = server.lend

    def lend_and_fail(path, body):
        server.lend = lend
        lend(path, body)
        return 500, {"error": {"message": "told to"}}

    server.lend = lend_and_fail
    asyncio.run(sync.push(Learner(3)))
    assert sync.metrics()["vllm_restored"] == 1
    assert len(server.adapters) == 1


def test_an_answer_of_another_model_than_the_one_that_was_named_is_no_sample(serve):
    server = serve()
    sync = a_sync(server, retries=0)
    named = server.named

    async def run():
        await sync.push(Learner(3))
        server.named = lambda what, model: named(what, "policy")
        await sync.policy.generate(prompt(), Sampling(1.0, 64))

    with pytest.raises(InfrastructureError, match="answers with 'policy', and was asked for 'step-3-"):
        asyncio.run(run())


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_a_server_that_answers_otherwise_than_the_learner_fails_the_push(serve, off):
    server = serve()
    sync = a_sync(server)

    async def run():
        await sync.push(Learner(3))
        await sync.push(Learner(4, off))

    with pytest.raises(AgentGymError, match="learner step 4: its log-probabilities differ by"):
        asyncio.run(run())
    assert sync.policy.pushed.startswith("step-3-")


def test_a_resumed_run_brings_the_saved_adapter_and_not_the_learners(serve):
    server = serve()
    first = a_sync(server)
    asyncio.run(first.push(Learner(5)))
    second = a_sync(server)
    with torch.no_grad():
        for weight in second.model.parameters():
            weight.zero_()
    second.load_state_dict(first.state_dict())
    found = asyncio.run(second.policy.generate(prompt(), Sampling(1.0, 64)))
    assert found.versions == [(5, len(found.ids))]
    assert names(server) == [second.policy.pushed] != [first.policy.pushed]
    saved, brought = first.state_dict()["weights"], second.state_dict()["weights"]
    assert saved.keys() == brought.keys() == served_adapter(first.model).keys()
    assert all(torch.equal(saved[name], brought[name]) for name in saved)


@pytest.mark.parametrize(
    ("status", "said", "sentence"),
    [
        (500, "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA.", "serve-policy --lora RANK"),
        (500, "Call to add_lora method failed: LoRA rank 16 is greater than max_lora_rank 8.", "a rank as large as the learner's"),
        (500, "While loading /a, expected target modules in {'v_proj'} but received ['x_proj'].", "serve the policy that the learner"),
        (404, "Loading lora step-1 failed: No adapter found for /a", "a folder that it shares"),
    ],
)
def test_a_server_that_takes_no_such_adapter_is_refused_with_what_it_needs(serve, status, said, sentence):
    server = serve()
    server.lend = lambda path, body: (status, {"error": {"message": said}})
    with pytest.raises(AgentGymError, match=sentence):
        asyncio.run(a_sync(server).push(Learner(0)))


def test_a_model_that_trains_other_weights_than_adapters_is_refused(serve):
    with pytest.raises(AgentGymError, match=r"the model has none: set learner\.lora"):
        FileAdapters(a_policy(serve()), tiny.new_model(569, 0))
    model = adapted()
    model.get_output_embeddings().weight.requires_grad_(True)
    with pytest.raises(AgentGymError, match=r"embed_tokens\.weight trains too: use FileWeights"):
        FileAdapters(a_policy(serve()), model)


def test_a_recipe_with_adapters_brings_them_alone():
    sync = {"class": "agentgym.policies.vllm.adapters:FileAdapters"}
    run = build(a_recipe(sync=sync, learner={"lora": {"rank": 4, "alpha": 8}}))
    assert isinstance(run.sync, FileAdapters)
    assert all(".lora_" in name for name in run.learner.weights())
    with pytest.raises(AgentGymError, match=r"set learner\.lora"):
        build(a_recipe(sync=sync))


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (300, 320)])
def test_a_server_is_started_with_room_for_adapters_of_a_rank(rank, room):
    command = VllmServer("MODEL", lora=rank).command
    assert {"--enable-lora", f"--max-lora-rank={room}"} <= {*command}
    assert "--enable-lora" not in VllmServer("MODEL").command


@pytest.mark.parametrize("rank", [0, 513])
def test_a_rank_that_no_server_has_room_for_is_refused(rank):
    with pytest.raises(AgentGymError, match="rank 1 to 512"):
        VllmServer("MODEL", lora=rank)
