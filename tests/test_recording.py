"""Recorded answers of tools: played again without the service, through errors, forks and kills."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import AgentEnv, AgentGymError, InfrastructureError, Reply, Task, Tool, ToolError, call, tool
from agentgym.snapshot import Kind
from agentgym.tool import _arguments
from agentgym.tools.recording import Recording, Tape, recorded, replayed
from agentgym.tools.remote import SchemaTool


class Bank:
    """A service with a state of its own, which counts how often it is asked."""

    def __init__(self) -> None:
        self.balance = self.asked = 0

    @tool(effect="read")
    def look(self, what: str = "balance") -> str:
        """Look at the balance."""
        self.asked += 1
        if what != "balance":
            raise ToolError(f"there is no {what}")
        return f"{self.balance} after {self.asked} questions"

    @tool
    def pay(self, amount: int) -> dict[str, int]:
        """Pay something in."""
        self.asked += 1
        if amount < 0:
            raise InfrastructureError("the vault does not answer")
        self.balance += amount
        return {"balance": self.balance}

    @tool
    def leave(self) -> Reply:
        """Go home."""
        return Reply("Good-bye.", reward=0.5, ends=True)


class Banking(AgentEnv):
    """Plays with a bank, which each episode finds empty, or with a tape alone."""

    snapshots: Kind = "log"

    def __init__(self, bank: Bank, tape: Tape) -> None:
        super().__init__(tape.tools)
        self.bank, self.tape = bank, tape

    def tasks(self, split: str) -> list[Task]:
        return [Task("a", "Save."), Task("b", "Save more.")]

    def begin(self, task: Task) -> None:
        self.bank.balance = 0
        self.tape.begin(task.id)


def tools_of(bank: Bank) -> list[Tool]:
    return [Tool(bank.look), Tool(bank.pay), Tool(bank.leave)]


def begun(tape: Tape) -> Tape:
    tape.begin("a")
    return tape


ACTIONS = [
    call("look"), call("pay", amount=5), call("look"), call("look", what="vault"), call("pay", amount=5), call("pay", amount="x"),
    call("look"), call("leave"),
]  # fmt: skip


def play(env: Banking, task: str = "a", actions: list[str] = ACTIONS) -> list[object]:
    env.reset(seed=0, options={"task": task})
    return [env.step(action) for action in actions]


def test_an_environment_plays_offline_what_it_played_with_the_service(tmp_path: Path) -> None:
    path, bank = tmp_path / "bank.jsonl", Bank()
    with Recording(path) as recording:
        online = [play(Banking(bank, recorded(tools_of(bank), recording)), task) for task in "ab"]
    asked = bank.asked
    env = Banking(bank, replayed(tools_of(bank), path))
    assert [play(env, task) for task in "ab"] == online
    assert bank.asked == asked
    assert "0 after 1 questions" in str(online[0][0])
    assert online[0][-1][1:3] == (0.5, True)


def test_the_tools_look_the_same_to_the_policy(tmp_path: Path) -> None:
    bank, schema = Bank(), {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    plain = [*tools_of(bank), SchemaTool("far", "Far away.", schema, lambda x: x, "read")]
    with Recording(tmp_path / "a") as recording:
        taped = begun(recorded(plain, recording)).tools
        assert [(one.spec, one.effect, one.ends) for one in taped] == [(one.spec, one.effect, one.ends) for one in plain]
        assert taped[3].read_arguments({"x": "1"}) == "far: x: '1' is not of type 'integer'."
        assert taped[3](x=3) == "3"


def test_what_is_read_is_asked_once_until_something_is_written(tmp_path: Path) -> None:
    bank = Bank()
    with Recording(tmp_path / "a") as recording:
        look, pay, _ = begun(recorded(tools_of(bank), recording)).tools
        assert [look(), look(what="balance")] == ["0 after 1 questions", "0 after 2 questions"]
        assert [look(), look()] == ["0 after 1 questions"] * 2
        pay(amount=3)
        assert [look(), look()] == ["3 after 4 questions"] * 2
        assert [pay(amount=3), pay(amount=3)] == ['{"balance":6}', '{"balance":9}']


def test_tools_that_only_read_find_their_answers_in_any_order_and_episode(tmp_path: Path) -> None:
    bank = Bank()
    with Recording(tmp_path / "a") as recording:
        tape = recorded([bank.look], recording)
        tape.begin("a")
        said = tape.tools[0]()
    tape = replayed([bank.look], tmp_path / "a")
    tape.begin("another")
    assert [tape.tools[0](), tape.tools[0]()] == [said, said]


def test_a_call_that_was_never_made_is_refused_with_its_name_and_the_remedy(tmp_path: Path) -> None:
    bank, path = Bank(), tmp_path / "a.jsonl"
    with Recording(path) as recording:
        play(Banking(bank, recorded(tools_of(bank), recording)))
    env = Banking(bank, replayed(tools_of(bank), path))
    with pytest.raises(InfrastructureError, match=r'a\.jsonl holds no answer to pay\({"amount":7}\) .*play it once with recorded'):
        play(env, actions=[call("pay", amount=7)])
    with pytest.raises(InfrastructureError, match="holds no answer to look"):
        play(env, task="b", actions=[call("look")])


def test_refusals_are_recorded_and_failures_of_the_service_are_not(tmp_path: Path) -> None:
    bank, path = Bank(), tmp_path / "a.jsonl"
    with Recording(path) as recording:
        look, pay, _ = begun(recorded(tools_of(bank), recording)).tools
        with pytest.raises(InfrastructureError, match="the vault does not answer"):
            pay(amount=-1)
        for _ in range(2):
            with pytest.raises(ToolError, match=r"^there is no gold$"):
                look(what="gold")
    assert [json.loads(line)["refused"] for line in path.read_text().splitlines()] == ["there is no gold"]
    with pytest.raises(InfrastructureError, match="holds no answer to pay"):
        begun(replayed(tools_of(bank), path)).tools[1](amount=-1)


@given(st.lists(st.sampled_from(ACTIONS[:5]), min_size=1, max_size=6), st.integers(0, 5))
def test_forks_find_their_answers_too(tmp_path_factory: pytest.TempPathFactory, actions: list[str], at: int) -> None:
    path, bank = tmp_path_factory.mktemp("forks") / "a.jsonl", Bank()
    with Recording(path) as recording:
        play(Banking(bank, recorded(tools_of(bank), recording)), actions=actions)
    asked = bank.asked
    env = Banking(bank, replayed(tools_of(bank), path))
    expected = play(env, actions=actions[:at])
    snapshot = env.snapshot()
    expected += [env.step(action) for action in actions[at:]]
    other = Banking(bank, replayed(tools_of(bank), path))
    other.restore(snapshot)
    assert [other.step(action) for action in actions[at:]] == expected[at:][: len(actions) - at]
    assert bank.asked == asked


def test_calls_at_once_write_whole_lines_and_agree_on_one_answer(tmp_path: Path) -> None:
    path, heard, together, numbers = tmp_path / "a.jsonl", list[str](), threading.Barrier(8), iter(range(8))

    @tool(effect="read")
    def ask() -> str:
        """Ask, and be answered when all have asked."""
        together.wait()
        return f"{next(numbers)}" * 10_000

    with Recording(path) as recording:
        (taped,) = recorded([ask], recording).tools
        threads = [threading.Thread(target=lambda: heard.append(taped())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 8
    assert {json.loads(line)["said"] for line in path.read_text().splitlines()} == set(heard)
    assert len(set(heard)) == 1


def test_what_writes_is_done_again_in_a_recording_that_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        bank = Bank()
        with Recording(tmp_path / "a") as recording:
            play(Banking(bank, recorded(tools_of(bank), recording)))
        assert bank.balance == 10
    assert len((tmp_path / "a").read_text().splitlines()) == 7


def test_what_writes_never_gets_the_answer_of_another_time(tmp_path: Path) -> None:
    bank = Bank()
    with Recording(tmp_path / "a") as recording:
        begun(recorded(tools_of(bank), recording)).tools[1](amount=5)
        with pytest.raises(InfrastructureError, match=r'pay\({"amount":5}\) answers otherwise than in .*begin\(\) must make all anew'):
            begun(recorded(tools_of(bank), recording)).tools[1](amount=5)


def test_tools_that_write_are_refused_until_an_episode_begins(tmp_path: Path) -> None:
    bank = Bank()
    with Recording(tmp_path / "a") as recording:
        for taped in recorded(tools_of(bank), recording).tools:
            with pytest.raises(AgentGymError, match=r"call tape\.begin\(task\.id\)"):
                taped()
    assert bank.asked == 0


def test_arguments_are_the_same_in_every_process_and_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    @tool(effect="read")
    def find(tags: set[str], more: dict[str, Any] | None = None) -> str:
        """Find."""
        return f"{len(tags)} found"

    tags = {f"tag {number}" for number in range(50)}
    with Recording(tmp_path / "a") as recording:
        (taped,) = recorded([find], recording).tools
        assert taped(tags=tags) == "50 found"
        with pytest.raises(ToolError, match="the arguments cannot be written down"):
            taped(tags=tags, more={"n": 10**30})
    assert json.loads((tmp_path / "a").read_text())["arguments"]["tags"] == sorted(tags)
    assert replayed([find], tmp_path / "a").tools[0](tags=tags) == "50 found"


def test_many_tapes_share_what_is_made_of_a_signature(tmp_path: Path) -> None:
    bank = Bank()
    with Recording(tmp_path / "a") as recording:
        tapes = [recorded([Tool(bank.look)], recording).tools[0] for _ in range(2)]
        made = _arguments.cache_info().misses
        for taped in [*tapes, *recorded([Tool(Bank().look)], recording).tools]:
            assert taped.read_arguments({"what": "x"}) == {"what": "x"}
            assert "what" in taped.spec["function"]["parameters"]["properties"]
        assert _arguments.cache_info().misses == made


def test_an_answer_that_does_not_fit_on_the_disk_leaves_no_torn_line(tmp_path: Path) -> None:
    limits, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "a"
    bank = Bank()
    with Recording(path) as recording:
        (look,) = recorded([bank.look], recording).tools
        look()
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        try:
            with pytest.raises(AgentGymError, match=r"could not be written to .*: make room"):
                look(what="vault")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before


RECORDER = """
import sys
from agentgym import tool
from agentgym.tools.recording import Recording, recorded

