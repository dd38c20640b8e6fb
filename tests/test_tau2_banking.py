"""tau2-bench's banking as retrieval: what is found is scored against what is required, and documents are read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tau2_bench import DATA, played, shared

from agentgym import AgentGymError, call
from agentgym.envs.check import check_env
from agentgym.envs.tau2.banking import Tau2Banking


def folder_of(path: Path, **change: Any) -> Path:
    documents = [{"id": f"d{n}", "title": f"Title {n}", "content": f"The content about number{n}."} for n in range(4)]
    task = {"id": "t", "user_scenario": {"persona": None, "instructions": "You ask about number1."}, "required_documents": ["d1", "d2"]}
    (path / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (path / "tasks.jsonl").write_text(json.dumps(task | change))
    return path


@pytest.mark.parametrize(
    ("ids", "recall", "precision", "f1", "found_all"),
    [
        (["d1", "d2"], 1.0, 1.0, 1.0, 1.0),
        (["d2", "d1", "d1"], 1.0, 1.0, 1.0, 1.0),
        (["d1"], 0.5, 1.0, 2 / 3, 0.0),
        (["d0", "d1", "d2", "d3"], 1.0, 0.5, 2 / 3, 1.0),
        (["d0", "nothing"], 0.0, 0.0, 0.0, 0.0),
        ([], 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_documents_named_are_scored_against_those_required(
    ids: list[str], recall: float, precision: float, f1: float, found_all: float, tmp_path: Path
) -> None:
    env = Tau2Banking(folder_of(tmp_path))
    env.reset(seed=0)
    _, reward, ended, _, info = env.step(call("answer", ids=ids))
    assert ended
    assert reward == pytest.approx(f1)
    assert info["metrics"] == pytest.approx({"recall": recall, "precision": precision, "f1": f1, "found_all": found_all})


def test_documents_are_found_by_their_words_and_read_by_their_ids(tmp_path: Path) -> None:
    env = Tau2Banking(folder_of(tmp_path))
    found, text, missing = played(env, "t", [call("search", query="number3"), call("read", id="d3"), call("read", id="d9")])[0]
    assert found.startswith("[d3] Title 3: ")
    assert text == "Title 3\n\nThe content about number3."
    assert missing.startswith("Error: there is no document 'd9'")


def test_without_an_answer_there_is_no_reward(tmp_path: Path) -> None:
    env = Tau2Banking(folder_of(tmp_path))
    answers = [env.step(call("read", id="d1")) for _ in range(env.max_turns)] if env.reset(seed=0) else []
    assert (answers[-1][1], answers[-1][3]) == (0.0, True)


def test_a_required_document_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentGymError, match=r"tasks.jsonl, line 1: required_documents: documents.jsonl has no 'd7'"):
        Tau2Banking(folder_of(tmp_path, required_documents=["d1", "d7"]))


def test_the_contract_holds() -> None:
    def made() -> Tau2Banking:
        env = Tau2Banking()
        env.max_turns = env.max_calls = 8  # or the check takes long
        return env

    check_env(made).raise_if_broken()


@shared
def test_every_official_task_can_be_answered_and_its_documents_can_be_read() -> None:
    env = Tau2Banking(DATA)
    for task in env.tasks("base"):
        reads = [call("read", id=id) for id in task.answer[:3]]
        answers, reward, ended = played(env, task, [*reads, *env.gold(task)])
        assert (reward, ended) == (1.0, True), task.id
        assert not any(answer.startswith("Error") for answer in answers)
