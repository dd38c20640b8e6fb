"""The command line: what a newcomer types, and what is said when it is wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentgym.errors import MissingExtra

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
ORDERS = '''
from agentgym import AgentEnv, Task, call, tool


class Orders(AgentEnv):
    max_turns = 4
    splits = ("train", "test")

    def tasks(self, split):
        return [Task(f"{split}-{n}", f"Cancel order {n}.", n, split) for n in (range(6) if split == "train" else range(6, 9))]

    def begin(self, task):
        self.state = {"open": set(range(10))}

    @tool(ends=True)
    def cancel(self, order: int) -> str:
        """Cancel an order."""
        self.state["open"].remove(order)
        return "cancelled"

    def score(self):
        return float(self.state["open"] == set(range(10)) - {self.task.answer})

    def gold(self, task):
        return [call("cancel", order=task.answer)]
'''


def agentgym(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from agentgym.cli import main; sys.argv[0] = 'agentgym'; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def fails(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "orders.py").write_text(ORDERS)
    return tmp_path


def test_an_environment_in_the_present_folder_is_checked_and_evaluated(folder: Path):
    checked = agentgym("check", "orders:Orders", folder=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    played = agentgym("eval", "orders:Orders", "--policy", "gold", "--k", 2, "--out", "run", folder=folder)
    assert played.returncode == 0, played.stderr
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["success"]["average"]["estimate"] == 1.0
    assert summary["tasks"] == 3
    assert summary["episodes"] == 6
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def test_an_evaluation_resumes_and_is_never_mixed_with_another(folder: Path):
    for _ in range(2):
        assert agentgym("eval", "orders:Orders", "--policy", "gold", "--out", "run", folder=folder).returncode == 0
    assert len((folder / "run" / "episodes.jsonl").read_text().splitlines()) == 3
    other = agentgym("eval", "orders:Orders", "--policy", "gold", "--seed", 1, "--out", "run", folder=folder)
    assert "holds another run (other seed)" in fails(other)


def test_a_broken_environment_fails_the_check(folder: Path):
    (folder / "orders.py").write_text(ORDERS.replace("float(self.state", "2 * float(self.state"))
    done = agentgym("check", "orders:Orders", folder=folder)
    assert done.returncode == 1
    assert "reward" in done.stdout


def test_unknown_names_give_the_nearest(folder: Path):
    assert "agentgym/Search-v0" in fails(agentgym("eval", "agentgym/Serch-v0", folder=folder))
    assert "did you mean 'gold'" in fails(agentgym("eval", "orders:Orders", "--policy", "golden", folder=folder))
    (folder / "runs").mkdir()
    assert "no folder runs/none" in fails(agentgym("eval", "orders:Orders", "--policy", "runs/none", folder=folder))
    assert "splits: train, test" in fails(agentgym("eval", "orders:Orders", "--policy", "gold", "--split", "dev", folder=folder))


@pytest.mark.long
def test_a_recipe_names_its_wrong_fields(folder: Path):
    recipe = folder / "recipe.yaml"
    recipe.write_text("env: {id: orders:Orders}\nsteps: 0\nlerning_rate: 1\n")
    said = fails(agentgym("train", recipe, folder=folder))
    assert "steps" in said
    assert "greater than or equal to 1" in said
    assert "lerning_rate: there is no such field" in said
    recipe.write_text("env: {id: orders:Orders}\nsteps: 1\ncredit: {class: agentgym.trainers.credit.grpo:GRPPO}\n")
    assert "GRPPO" in fails(agentgym("train", recipe, folder=folder))


def test_a_run_is_not_overwritten(folder: Path):
    recipe = folder / "recipe.yaml"
    recipe.write_text("env: {id: orders:Orders}\nsteps: 1\n")
    (folder / "run").mkdir()
    (folder / "run" / "precious").write_text("kept")
    assert "Nothing was overwritten" in fails(agentgym("train", recipe, "--out", "run", folder=folder))
    (folder / "old").mkdir()
    (folder / "old" / "run.json").write_text('{"format": 0, "config": {}}')
    assert "format 0" in fails(agentgym("train", recipe, "--out", "old", "--resume", folder=folder))


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "agentgym.envs.on_ray", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'agentgym\[ray\]'"):
        importlib.import_module("agentgym.envs.on_ray")


def test_a_bad_line_of_a_corpus_is_named(folder: Path):
    data = folder / "data"
    data.mkdir()
    (data / "corpus.jsonl").write_text('{"title": "A", "text": "a"}\n{"title": "B"}\n')
    (data / "dev.jsonl").write_text('{"question": "Which?", "answer": "A"}\n')
    said = fails(agentgym("eval", "agentgym/Search-v0", "--policy", "gold", "--data", data, folder=folder))
    assert "corpus.jsonl" in said
    assert "line 2" in said
    assert "text" in said


@pytest.mark.skipif(not DATA.exists(), reason="the benchmark data is not here")
def test_hotpotqa_is_evaluated_and_compared(folder: Path):
    for name in ("a", "b"):
        done = agentgym(
            "eval", "agentgym/Search-v0", "--policy", "gold", "--data", DATA / "bamboogle", "--tasks", 20, "--out", name, folder=folder
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / name / "summary.json").read_text())["metrics"]["f1"]["estimate"] == 1.0
    assert "difference" in agentgym("compare", "a", "b", folder=folder).stdout
