"""The benchmark runs and prints what others read. Its times are never asserted: they belong to the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gym_overhead.py"


@pytest.fixture(scope="module")
def report():
    run = subprocess.run([sys.executable, SCRIPT, "--quick", "--json"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)  # fails where anything but one JSON object is printed


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
    script = SCRIPT.with_name("packing.py")
    run = subprocess.run([sys.executable, script, "--quick", "--json"], capture_output=True, text=True, check=True)
    rows = json.loads(run.stdout)["rows"]
    assert {row["form"] for row in rows} >= {"by tree", "by path", "padded"}
    assert all(row["relative_difference"] < 1e-4 for row in rows)
