"""The gold programs of the code suites pass on every backend: a sample by default, all of them where CI asks for it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from sandboxes import BACKENDS, REQUIRED

from agentgym import AgentGymError, JudgeError, call
from agentgym.envs.code import Code
from agentgym.envs.polyglot import Polyglot
from agentgym.tools.sandbox import Sandbox, open_sandbox

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ALL = bool(os.environ.get("AGENTGYM_ALL_GOLD"))
OF_THEIR_OWN_CLASS = {"mbpp/601", "mbpp/927"}  # they take objects, which no process can be asked for by another


@cache
def opened(backend: str) -> Sandbox | str:
    try:
        return open_sandbox(backend)  # type: ignore[arg-type]
    except AgentGymError as error:
        return str(error)


@pytest.fixture(params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    found = opened(request.param)
    if isinstance(found, str):
        assert request.param not in REQUIRED, found
        pytest.skip(found)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "sample"), [("humaneval/test.jsonl", 4), ("mbpp/test.jsonl", 6), ("mbpp/train.jsonl", 2)])
def test_gold_programs_pass(sandbox: Sandbox, name: str, sample: int):
    if not (DATA / name).is_file():
        pytest.skip(f"there is no {name} beside the repository")
    env = Code(DATA / name, sandbox=sandbox)
    tasks = [task for split in env.splits for task in env.tasks(split)]
    failed = set()
    for task in tasks if ALL else tasks[:sample]:
        env.reset(options={"task": task})
        env.step(call("write", code=task.answer["solution"]))
        try:
            if env.step(call("submit"))[1] != 1.0:
                failed.add(task.id)
        except JudgeError:
            failed.add(task.id)
    assert failed <= OF_THEIR_OWN_CLASS


@pytest.mark.timeout(1800)
def test_gold_exercises_pass(sandbox: Sandbox):
    path = DATA / "aider-polyglot-python" / "python.jsonl"
    if not path.is_file():
        pytest.skip("there is no aider-polyglot-python beside the repository")
    env = Polyglot(path, sandbox=sandbox)
    for task in list(env.tasks("test"))[: None if ALL else 2]:
        env.reset(options={"task": task})
        rewards = [env.step(action)[1] for action in env.gold(task) or ()]
        assert rewards[-1] == 1.0, task.id
