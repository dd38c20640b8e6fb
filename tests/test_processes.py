"""Two processes learn what one learns."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from processes import HEAVY

from agentgym.errors import AgentGymError
from agentgym.policies.tiny import load

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    started = [context.Process(target=together.run, args=(rank, 2, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_learn_what_one_learns(two: Any, sharded: bool) -> None:
    first = two[0][sharded]
    learner = together.a_learner()
    metrics = together.learn(learner)
    one, other = together.found(learner), first["once"]
    assert first["packs"][0] == 1  # fewer than there are processes
    assert first["packs"][1] % 2 or first["packs"][2] % 2
    assert first["processes"] == 2
    torch.testing.assert_close(other["moments"], one["moments"], **EXACT)
    torch.testing.assert_close(other["model"], one["model"], **EXACT)
    torch.testing.assert_close(first["weights"], one["model"], **EXACT)
    torch.testing.assert_close(first["logprobs"], learner.logprobs(together.updates()[0][0][0]), **EXACT)
    for expected, found in zip(metrics, first["metrics"], strict=True):
        assert [list(of) for of in found] == [list(of) for of in expected]
        assert [list(of.values()) for of in found] == [pytest.approx(list(of.values()), rel=1e-9) for of in expected]


def test_all_processes_have_the_same_weights_to_the_last_bit(two: Any) -> None:
    one, other = two[0][False], two[1][False]
    assert all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())
    assert all(torch.equal(*both) for both in zip(one["moments"], other["moments"], strict=True))
    assert one["version"] == other["version"] == 8


def test_a_state_of_two_processes_goes_on_in_two_alone(two: Any) -> None:
    with pytest.raises(AgentGymError, match="written by 2 processes and this run has 1"):
        together.a_learner().load_state_dict(two[0][False]["state"])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_loaded_state_is_that_of_all(two: Any, sharded: bool) -> None:
    learner = together.a_learner()
    state = {**two[0][sharded]["once"]["state"], "model": learner.state_dict()["model"], "version": 7, "processes": 1}
    learner.load_state_dict(state)
    learner.accumulate_all(*together.updates()[1])
    learner.step(pace=0.5)
    torch.testing.assert_close(two[0][sharded]["model"], learner.state_dict()["model"], **EXACT)


def test_shards_of_adapters_on_a_base_of_another_precision_learn_as_one(two: Any) -> None:
    learner = together.adapted(sharded=False)
    norms = [of[-1]["gradient_norm"] for of in together.learn(learner)]
    found = two[0]["adapted"]
    assert found["norms"] == pytest.approx(norms, rel=0.02)
    assert found["weights"].keys() == learner.weights().keys()
    assert all(weight.dtype == torch.float32 for weight in found["weights"].values())


def test_who_looks_at_whole_gradients_is_refused_with_shards_before_the_first_step(two: Any) -> None:
    assert set(two[0][False]["refused"].values()) == {""}
    said = two[0][True]["refused"]
    reason = "would look at whole gradients, of which a sharded learner leaves each process a part: train without learner.sharded"
    assert said["none"] == ""
    assert said["objective"] == f"ClippedSurrogate {reason}"
    assert said["credit"] == f"ADWIN {reason}"
    assert said["both"] == f"ClippedSurrogate and ADWIN {reason}"


RECIPE = """
env: {id: agentgym/Search-v0}
steps: 1
batch: 2
expander: {class: "agentgym.expand:Groups", size: 4}
packing: {class: "agentgym.trainers.packing:ByTree", max_tokens: 700}
learner: {precision: bf16, checkpointing: true, sharded: true, lora: {rank: 4, alpha: 8}}
sync: {class: "agentgym.policies.sync:CopiedWeights"}
"""
CLI = "from agentgym.cli import main; main()"


@pytest.mark.long
def test_a_recipe_trains_in_two_processes_and_goes_on_in_two_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "main.py").write_text(CLI)

    def train(count: int, *more: str) -> subprocess.CompletedProcess[str]:
        launched = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "main.py"]
        command = [sys.executable, *launched, "train", "recipe.yaml", "--out", "run", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)

    done = train(2)
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert metrics["gradient_norm"] > 0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert not any("lora" in name for name in load(tmp_path / "run" / "policy")[0].state_dict())
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("sharded: true, ", ""))
    (tmp_path / "run" / "run.json").write_text((tmp_path / "run" / "run.json").read_text().replace('"sharded": true', '"sharded": false'))
    said = train(1, "--resume")
    assert said.returncode != 0
    assert "written by 2 processes and this run has 1" in said.stderr
