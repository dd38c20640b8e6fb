"""The official test sets: each is found, played by the environment that it names, and reports the metric that it names."""

import asyncio
from pathlib import Path

import pytest

from agentgym import AgentGymError, make
from agentgym.cli.policies import find_policy
from agentgym.envs.suites import suites
from agentgym.evaluation import evaluate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = {
    **dict.fromkeys(("gsm8k", "math500", "aime24", "aime25", "amc23", "olympiadbench", "minerva"), "math"),
    **{name: name for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "strategyqa", "alfworld", "humaneval", "mbpp")},
    **{name: "bfcl-v4" for name in suites() if name.startswith("bfcl-")},
    **dict.fromkeys(("tau-bench-retail", "tau-bench-airline"), "tau-bench"),
}


def test_every_suite_is_tested_here():
    assert suites().keys() == FOLDERS.keys()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_gold_answers_of_a_suite_have_the_full_score(name):
    suite = suites()[name]
    if not (DATA / FOLDERS[name]).is_dir():
        pytest.skip(f"there is no {FOLDERS[name]} beside the repository")

    def make_env():
        return make(suite.env, data=str(suite.data(DATA / FOLDERS[name])))

    try:
        tasks = make_env().tasks(suite.split)
        assert 0 < len(tasks) <= suite.tasks
        actor, _ = find_policy("gold", make_env)
        result, _ = asyncio.run(evaluate(make_env, actor, tasks[:4]))
    except AgentGymError as error:
        if "sandbox" in str(error):
            pytest.skip(str(error))
        raise
    official = {"success": result.success.average, **result.metrics}[suite.metric]
    assert (official.estimate, result.lost) == (1.0, 0)


def test_missing_data_are_named_with_their_source():
    with pytest.raises(AgentGymError, match=r"its data is missing: get it from github openai/human-eval, and give the folder with --data"):
        suites()["humaneval"].data(None)
    with pytest.raises(AgentGymError, match=r"nowhere/gsm8k_test\.jsonl is missing"):
        suites()["gsm8k"].data(Path("nowhere"))


def test_published_scores_are_shares():
    assert all(0 < score < 1 for suite in suites().values() for score in suite.reference.values())
