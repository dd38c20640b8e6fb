"""The official test sets: each is found, played by the environment that it names, and reports the metric that it names."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from agentgym import AgentGymError, make
from agentgym.cli.policies import find_policy
from agentgym.envs.suites import fingerprint, suites
from agentgym.evaluation import evaluate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PREFIXES = {"bfcl-": "bfcl-v4", "acebench-": "acebench", "api-bank-": "api-bank", "tau2-": "tau2-bench", "intercode-": "intercode"}
FOLDERS = {
    **dict.fromkeys(("gsm8k", "math500", "aime24", "aime25", "amc23", "olympiadbench", "minerva"), "math"),
    **{name: name for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "strategyqa", "alfworld", "humaneval", "mbpp")},
    **{name: folder for prefix, folder in PREFIXES.items() for name in suites() if name.startswith(prefix)},
    **dict.fromkeys(("tau-bench-retail", "tau-bench-airline"), "tau-bench"),
    **{name: name for name in ("code-contests", "aider-polyglot-python")},
    "agentbench-db": "agentbench-dbbench",
}


def test_every_suite_is_tested_here():
    assert suites().keys() == FOLDERS.keys()


@pytest.mark.parametrize("name", sorted(FOLDERS.keys() - {"code-contests"}))  # whose data hold no solutions: test_code_contests has some
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
        result, episodes = asyncio.run(evaluate(make_env, actor, tasks[:6]))
    except AgentGymError as error:
        if "sandbox" in str(error) or "simulators=" in str(error):  # what is not at hand
            pytest.skip(str(error))
        raise
    assert suite.official(result) == 1.0
    lost = [one.error for one in episodes if one.reward is None]
    assert not lost or name == "tau2-retail"  # of which some tasks need a judge


def test_missing_data_are_named_with_their_source():
    with pytest.raises(AgentGymError, match=r"test\.jsonl, is missing \(sha256 .*\): get it from github openai/human-eval, and give"):
        suites()["humaneval"].data(None)
    with pytest.raises(AgentGymError, match=r"nowhere/gsm8k_test\.jsonl is missing"):
        suites()["gsm8k"].data(Path("nowhere"))


def test_published_scores_are_shares():
    assert all(0 < score < 1 for suite in suites().values() for score in suite.reference.values())


def test_data_are_known_by_their_content(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n")
    (tmp_path / "README.md").write_text("not data")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path / "a.jsonl") == hashlib.sha256(b"1\n").hexdigest()[:16]
    (tmp_path / "README.md").write_text("still not data")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in ("run.json", "turns.jsonl"):
        (tmp_path / "runs" / "one" / name).write_text("{}")
    assert fingerprint(tmp_path) == first
    (tmp_path / "policy.md").write_text("Never book a flight.")
    assert fingerprint(tmp_path) != first


def test_missing_data_are_named_with_the_versions_that_are_known():
    suite = suites()["gsm8k"]
    with pytest.raises(AgentGymError, match=rf"sha256 {next(iter(suite.known))}… is "):
        suite.data(Path("nowhere"))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_versions_that_are_known_are_those_at_hand(name):
    if not (DATA / FOLDERS[name]).is_dir():
        pytest.skip(f"there is no {FOLDERS[name]} beside the repository")
    suite = suites()[name]
    assert fingerprint(suite.data(DATA / FOLDERS[name])) in suite.known
