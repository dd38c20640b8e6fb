"""The contract check: every promise has an environment that breaks it, and good environments have no problem."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import broken_envs
import gymnasium
import numpy as np
import pytest
from broken_envs import CAUGHT, Good, GoodCopy, GoodLog

from agentgym import AgentEnv, AgentGymError, check_env, register
from agentgym.envs.check import CHECKS, repetition
from agentgym.envs.check.arguments import filled, neutral, varied
from agentgym.tool import Tool


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "HASH_SEEDS", ())


@pytest.mark.parametrize("env", [Good, GoodCopy, GoodLog])
def test_a_good_environment_passes_every_check(env: type[AgentEnv]) -> None:
    report = check_env(env)
    assert (report.problems, report.skipped) == ([], [])
    assert report.passed == list(CHECKS)
    assert report.ok
    report.raise_if_broken()


@pytest.mark.parametrize(("env", "check", "words"), CAUGHT, ids=[env.__name__ for env, _, _ in CAUGHT])
def test_a_broken_environment_is_caught(
    env: type[AgentEnv], check: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if check != "process":
        monkeypatch.setattr(repetition, "HASH_SEEDS", ())
    report = check_env(env)
    assert any(problem.check == check and words in problem.message for problem in report.problems), report.problems
    assert not report.ok
    assert check not in report.passed


def test_every_check_has_a_broken_environment() -> None:
    assert {check for _, check, _ in CAUGHT} == set(CHECKS)


@pytest.mark.parametrize(
    ("env", "check"), [(env, check) for env, check, _ in CAUGHT if env.__name__ in ("StepAfterEnd", "EndlessCalls", "GoldNeverEnds")]
)
@pytest.mark.usefixtures("one_process")
def test_a_lone_fault_raises_no_other_alarm(env: type[AgentEnv], check: str) -> None:
    assert {problem.check for problem in check_env(env).problems} == {check}


@pytest.mark.usefixtures("one_process")
def test_problems_raise_together() -> None:
    report = check_env(broken_envs.RewardTooHigh)
    with pytest.raises(AgentGymError, match=r"(?s)breaks its contract:\n- reward: .*\n- gold: "):
        report.raise_if_broken()


@pytest.mark.usefixtures("one_process")
def test_the_global_generators_stand_where_they_stood() -> None:
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), repr(np.random.get_state())
    check_env(broken_envs.GlobalRandom)
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_a_closure_skips_the_check_in_other_processes() -> None:
    report = check_env(lambda: Good())
    assert [name for name, _ in report.skipped] == ["process"]
    assert "give a class" in report.skipped[0][1]
    assert report.ok


@pytest.mark.usefixtures("one_process")
def test_an_environment_without_gold_or_snapshots_skips_these_checks() -> None:
    class Bare(Good):
        def gold(self, task: Any) -> None:
            return None

        def snapshot(self) -> Any:
            raise NotImplementedError("a machine cannot be forked")

    report = check_env(Bare)
    assert ("fork", "it has no snapshots (a machine cannot be forked)") in report.skipped
    assert ("gold", "gold() gives no actions") in report.skipped
    assert report.ok


@pytest.mark.usefixtures("one_process")
def test_gymnasium_can_be_left_out() -> None:
    assert "gymnasium" not in check_env(Good, gymnasium_check=False).passed


@pytest.mark.long
@pytest.mark.parametrize("given", ["broken_envs:Good", "check/Good-v0", partial(Good)])
def test_it_takes_names_and_factories(given: str | Callable[[], AgentEnv]) -> None:
    if given == "check/Good-v0" and given not in gymnasium.registry:
        register("check/Good-v0")(Good)
    report = check_env(given)
    assert report.ok
    assert "process" in report.passed


def wrapped() -> gymnasium.Env[str, str]:
    return gymnasium.wrappers.TimeLimit(Good(), 100)


def test_wrappers_are_looked_through() -> None:
    report = check_env(wrapped)
    assert report.ok, report.problems


def test_an_instance_or_a_wrong_name_is_refused() -> None:
    with pytest.raises(AgentGymError, match="give it the class Good"):
        check_env(Good())
    with pytest.raises(AgentGymError, match="module:Class, not 3"):
        check_env(3)
    report = check_env("broken_envs:Missing")
    assert "cannot be loaded" in report.problems[0].message


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from broken_envs import {base}
from agentgym import check_env

class Mine({base}):
    pass

if __name__ == "__main__":
    report = check_env(Mine)
    print(report.passed, report.skipped, report.problems)
"""


@pytest.mark.parametrize(("base", "passes"), [("Good", True), ("HashOrder", False)])
def test_an_environment_of_a_script_is_replayed_in_other_processes(tmp_path: Path, base: str, passes: bool) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCRIPT.format(tests=str(Path(__file__).parent), base=base))
    output = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True).stdout
    assert ("'process'" in output.split("]")[0]) is passes
    assert ("PYTHONHASHSEED" in output) is not passes


def wide(
    name: str, count: int, share: float, flag: bool, kind: Literal["big", "small"], tags: list[str], size: int | None = None
) -> str:
    """A tool with parameters of every kind."""
    return ""


def nested(points: list[tuple[int, int]], limits: dict[str, int], mode: Literal["only"] = "only") -> str:
    """A tool with nested parameters."""
    return ""


@pytest.mark.parametrize("function", [wide, nested])
def test_generated_arguments_fit_their_schema(function: Callable[..., Any]) -> None:
    tool = Tool(function)
    made = [varied(tool.parameters, ["Iceland", "lies"], number) for number in range(4)]
    made += [filled(tool.parameters, "word"), *neutral(tool.parameters)]
    problems = [problem for arguments in made if isinstance(problem := tool.read_arguments(arguments), str)]
    assert problems == []


def test_neutral_arguments_go_through_all_choices() -> None:
    kinds = [arguments["kind"] for arguments in neutral(Tool(wide).parameters)]
    assert kinds == ["big", "small"]
