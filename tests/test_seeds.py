"""Seed lineages: every path is a stream of its own."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from agentgym import Lineage

names = st.one_of(st.integers(-5, 5), st.text("ab/:1", max_size=3))
paths = st.lists(names, max_size=4)


@given(st.integers(0, 5), paths, st.integers(0, 5), paths)
def test_seeds_are_equal_exactly_where_paths_are_equal(root: int, path: list[int | str], other: int, way: list[int | str]) -> None:
    first, second = Lineage.of(root, *path), Lineage.of(other, *way)
    assert (first.seed() == second.seed()) == (first.path == second.path)


@given(st.integers(), names, names)
def test_division_appends_names(root: int, a: int | str, b: int | str) -> None:
    assert Lineage.of(root) / a / b == Lineage.of(root, a, b)


def test_a_number_and_its_text_are_different_names() -> None:
    assert (Lineage.of(0) / 1).seed() != (Lineage.of(0) / "1").seed()


def test_neighbouring_episodes_and_turns_share_nothing() -> None:
    seeds = {Lineage.of(root, episode, turn).seed() for root in range(4) for episode in range(20) for turn in range(20)}
    assert len(seeds) == 4 * 20 * 20


@given(st.integers(), paths)
def test_a_seed_is_63_bits(root: int, path: list[int | str]) -> None:
    assert 0 <= Lineage.of(root, *path).seed() < 2**63


def test_seeds_and_draws_are_the_same_in_every_process() -> None:
    code = "from agentgym import Lineage; l = Lineage.of(7, 'turn', 3); print(l.seed(), l.rng().random())"
    lines = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    lineage = Lineage.of(7, "turn", 3)
    assert lines == {f"{lineage.seed()} {lineage.rng().random()}\n"}


def test_each_generator_starts_anew() -> None:
    lineage = Lineage.of(1)
    assert lineage.rng().random() == lineage.rng().random()
