"""A chat model for users, judges and simulators, against a server that listens on this machine and answers as it was told to."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentgym import Call
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.tools.completion import LARGEST, Completion, Said, ScriptedCompletion, without_thought

HELLO = [{"role": "user", "content": "Hello."}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def said(content: str | None = None, **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}}]}


def called(arguments: Any) -> dict[str, Any]:
    return said(tool_calls=[{"id": "c", "type": "function", "function": {"name": "add", "arguments": arguments}}])


class Server:
    """Gives its answers in order, then the last: a value as JSON, bytes as they are, (status, headers), or a way to answer."""

    def __init__(self, *answers: Any) -> None:
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.closing = threading.Event()
        given, server = iter(answers), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.authorizations.append(self.headers["authorization"])
                server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                answer = next(given, answers[-1])
                if callable(answer):
                    answer(self)
                    return
                status, headers = answer if isinstance(answer, tuple) else (200, {})
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode() if status == 200 else b"no such model"
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

    def silence(self, handler: Any) -> None:
        self.closing.wait(20)

    def drip(self, handler: Any) -> None:
        """A byte at a time, so that no single read is slow."""
        handler.send_response(200)
        handler.end_headers()
        while not self.closing.wait(0.02):
            handler.wfile.write(b" ")

    def trickle(self, handler: Any) -> None:
        """A header that does not end."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.closing.wait(0.02):
            handler.wfile.write(b"a")

    def flood(self, handler: Any) -> None:
        """More than is read, and then nothing: whoever reads on has no answer in time."""
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b" " * (LARGEST + 1))
        self.closing.wait(20)

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers: list[Server] = []

    def start(*answers: Any) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server: Server, settings: dict[str, Any] | None = None, **how: Any) -> Said:
    completion = Completion(server.url, "m", **{"backoff": 0.0, **(settings or {})})
    try:
        return completion.complete(HELLO, **how)
    finally:
        completion.close()


def test_a_question_goes_out_in_openais_form_with_the_key_from_the_environment(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    server = serve(said("Good day."))
    answer = ask(server, {"key": "SOME_KEY", "options": {"top_p": 0.9, "temperature": None}}, tools=TOOLS, seed=7)
    assert answer == Said("Good day.")
    assert server.requests == [{"model": "m", "messages": HELLO, "tools": TOOLS, "seed": 7, "top_p": 0.9}]
    assert server.authorizations == ["Bearer s3cret"]
    ask(server, temperature=0.25)
    assert server.requests[1] == {"model": "m", "messages": HELLO, "temperature": 0.25}
    assert server.authorizations[1] is None


def test_calls_come_back_with_their_arguments_and_malformed_ones_as_a_problem(serve):
    assert ask(serve(called('{"n": 4}'))) == Said("", (Call("add", {"n": 4}),))
    assert ask(serve(called({"n": 4}))) == ask(serve(called('{"n": 4}')))
    assert ask(serve(called(""))).calls == (Call("add", {}),)
    for bad in ("{", "[1]", "7"):
        answer = ask(serve(called(bad)))
        assert (answer.calls, answer.problem) == ((), "the arguments of 'add' are no JSON object")


def test_an_empty_answer_is_an_answer_and_is_not_asked_for_again(serve):
    for empty in (said(""), said(None), {"choices": []}, said("<think>\nhm\n</think>\n"), said("<think>\ncut off")):
        server = serve(empty)
        assert ask(server) == Said()
        assert len(server.requests) == 1


def test_thoughts_are_no_part_of_what_is_said():
    assert without_thought("<think>a</think> Yes. ") == "Yes."
    assert without_thought("I must not tell.\n</think>\nI am Mara.") == "I am Mara."
    assert without_thought("<think>a</think> <think>b</think> Yes. <tool_call>{") == "Yes. <tool_call>{"
    assert without_thought(" <think>cut off") == without_thought("a </think> <think>cut off") == ""
    assert without_thought("Is a < b? <think>") == "Is a < b? <think>"


@pytest.mark.parametrize("trouble", [(429, {"retry-after": "0.01"}), (503, {}), (500, {}), b"<html>", b'{"choices": 3}', b"\xff\xfe"])
def test_what_may_pass_is_tried_again_and_then_it_is_the_infrastructures_fault(serve, trouble):
    server = serve(trouble, trouble, said("Here."))
    assert ask(server, {"retries": 2}).text == "Here."
    server = serve(trouble)
    with pytest.raises(InfrastructureError, match="after 3 tries"):
        ask(server, {"retries": 2})
    assert len(server.requests) == 3


def test_any_other_status_is_final_and_the_key_is_in_no_message(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    server = serve((404, {}))
    with pytest.raises(InfrastructureError, match="status 404, no such model") as raised:
        ask(server, {"key": "SOME_KEY"})
    assert len(server.requests) == 1
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("before", [0, 280])  # at its end, a part of it would be left if it were cut first
def test_a_key_that_the_server_repeats_is_taken_out_of_the_error(serve, monkeypatch, before):
    def refuse(handler: Any) -> None:
        body = b"x" * before + handler.headers["authorization"].encode()
        handler.send_response(401)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    monkeypatch.setenv("SOME_KEY", "s3cret-and-long")
    with pytest.raises(InfrastructureError, match=r"status 401, x*Bearer \[key\]") as raised:
        ask(serve(refuse), {"key": "SOME_KEY"})
    assert "s3c" not in str(raised.value)


@pytest.mark.parametrize("space", ["\n", "\r", " ", "\r\n\t"])
def test_space_around_a_key_is_no_part_of_it(serve, monkeypatch, space):
    monkeypatch.setenv("SOME_KEY", f"{space}s3cret{space}")
    server = serve(said("Yes."))
    assert ask(server, {"key": "SOME_KEY"}).text == "Yes."
    assert server.authorizations == ["Bearer s3cret"]


@pytest.mark.parametrize("key", ["s3cret…", "s3\ncret", "s3cret\x7f", " "])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(AgentGymError, match="SOME_KEY holds no key of printable ASCII") as raised:
        Completion("http://localhost", "m", "SOME_KEY")
    assert "s3" not in str(raised.value)


def test_a_lost_connection_is_infrastructure(serve):
    server = serve(said("never"))
    server.close()
    with pytest.raises(InfrastructureError, match="ConnectError"):
        ask(server, {"retries": 1})


@pytest.mark.parametrize("way", ["silence", "drip", "trickle"])
def test_the_time_is_bounded_however_the_server_spends_it(serve, way):
    server = serve(lambda handler: getattr(server, way)(handler))
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"within 0\.5 s"):
        ask(server, {"seconds": 0.5, "retries": 50})
    assert time.monotonic() - started < 5.0


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(serve):
    server = serve((429, {"retry-after": "30"}))
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match="status 429, after 1 try"):
        ask(server, {"seconds": 10.0})
    assert time.monotonic() - started < 5.0