@tool(effect="read")
def square(n: int) -> str:
    "Square a number."
    return "x" * 5000 + str(n * n)

with Recording(sys.argv[1]) as recording:
    (square,) = recorded([square], recording).tools
    for n in range(10**9):
        square(n=n)
"""


def test_a_recording_that_is_killed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "squares.jsonl"
    process = subprocess.Popen([sys.executable, "-c", RECORDER, str(path)])
    while not path.exists() or path.stat().st_size < 500_000:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with path.open("ab") as file:
        file.write(b'{"tool": "square", "argum')  # as if the last line had not got through

    @tool(effect="read")
    def square(n: int) -> str:
        """Square a number."""
        return f"asked again for {n}"

    with pytest.warns(UserWarning, match="the last line of .* is torn and was dropped"):
        recording = Recording(path)
    with recording:
        count = len(path.read_text().splitlines())
        (again,) = recorded([square], recording).tools
        assert again(n=9) == "x" * 5000 + "81"
        assert again(n=count) == f"asked again for {count}"
    assert len(path.read_text().splitlines()) == count + 1
    assert replayed([square], path).tools[0](n=count) == f"asked again for {count}"


def test_a_torn_line_is_passed_over_in_a_replay_and_left_alone(tmp_path: Path) -> None:
    path, bank = tmp_path / "a.jsonl", Bank()
    path.write_text('{"tool": "look", "arguments": {}, "after": "", "said": "hi"}\n{"tool": "lo')
    with pytest.warns(UserWarning, match="torn"):
        tape = replayed([bank.look], path)
    assert tape.tools[0]() == "hi"
    assert path.read_text().endswith('{"tool": "lo')


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match="there is no recording"):
        replayed([], tmp_path / "none")
    good = '{"tool": "a", "arguments": {}, "after": "", "said": "x"}\n'
    reply = '{"text": "x", "reward": 0, "ends": false, "outcome": "none such", "messages": []}'
    for bad in ("nonsense", good.replace(', "said": "x"', ""), good.replace('"said": "x"', f'"replied": {reply}'), "[]"):
        (tmp_path / "bad").write_text(good + bad.strip() + "\n")
        for _ in range(2):  # nor is the file held
            with pytest.raises(AgentGymError, match=r"bad, line 2 is no recorded answer"):
                Recording(tmp_path / "bad")
    with Recording(tmp_path / "busy"), pytest.raises(AgentGymError, match="is being recorded already"):
        Recording(tmp_path / "busy")
    with Recording(tmp_path / "busy") as recording:
        pass
    assert os.path.getsize(tmp_path / "busy") == 0
    with pytest.raises(AgentGymError, match="is closed"):
        recorded([Bank().look], recording).tools[0]()
