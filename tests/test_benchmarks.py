"""The benchmarks run and print what others read. Their times are never asserted: they belong to the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def quick(name, *arguments):
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)  # fails where anything but one JSON object is printed


@pytest.fixture(scope="module")
def report():
    return quick("gym_overhead")


def test_a_quick_run_prints_one_json_object(report):
    assert set(report) == {"processor", "figures", "imports_torch", "measured_elsewhere"}


def test_each_target_has_its_figure(report):
    for figure in report["figures"]:
        assert set(figure) == {"name", "unit", "best", "median", "target", "is_rate", "met"}
        assert (figure["met"] is None) == (figure["target"] is None)
    assert [(figure["unit"], figure["target"]) for figure in report["figures"] if figure["target"] is not None] == [
        ("us/turn", 30.0),
        ("us/turn", 30.0),
        ("ratio", 1.25),
        ("us", 10.0),
        ("turns/s", 10_000.0),
        ("s", 0.15),
    ]


def test_turns_forks_and_rollouts_cost_something(report):
    costs = [figure for figure in report["figures"] if figure["unit"] != "s"]  # of the import, a difference
    assert all(figure["best"] > 0 for figure in costs)


def test_importing_the_package_loads_no_torch(report):
    assert report["imports_torch"] is False


def test_peers_measured_elsewhere_are_named(report):
    assert all(set(peer) == {"peer", "us_per_turn"} for peer in report["measured_elsewhere"])
    assert len(report["measured_elsewhere"]) == 6


def test_the_packing_benchmark_finds_equal_gradients_in_all_its_forms():
    rows = quick("packing")["rows"]
    assert {row["form"] for row in rows} >= {"by tree", "by path", "padded"}
    assert all(row["relative_difference"] < 1e-4 for row in rows)


def test_the_contrast_benchmark_shares_its_episodes_out_in_three_ways():
    rows = quick("contrast")["rows"]
    assert [row["allocation"] for row in rows] == ["equal", "by kind of question", "by rate"]
    for row in rows:
        assert 0 < row["groups"] <= row["tasks"]
        assert row["share"] == pytest.approx(row["mixed"] / row["groups"])
        assert 0 <= row["share"] <= 1


def test_the_household_benchmark_finds_that_the_expert_solves_what_chance_does_not():
    played = {row["by"]: row for row in quick("household")["played"]}
    assert played["expert, validation, mistakes=0"]["success"] == 1.0
    assert played["random choice, test"]["success"] < 0.5


def test_the_sandbox_benchmark_measures_the_backends_that_are_here():
    assert {row["backend"] for row in quick("sandbox")["rows"]} <= {"bubblewrap", "docker", "subprocess"}


def test_the_benchmark_of_evaluations_plays_with_the_record_and_without():
    found = quick("evaluating")
    assert set(found) == {"turns_per_second", "turns_per_second_median", "turns_per_second_unrecorded", "target"}
    assert min(found.values()) > 0


def test_the_benchmark_of_stopping_holds_the_truth_more_often_than_not():
    rows = quick("stopping")
    assert all(row["coverage"] > 0.5 and 64 <= row["tasks"] <= 1000 for row in rows)
    assert len(rows) == 10


def test_the_benchmark_of_asynchrony_is_faster_ahead_whatever_is_the_slowest():
    rows = quick("asynchrony")
    assert len(rows) == 2
    assert all(row["ahead"]["ratio"] > row["periodic"]["ratio"] > 1 for row in rows)


def test_the_benchmark_of_concurrency_measures_both_kinds_of_environment():
    figures = {figure["name"]: figure for figure in quick("concurrency")["figures"]}
    for kind in ("on the loop", "blocking"):
        assert figures[f"{kind}: episodes that wait for the policy at once"]["best"] > 1
        assert figures[f"{kind}: memory"]["target"] == 10.0
        assert figures[f"{kind}: event-loop lag, p99"]["target"] == 50.0
    assert figures["on the loop: threads, most"]["best"] == 1 < figures["blocking: threads, most"]["best"]


def test_the_benchmark_of_chaos_loses_nothing_and_compares_with_undisturbed_runs(tmp_path):
    found = quick("chaos", "--folder", tmp_path)
    assert len(found["undisturbed"]) == 2
    assert all(0 <= one["success"] <= 1 and one["turns lost from the record"] == 0 for one in found["disturbed"])


def test_the_benchmark_of_packing_on_a_gpu_measures_a_tree_in_three_forms():
    found = quick("gpu/packing")
    assert found["means_nothing"] is True
    assert [row["form"] for row in found["rows"]] == ["plain", "by path", "by tree"]
    assert [row["tokens"] for row in found["rows"]] == [9088, 9088, 1528]
    assert all(row["seconds"] > 0 and row["share_of_matrix_rate"] > 0 for row in found["rows"])


def test_the_benchmark_of_generation_on_a_gpu_decodes_contexts_together():
    rows = quick("gpu/generation")["rows"]
    assert [row["together"] for row in rows] == [1, 3]
    assert all(row["seconds"] > row["seconds_of_prompts"] > 0 for row in rows)


def test_the_benchmark_of_agreement_finds_a_pack_to_be_its_paths():
    rows = {row["what"]: row for row in quick("gpu/agreement")["rows"]}
    assert rows["log-probabilities, float32, packed"]["largest"] < 1e-4
    assert rows["gradient, float32, packed"]["largest"] < 1e-5
    assert 1e-4 < rows["log-probabilities, bfloat16, packed"]["mean"] < 0.1


@pytest.mark.parametrize("name", ["packing", "generation", "agreement"])
def test_without_a_gpu_its_benchmarks_say_so_and_measure_nothing(name):
    command = [sys.executable, BENCHMARKS / "gpu" / f"{name}.py"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.strip() == "This benchmark needs a GPU and found none: run it where torch sees one, or with --quick for a smoke run."
