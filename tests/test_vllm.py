"""The policy on servers that answer as a real one did, and fail on demand."""

from __future__ import annotations

import asyncio
import copy
import time
from functools import partial

import pytest
from vllm_server import RECORDED, Fake

from agentgym import Limits, Lineage, Outcome, Rollout, Start, Task
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.expand import Groups
from agentgym.policy import Prompt, Sampling
from agentgym.registry import make
from agentgym.turn import Turn, TurnTree

torch = pytest.importorskip("torch")

from agentgym.cli.policies import find_policy, refuse_without_tools  # noqa: E402
from agentgym.cli.training import build  # noqa: E402
from agentgym.policies import tiny  # noqa: E402
from agentgym.policies.vllm import VllmPolicy  # noqa: E402
from agentgym.policies.vllm.client import chat_of  # noqa: E402
from agentgym.policies.vllm.replica import Lost  # noqa: E402
from agentgym.trainers.recipe import Recipe, validated  # noqa: E402

CHAT = tiny.tiny_chat(tiny.TinyTokenizer.load(tiny.SHIPPED))
SAMPLE = RECORDED["sample"]["body"]["choices"][0]


@pytest.fixture
def serve():
    servers = []

    def start(kind=Fake, **settings):
        servers.append(kind(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def a_policy(*servers, **settings):
    return VllmPolicy([server.url for server in servers], CHAT, **{"backoff": 0.01, "patience": 5.0, **settings})


def prompt(name="tree", cache=None):
    tree = TurnTree(name, Task("t", "Count."))
    return Prompt(tree, tree.add(Turn(0, None, "env", 0, ids=[20, 21], cache=cache)))


def ask(policy, *prompts, sampling=None):
    async def once():
        asked = [policy.generate(each, sampling or Sampling(1.0, 64, 5)) for each in prompts or (prompt(),)]
        try:
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await policy.close()

    found = asyncio.run(once())
    for error in found:
        if isinstance(error, BaseException):
            raise error
    return found if len(found) > 1 else found[0]


def test_a_sample_is_read_with_its_log_probabilities_and_everything_is_asked_for_by_name(serve):
    server = serve()
    policy = a_policy(server)
    found = ask(policy, sampling=Sampling(0.5, 64, 11))
    assert found.ids == SAMPLE["token_ids"]
    assert found.logprobs == [token["logprob"] for token in SAMPLE["logprobs"]["content"]]
    assert (found.finish, found.versions, found.cache) == ("stop", [(0, len(found.ids))], server.url)
    (asked,) = server.samplings
    assert asked["token_ids"] == [20, 21]
    assert asked["sampling_params"] == {
        "temperature": 0.5, "top_p": 1.0, "top_k": 0, "n": 1, "logprobs": 0, "detokenize": False, "ignore_eos": True,
        "stop_token_ids": sorted(CHAT.stop_ids), "max_tokens": 64, "seed": 11,
    }  # fmt: skip


def test_the_turns_of_a_tree_go_to_one_server_and_trees_to_all(serve):
    servers = [serve(), serve()]
    policy = a_policy(*servers)

    async def homes(name):
        first = await policy.generate(prompt(name), Sampling())
        remembered = await policy.generate(prompt(name, first.cache), Sampling())
        forgotten = await policy.generate(prompt(name), Sampling())
        moved = await policy.generate(prompt(name, next(server.url for server in servers if server.url != first.cache)), Sampling())
        return {first.cache, remembered.cache, forgotten.cache}, moved.cache

    async def run():
        return [await homes(str(number)) for number in range(12)]

    found = asyncio.run(run())
    assert all(len(home) == 1 and moved not in home for home, moved in found)
    assert {moved for _, moved in found} == {server.url for server in servers}


def test_what_is_remembered_gives_way_only_to_a_far_longer_queue(serve):
    servers = [serve(), serve()]
    servers[0].work = servers[1].work = 0.2
    ask(a_policy(*servers), *(prompt(str(number), servers[0].url) for number in range(16)))
    kept, moved = (len(server.samplings) for server in servers)
    assert 9 <= kept <= 12
    assert kept + moved == 16


def test_no_more_requests_than_its_width_are_at_a_server_at_once(serve):
    server = serve()
    server.work = 0.02
    ask(a_policy(server, width=3), *(prompt(str(number)) for number in range(12)))
    assert server.busiest == 3
    assert len(server.samplings) == 12


@pytest.mark.parametrize("fault", ["drop", 500, 503, "aborted", b"no json", {"choices": []}])
def test_what_is_no_sample_is_asked_for_again(serve, fault):
    server = serve()
    server.faults = [fault, fault]
    policy = a_policy(server)
    assert ask(policy).ids == SAMPLE["token_ids"]
    assert policy.metrics()["vllm_lost"] == 2
    assert policy.metrics()["vllm_aborted"] == 2 * (fault == "aborted")


def wrong(change):
    body = copy.deepcopy(RECORDED["sample"]["body"])
    change(body["choices"][0])
    return body


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda choice: choice["logprobs"]["content"].pop(), "log-probabilities for"),
        (lambda choice: choice["logprobs"]["content"][0].update(logprob=float("nan")), "finite number"),
        (lambda choice: choice.update(logprobs=None), "0 log-probabilities"),
        (lambda choice: choice["weight_versions"][0].update(end=3), "do not cover"),
        (lambda choice: choice.update(token_ids=[]), "broke off"),
        (lambda choice: choice.update(finish_reason=None), "broke off"),
    ],
)
def test_an_answer_that_lacks_something_is_never_a_sample(serve, change, sentence):
    server = serve()
    server.faults = [wrong(change)] * 2
    with pytest.raises(InfrastructureError, match=f"{sentence}.*after 2 tries"):
        ask(a_policy(server, retries=1))


