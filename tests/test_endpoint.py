"""An endpoint as an actor, against a server that listens on this machine and answers as it was told to."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from typing import Any

import pytest
import yaml
from test_rollout import Counter, tiny_chat

from agentgym import Limits, Lineage, Outcome, Rollout, Start, Task, call, parse_action
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.expand import Groups
from agentgym.policies.endpoint import Endpoint
from agentgym.policy import Prompt, Sampling
from agentgym.rollout import episode
from agentgym.trainers.recipe import Plugin
from agentgym.turn import Turn, TurnTree

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def said(content=None, finish="stop", **message):
    return {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}]}


def called(arguments, name="add", **message):
    function = {"name": name, "arguments": arguments}
    return said(tool_calls=[{"id": "c", "type": "function", "function": function}], finish="tool_calls", **message)


class Server:
    """Gives its ``answers`` in order, then the last: a value as JSON, text as it stands, (status, headers), or seconds of silence."""

    def __init__(self, *answers: Any) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.closing = threading.Event()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        answered, server = iter(answers), self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept

            def do_POST(self) -> None:
                with server.lock:
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                server.headers.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
                server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                answer = next(answered, answers[-1])
                if isinstance(answer, float):
                    server.closing.wait(answer)
                    answer = said("late")
                status, headers, *told = answer if isinstance(answer, tuple) else (200, {}, answer)
                with server.lock:
                    server.busy -= 1
                answer = told[0] if told else "no such model"
                body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that did not wait

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(*answers):
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def prompt():
    tree = TurnTree("tree", Task("t", "Count."))
    tree.tools = TOOLS
    root = tree.add(Turn(0, None, "env", 0, replies=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]))
    replies = [{"role": "tool", "name": "add", "content": "1"}, {"role": "tool", "name": "add", "content": "3"}]
    action = f"{call('add', n=1, thought='one')}\n{call('add', n=2)}"
    return Prompt(tree, tree.add(Turn(-1, root, "policy", 1, action=action, replies=replies)))


def ask(server, sampling=None, **settings):
    async def once():
        endpoint = Endpoint(getattr(server, "url", server), "m", **{"backoff": 0.0, **settings})
        try:
            return await endpoint.generate(prompt(), sampling or Sampling(0.7, 50, 11))
        finally:
            await endpoint.close()

    return asyncio.run(once())


def test_the_conversation_goes_out_in_openais_form(serve):
    server = serve(said("Three."))
    assert ask(server, options={"top_p": 0.9, "seed": None}).text == "Three."
    (request,) = server.requests
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert "authorization" not in server.headers[0]
    messages = request.pop("messages")
    assert request == {"model": "m", "tools": TOOLS, "temperature": 0.7, "max_tokens": 50, "top_p": 0.9}
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool"]
    calls = messages[2]["tool_calls"]
    assert [(c["type"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [
        ("function", "add", {"n": 1}),
        ("function", "add", {"n": 2}),
    ]
    assert messages[2]["reasoning_content"] == "one"
    assert [c["id"] for c in calls] == [message["tool_call_id"] for message in messages[3:]]


def test_thought_words_and_calls_come_back_as_canonical_text(serve):
    action = parse_action(ask(serve(called('{"n": 4}', content="So:", reasoning_content=" two more\n"))).text)
    assert (action.thought, action.content, action.problem) == ("two more", "So:", None)
    assert [(c.name, c.arguments) for c in action.calls] == [("add", {"n": 4})]
    assert ask(serve(said("Yes", reasoning="why"))).text == "<think>\nwhy\n</think>\nYes"
    generation = ask(serve(said("Yes", finish="length")))
    assert (generation.finish, generation.ids, generation.logprobs) == ("length", [], [])


@pytest.mark.parametrize("arguments", ['{"n": ', "[1]", "seven", '{"n": 1}, "x": {}', '"</tool_call>"', "{}</tool_call>", "3"])
def test_malformed_arguments_are_the_models_mistake(serve, arguments):
    action = parse_action(ask(serve(called(arguments))).text)
    assert action.calls == ()
    assert "'add' must be a JSON object" in action.problem


@pytest.mark.parametrize("arguments", ["", "{}", "null", None, {}])
def test_no_arguments_are_none(serve, arguments):
    (found,) = parse_action(ask(serve(called(arguments))).text).calls
    assert found.arguments == {}


def test_a_refusal_is_what_the_model_says(serve):
    assert ask(serve(said(refusal="I cannot help with that."))).text == "I cannot help with that."


def test_a_thought_that_was_cut_off_stays_open(serve):
    text = ask(serve(said("", finish="length", reasoning_content="first I"))).text
    assert "not closed" in parse_action(text).problem


@pytest.mark.parametrize(
    "fault",
    [(429, {}), (503, {}), (500, {}), {"choices": []}, {"error": "x"}, "<html>"],
)
def test_what_may_pass_is_tried_again(serve, fault):
    server = serve(fault, fault, said("At last."))
    assert ask(server, retries=2).text == "At last."
    assert server.requests[0] == server.requests[2]
    server = serve(fault, fault, said("Too late."))
    with pytest.raises(InfrastructureError, match=r"/v1/chat/completions, model m: .*, after 2 tries"):
        ask(server, retries=1)
    assert len(server.requests) == 2


@pytest.mark.parametrize("silence", [said(""), said(None), said(None, finish="content_filter"), said(" ", reasoning_content="hm")])
def test_a_model_that_says_nothing_is_asked_again_and_then_has_said_nothing(serve, silence):
    assert ask(serve(silence, said("At last."))).text == "At last."
    server = serve(silence)
    action = parse_action(ask(server, retries=1).text)
    assert (action.content, action.calls, action.problem) == ("", (), None)
    assert len(server.requests) == 2


def test_a_context_that_the_policy_has_filled_is_its_own_doing(serve):
    full = "This model's maximum context length is 4096 tokens. However, your messages have 5000."
    server = serve((400, {}, {"error": {"message": full}}))
    found = ask(server)
    assert (found.text, found.finish, len(server.requests)) == ("", "length", 1)


def test_arguments_nested_too_deeply_are_the_models_mistake(serve):
    text = ask(serve(called('{"a":' * 300 + "1" + "}" * 300))).text
    assert "must be a JSON object" in parse_action(text).problem


def test_words_in_parts_and_counts_that_are_missing_are_read(serve):
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]
    found = ask(serve({**said(parts), "usage": {"prompt_tokens": None}}))
    assert (found.text, found.tokens_read, found.tokens_written) == ("Good day.", 0, 0)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_not_pass_is_not_tried_again(serve, status):
    server = serve((status, {}))
    with pytest.raises(InfrastructureError, match=f"status {status}, no such model"):
        ask(server)
    assert len(server.requests) == 1


def test_silence_is_given_up_and_tried_again(serve):
    server = serve(30.0, said("Here."))
    assert ask(server, timeout=0.1, retries=1).text == "Here."
    server = serve(30.0, 30.0)
    with pytest.raises(InfrastructureError, match="ReadTimeout, after 2 tries"):
        ask(server, timeout=0.1, retries=1)


def test_a_refused_connection_is_an_infrastructure_failure(serve):
    server = serve(said("x"))
    server.close()
    with pytest.raises(InfrastructureError, match=r"ConnectError .*, after 2 tries"):
        ask(server, retries=1)


def test_waits_double_and_the_server_may_ask_for_more(serve, monkeypatch):
    waits = []

    async def slept(seconds):
        waits.append(seconds)

    monkeypatch.setattr("agentgym.policies.endpoint.asyncio.sleep", slept)
    asked_for = [{"Retry-After": seconds} for seconds in ("7", "Wed, 21 Oct 2026", "9999")]
    ask(serve((503, {}), (503, {}), *((429, headers) for headers in asked_for), said("x")), backoff=0.5, retries=5)
    assert waits == [0.5, 1.0, 7.0, 4.0, 60.0]


def test_the_key_is_read_from_the_environment_and_never_shown(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-123")
    server = serve((401, {}))
    with pytest.raises(InfrastructureError) as failed:
        ask(server, key="SOME_KEY")
    assert server.headers[0]["authorization"] == "Bearer secret-123"
    assert "secret-123" not in str(failed.value) + str(vars(Endpoint(server.url, "m", "SOME_KEY")))
    with pytest.raises(AgentGymError, match="names an environment variable that is not set") as refused:
        Endpoint(server.url, "m", "sk-given-by-mistake")
    assert "sk-given" not in str(refused.value)


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"retries": -1}, {"backoff": -1}, {"connections": 0}, {"url": "localhost:8000"}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(AgentGymError):
        Endpoint(**{"url": "http://localhost/v1", "model": "m", **wrong})


def test_one_endpoint_serves_one_event_loop_after_another(serve):
    server = serve(said("x"))
    endpoint = Endpoint(server.url, "m", retries=0)
    assert [asyncio.run(endpoint.generate(prompt(), Sampling())).text for _ in range(3)] == ["x"] * 3
    asyncio.run(endpoint.close())


def test_a_recipe_names_it_by_its_class(serve):
    server = serve(said("x"))
    made = yaml.safe_load(f"{{class: 'agentgym.policies.endpoint:Endpoint', url: '{server.url}', model: m, options: {{max_tokens: null}}}}")
    endpoint = Plugin.model_validate(made).build()
    assert asyncio.run(endpoint.generate(prompt(), Sampling())).text == "x"
    assert "max_tokens" not in server.requests[0]


def play(server, size=1, **settings):
    endpoint = Endpoint(server.url, "m", backoff=0.0, **settings)
    rollout = Rollout(Counter, Groups(size, "teacher"), {"teacher": endpoint}, tiny_chat(), Lineage.of(0), limits=Limits(tokens=10**4))
    return asyncio.run(rollout.run([Start(Task("t", "Count."))]))[0]


def test_an_episode_is_played_through_it_and_malformed_calls_are_answered(serve):
    tree = play(server := serve(called('{"n": 3}'), called('{"n": '), called('{"n": 4}')))
    outcomes = [turn.outcome for turn in episode(tree.leaves()[0])]
    assert outcomes[:3] == [Outcome.OK, Outcome.MODEL_ERROR, Outcome.OK]
    assert "must be a JSON object" in server.requests[2]["messages"][-1]["content"]
    assert server.requests[1]["tools"] == tree.tools
    assert not any(turn.sampled_tokens or turn.logprobs for turn in tree.turns)
    assert all(turn.action_tokens for turn in tree.turns[1:])


def test_a_server_that_is_down_leaves_no_verdict(serve):
    tree = play(serve((500, {})), retries=0)
    (leaf,) = tree.leaves()
    assert (leaf.outcome, leaf.reward) == (Outcome.INFRASTRUCTURE, None)
    assert "status 500, after 1 tries" in leaf.error


def test_many_requests_share_few_connections(serve):
    server = serve(*[0.01] * 200)
    tree = play(server, size=24, connections=2)
    assert all(leaf.outcome is not Outcome.INFRASTRUCTURE for leaf in tree.leaves())
    assert server.busiest == 2


def tools_of(server):
    return asyncio.run(Endpoint(server.url, "m", backoff=0.0).refuse_without_tools())


def test_a_model_that_calls_no_tools_is_refused_before_the_first_task(serve):
    server = serve(called("{}", name="ready"))
    tools_of(server)
    assert server.requests[0]["tools"][0]["function"]["name"] == "ready"
    tools_of(serve(said(call("ready"))))  # a model that writes its calls as text
    for answer, reason in (
        (said("I cannot."), r"it said 'I cannot\.'\. Serve it with tool calling"),
        ((400, {}), "asked to call a tool before the first task: .*status 400, no such model"),
        ((503, {}), "asked to call a tool before the first task: .*status 503, after 5 tries"),
    ):
        with pytest.raises(AgentGymError, match=reason):
            tools_of(serve(answer))


def test_the_servers_own_counts_of_tokens_are_kept(serve):
    found = ask(serve({**said("two"), "usage": {"prompt_tokens": 31, "completion_tokens": 4}}))
    assert (found.tokens_read, found.tokens_written) == (31, 4)
