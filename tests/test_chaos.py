"""Trainings that are disturbed on purpose, and records that must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import agentgym, fails, folder  # noqa: F401  (a fixture)

from agentgym import AgentEnv
from agentgym.action import Call, format_action
from agentgym.cli.chaos import faults_in
from agentgym.envs.faulty import faulty
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.outcome import Outcome
from agentgym.store import RunStore, turn_record
from agentgym.task import Task
from agentgym.turn import Turn, TurnTree


def failing(env: AgentEnv, seed: int) -> list[bool]:
    env.reset(seed=seed)
    found = []
    for _ in range(4):
        try:
            env.step(format_action(Call("search", {"query": "airport"})))
            found.append(False)
        except InfrastructureError:
            found.append(True)
            break
    return found


def test_tools_fail_at_their_rate_and_at_the_same_turns_again() -> None:
    env = faulty("agentgym/Search-v0", 0.3)
    first = [failing(env, seed) for seed in range(60)]
    assert first == [failing(env, seed) for seed in range(60)]
    turns = [failed for found in first for failed in found]
    assert 0.2 < sum(turns) / len(turns) < 0.4
    assert not any(failing(faulty("agentgym/Search-v0", 0.0), 0))
    with pytest.raises(AgentGymError, match="between 0 and 1"):
        faulty("agentgym/Search-v0", 2)


def a_record(place: Path) -> tuple[RunStore, TurnTree]:
    store = RunStore.create(place / "run", {})
    tree = TurnTree("0/train/0/t/0", Task("t", "Say it."))
    root = Turn(0, None, "env", 0)
    for turn in (root, Turn(1, root, "policy", 1, reward=None, end="error", outcome=Outcome.INFRASTRUCTURE)):
        tree.add(turn)
        store.turn(tree, turn)
    store.append("turns", {"tree": tree.id, "advantages": [0.0, 1.0]})
    store.append("steps", {"step": 1, "trees": [tree.id], "learnt": [tree.id]}, {"step": 2, "trees": [], "learnt": [tree.id]})
    store.append("metrics", {"step": 1}, {"step": 2})
    return store, tree


def counted_again(store: RunStore, tree: TurnTree) -> None:
    store.append("steps", {"step": 2, "trees": [tree.id], "learnt": []})


def a_tree_that_is_gone(store: RunStore, tree: TurnTree) -> None:
    store.append("steps", {"step": 2, "trees": ["0/train/1/t/0"], "learnt": []})


def begun_anew_and_broken_off(store: RunStore, tree: TurnTree) -> None:
    store.turn(tree, tree.root)
    store.append("turns", {"tree": tree.id, **turn_record(tree.turns[1]), "turn": 2})


def a_step_again(store: RunStore, tree: TurnTree) -> None:
    store.append("metrics", {"step": 2})


def a_fault_that_counts(store: RunStore, tree: TurnTree) -> None:
    tree.turns[1].reward = 0.0
    store.turn(tree, tree.turns[1])


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (counted_again, "trees counted in two steps"),
        (a_tree_that_is_gone, "turns lost from the record"),
        (begun_anew_and_broken_off, "turns lost from the record"),
        (a_step_again, "steps that are missing or doubled"),
        (a_fault_that_counts, "faults with a reward"),
    ],
)
def test_a_record_with_a_fault_is_found(tmp_path: Path, spoil: Callable[[RunStore, TurnTree], None], what: str) -> None:
    store, tree = a_record(tmp_path)
    assert not any(faults_in(store, 2).values())
    spoil(store, tree)
    assert [name for name, count in faults_in(store, 2).items() if count] == [what]


def test_servers_are_not_killed_where_there_are_none(folder: Path) -> None:  # noqa: F811
    (folder / "recipe.yaml").write_text("env: {id: agentgym/Search-v0}\nsteps: 2\n")
    assert "--server-kills needs a recipe with an actor on servers" in fails(
        agentgym("chaos", "recipe.yaml", "--server-kills", 1, folder=folder)
    )


@pytest.mark.long
def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    recipe = {"env": {"id": "agentgym/Search-v0"}, "steps": 3, "batch": 2, "checkpoint_every": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"expander": {"class": "agentgym.expand:Groups", "size": 3}}))

    def record(run: str) -> Any:
        trees = RunStore.open(tmp_path / run / "run").trees()
        turns = [(tree.id, turn.index, turn.ids, turn.logprobs, turn.reward, turn.error) for tree in trees for turn in tree.turns]
        return sorted(turns, key=lambda turn: turn[:2]), (tmp_path / run / "run" / "metrics.jsonl").read_text()

    for run, kills in (("undisturbed", 0), ("killed", 2)):
        done = agentgym("chaos", "recipe.yaml", "--out", run, "--tool-failures", 0.2, "--trainer-kills", kills, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("the trainer is killed") == kills
    assert record("killed") == record("undisturbed")
    found = json.loads((tmp_path / "killed" / "chaos.json").read_text())
    assert 0 < found["lost"] < found["episodes"] == 18