def test_a_lost_request_goes_to_another_server_and_a_lost_server_gets_requests_again(serve):
    servers = [serve(), serve()]
    servers[0].faults = ["drop"]
    policy = a_policy(*servers)

    async def run():
        await policy.ready()
        first = await policy.generate(prompt("tree", servers[0].url), Sampling(1.0, 64))
        await policy.ready()
        return first, await policy.generate(prompt("tree", servers[0].url), Sampling(1.0, 64))

    first, second = asyncio.run(run())
    assert (first.cache, second.cache) == (servers[1].url, servers[0].url)


def test_a_server_that_comes_back_elsewhere_is_found_and_asked_again(serve):
    class Moving:
        """Two places, and nowhere between them."""

        def __init__(self):
            self.places, self.asked = [serve()], 0

        def __str__(self):
            return "server 1"

        async def __call__(self):
            self.asked += 1
            if not self.places:
                self.places = [serve()]
                self.places[0].version = policy.pushed  # as an earlier run left it: nobody has heard it answer yet
                raise Lost("server 1 has not started yet")
            return self.places[0].url

    moving, brought = Moving(), []
    policy = VllmPolicy([moving], CHAT, backoff=0.01, patience=5.0)

    async def bring(replica):
        replica.proved = policy.pushed
        brought.append(replica.url)

    policy.pushed, policy.bring = "step-0", bring
    moving.places[0].version = policy.pushed

    async def run():
        first = await policy.generate(prompt(), Sampling(1.0, 64))
        old = moving.places.pop()
        old.faults = ["drop"]  # a connection that stands would still be answered
        old.close()
        second = await policy.generate(prompt(), Sampling(1.0, 64))
        return first, second, old.url

    first, second, old = asyncio.run(run())
    assert first.cache == old != second.cache == moving.places[0].url
    assert brought == [first.cache, second.cache]
    assert moving.asked >= 3


def test_those_that_wait_for_a_server_that_moves_are_answered_where_it_is_then(serve):
    first, second = serve(), serve()
    first.work = 0.2
    place = [first.url]

    async def where():
        return place[0]

    policy = VllmPolicy([where], CHAT, width=4, backoff=0.01, patience=5.0)

    async def run():
        await policy.ready()
        asked = [asyncio.create_task(policy.generate(prompt(str(n)), Sampling(1.0, 64))) for n in range(24)]
        await asyncio.sleep(0.1)  # four are under way, and the others wait
        place[0] = second.url
        policy.forget()
        return await asyncio.gather(*asked)

    assert {found.cache for found in asyncio.run(run())} <= {first.url, second.url}


def test_who_says_where_a_server_is_and_cannot_is_heard():
    async def where():
        raise ValueError("no such table")

    with pytest.raises(ValueError, match="no such table"):
        ask(VllmPolicy([where], CHAT, backoff=0.01, patience=5.0))


def test_a_hung_server_is_lost_after_its_timeout(serve):
    servers = [serve(), serve()]
    servers[0].faults = [30.0]
    started = time.monotonic()
    found = ask(a_policy(*servers, timeout=0.5), prompt("tree", servers[0].url))
    assert found.cache == servers[1].url
    assert time.monotonic() - started < 20


def test_without_a_server_an_episode_ends_without_a_verdict(serve):
    server = serve()
    server.close()
    env = partial(make, "agentgym/Search-v0")
    rollout = Rollout(env, Groups(size=1), {"policy": a_policy(server, patience=0.3)}, CHAT, Lineage.of(0, "x"), limits=Limits(448, 72))
    (tree,) = asyncio.run(rollout.run([Start(env().tasks("validation")[0])]))
    (leaf,) = tree.leaves()
    assert (leaf.reward, leaf.outcome) == (None, Outcome.INFRASTRUCTURE)
    assert "serve-policy" in leaf.error


def test_who_waits_for_a_server_that_starts_late_is_answered(serve):
    server = serve()
    port = server.port
    server.close()
    policy = a_policy(server)

    async def run():
        waiting = asyncio.create_task(policy.generate(prompt(), Sampling(1.0, 64)))
        await asyncio.sleep(0.3)
        serve(port=port)
        return await waiting

    assert asyncio.run(run()).ids == SAMPLE["token_ids"]