def test_an_answer_without_end_is_not_read_to_its_end(serve):
    server = serve(lambda handler: server.flood(handler))
    with pytest.raises(InfrastructureError, match="an answer without end"):
        ask(server, {"retries": 0, "seconds": 20.0})


def test_threads_share_one_completion(serve):
    completion = Completion(serve(said("Yes.")).url, "m", backoff=0.0)
    found: list[Said] = []
    threads = [threading.Thread(target=lambda: found.append(completion.complete(HELLO))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    completion.close()
    assert found == [Said("Yes.")] * 8


def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(AgentGymError, match="give an address"):
        Completion("localhost:8000", "m")
    with pytest.raises(AgentGymError, match="not the key") as raised:
        Completion("http://localhost", "m", "sk-123")
    assert "sk-123" not in str(raised.value)
    with pytest.raises(AgentGymError, match="seconds > 0"):
        Completion("http://localhost", "m", seconds=0)


def test_scripted_answers_come_in_order_or_from_a_function_and_run_out_loudly():
    scripted = ScriptedCompletion(["a", Said("b")])
    assert [scripted.complete(HELLO).text for _ in range(2)] == ["a", "b"]
    with pytest.raises(InfrastructureError, match="2 scripted answers"):
        scripted.complete(HELLO)
    by_rule = ScriptedCompletion(lambda messages, tools, seed: f"{messages[-1]['content']} {seed}")
    assert by_rule.complete(HELLO, seed=3).text == "Hello. 3"
    assert by_rule.asked == [HELLO]


def test_half_of_a_surrogate_pair_goes_out_as_a_question_mark_and_a_wrong_address_is_refused(serve):
    server = serve(said("Good day."))
    completion = Completion(server.url, "m")
    assert completion.complete([{"role": "user", "content": "a\ud800b"}]).text == "Good day."
    completion.close()
    assert server.requests[0]["messages"][0]["content"] == "a?b"
    with pytest.raises(AgentGymError, match="which is no address"):
        Completion("https://[::1", "m")
