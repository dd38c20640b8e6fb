"""PivotRL in a whole training, and on the benchmark."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_benchmarks import quick

from agentgym.errors import AgentGymError
from agentgym.store import RunStore
from agentgym.trainers.credit.arguments import PerTool
from agentgym.trainers.credit.equivalence import Exact, SameObservation


@pytest.mark.long
def test_the_benchmark_judges_the_same_tries_by_every_rule() -> None:
    rows = quick("pivots")["rows"]
    assert len({row["turns"] for row in rows}) == 1
    assert all(0 <= row["pivots"] <= 1 - row["equal"] <= 1 for row in rows)
    assert rows[-1]["mean"] >= rows[2]["mean"]  # what is exactly equal is equal by every rule


def recipe(**more: Any) -> Any:
    from agentgym.trainers.recipe import Recipe

    fields = {
        "env": {"id": "agentgym/Search-v0"},
        "steps": 4,
        "expander": {"class": "agentgym.trainers.expanders.pivot_rl:PivotRL", "size": 4},
        "credit": {
            "class": "agentgym.trainers.credit.pivot_rl:PivotRL",
            "hardest": 0.9,
            "equivalence": {
                "class": "agentgym.trainers.credit.arguments:PerTool",
                "rules": {"search": {"class": "agentgym.trainers.credit.equivalence:SameObservation"}},
                "otherwise": {"class": "agentgym.trainers.credit.equivalence:Exact"},
            },
        },
        "source": {"class": "agentgym.trainers.sources.pivots:Pivots", "demonstrations": 5},
        "models": {"demonstration": {"class": "agentgym.envs.search.expert:Expert"}},
        "batch": 3,
        "updates": 1,
        **more,
    }
    return Recipe.model_validate(fields)


def trained(folder: Any, steps: int) -> list[dict[str, float]]:
    from agentgym.cli.training import build
    from agentgym.trainers.loop import train

    store = RunStore.open(folder) if folder.exists() else RunStore.create(folder, {})
    asyncio.run(train(build(recipe()), steps, store, checkpoint_every=2))
    store.close()
    return list(store.read("metrics"))


def test_a_training_learns_and_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Any) -> None:
    whole = trained(tmp_path / "whole", 4)
    assert [metrics["profiling"] for metrics in whole[:3]] == [1, 1, 0]
    assert all(metrics["pivots_kept"] > 0 and metrics["gradient_norm"] > 0 for metrics in whole)
    assert all(metrics["demonstrations_failed"] == metrics["lost"] == 0 for metrics in whole)
    assert whole[2]["pivots_seen"] == whole[2]["rollout_turns"] / 4
    trained(tmp_path / "parts", 2)
    assert trained(tmp_path / "parts", 4) == whole
    logs = [(tmp_path / name / "turns.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_recipe_without_a_demonstrator_is_refused() -> None:
    from agentgym.cli.training import build

    with pytest.raises(AgentGymError, match="a model 'demonstration' is needed"):
        build(recipe(models={}))


def test_the_equivalence_of_a_recipe_is_built_through() -> None:
    from agentgym.cli.training import build

    credit: Any = build(recipe()).credit
    assert credit.equivalence == PerTool({"search": SameObservation()}, Exact())