def test_an_update_in_mid_action_is_seen_in_the_versions(serve):
    server = serve()
    server.faults = ["two versions"]
    found = ask(a_policy(server))
    first, second = RECORDED["two versions"]["body"]["choices"][0]["weight_versions"]
    assert found.versions == [(0, first["end"]), (17, second["end"] - second["start"])]


@pytest.mark.parametrize(
    ("route", "answer", "sentence"),
    [
        ("/v1/models", "no such route", r"has no /v1/models \(it is vLLM 0.32.0\)"),
        ("/tokenize", "tokens of others", "another tokenizer"),
        ("/is_paused", "is paused", "is paused: another run"),
    ],
)
def test_a_server_that_is_not_the_policys_is_refused_with_what_is_wrong(serve, monkeypatch, route, answer, sentence):
    monkeypatch.setitem(RECORDED, "tokens of others", {"status": 200, "body": {"tokens": [1, 2]}})
    monkeypatch.setitem(RECORDED, "is paused", {"status": 200, "body": {"is_paused": True}})
    server = serve()
    server.broken = {route: answer}
    with pytest.raises(AgentGymError, match=sentence):
        ask(a_policy(server))


def test_a_server_without_tokens_in_and_out_says_what_it_needs(serve):
    server = serve()
    server.sample = lambda body: (403, {"error": {"message": "scale-out is off"}})
    with pytest.raises(AgentGymError, match=r"no /inference/v1/generate .*--enable-scale-out"):
        ask(a_policy(server))


def test_a_model_of_another_size_is_refused_with_the_figures(serve):
    for rows, more in ((570, "more tokens than the 570"), (600, "fewer tokens than the 600")):
        with pytest.raises(AgentGymError, match=more):
            ask(a_policy(serve(), rows=rows))


@pytest.mark.parametrize(
    "settings",
    [{"urls": []}, {"urls": "localhost:8000"}, {"urls": ["http://a", "http://a/"]}, {"width": 0}, {"retries": -1}, {"patience": 0.0}],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(AgentGymError):
        VllmPolicy(**{"urls": "http://localhost:8000", "chat": CHAT, **settings})


def test_scores_have_one_place_for_each_token(serve):
    ids = RECORDED["scores"]["body"]["prompt_logprobs"]
    tokens = [20, *(next(iter(place)) for place in ids[1:])]
    server = serve()
    found = asyncio.run(a_policy(server).score([int(token) for token in tokens], topk=2))
    assert found.logprobs[0] == found.topk_logprobs[0].abs().sum() == 0
    assert found.logprobs[1:].tolist() == pytest.approx([next(iter(place.values()))["logprob"] for place in ids[1:]])
    assert found.topk_ids.shape == found.topk_logprobs.shape == (10, 2)
    assert (found.topk_logprobs[:, 0] >= found.topk_logprobs[:, 1]).all()
    with pytest.raises(InfrastructureError, match="other tokens"):
        asyncio.run(a_policy(server, retries=0).score([20] * 10))


def test_the_policy_lives_on_in_another_event_loop(serve):
    policy = a_policy(serve())
    for _ in range(2):
        assert asyncio.run(policy.generate(prompt(), Sampling(1.0, 64))).ids == SAMPLE["token_ids"]


def test_a_model_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(AgentGymError, match=f"the tokenizer of '{tmp_path}' cannot be loaded"):
        chat_of(str(tmp_path))


def test_a_key_that_the_server_would_never_see_is_refused():
    with pytest.raises(AgentGymError, match="leave --key out"):
        find_policy("vllm+http://127.0.0.1:8000", lambda: make("agentgym/Search-v0"), key="SOME_KEY")


def test_tools_are_asked_for_only_where_somebody_must_be_told_of_them():
    def never():
        raise AssertionError("an episode begins for nothing")

    refuse_without_tools(VllmPolicy("http://127.0.0.1:8000", CHAT), CHAT, never)


def a_recipe(**fields):
    served = {"class": "agentgym.policies.vllm:VllmPolicy", "urls": ["http://127.0.0.1:8000"]}
    return validated(Recipe, {"env": {"id": "agentgym/Search-v0"}, "steps": 1, "actor": served, **fields}, "recipe")


def test_a_recipe_trains_the_policys_weights_and_plays_on_a_server():
    run = build(a_recipe(sync={"class": "agentgym.policies.vllm.sync:FileWeights"}))
    assert isinstance(run.actor, VllmPolicy)
    assert run.sync.policy is run.actor
    assert run.learner.model is run.sync.model


def test_a_recipe_whose_server_would_get_no_weights_is_refused():
    with pytest.raises(AgentGymError, match="needs a sync that brings it weights, such as"):
        a_recipe()
    with pytest.raises(AgentGymError, match=r"SharedWeights.*unexpected keyword argument 'model'"):
        build(a_recipe(sync={"class": "agentgym.policies.sync:SharedWeights"}))
