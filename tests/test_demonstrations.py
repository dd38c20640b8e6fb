"""Demonstrations from runs, conversations and lines, played again."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from credits import assigned
from doors import TASKS, grown, leads

from agentgym import Lineage, call
from agentgym.errors import AgentGymError
from agentgym.expand import Groups
from agentgym.policies.scripted import Scripted
from agentgym.store import RunStore
from agentgym.trainers.credit.pivot_rl import PivotRL as Credit
from agentgym.trainers.demonstrations import (
    Demonstration,
    Replay,
    demonstrated,
    of_lines,
    of_messages,
    of_run,
    replay_lines,
    replay_messages,
    replay_run,
)
from agentgym.turn import total_reward


def test_a_run_is_played_again(tmp_path: Any) -> None:
    def wanders(prompt: Any) -> str:
        return leads(prompt) if Lineage.of(prompt.turn.seed).rng().random() < 0.6 else call("go", door="locked")

    store = RunStore.create(tmp_path / "run", {})
    played = grown(TASKS, Groups(6), Scripted(wanders), committed=store.turn)
    store.close()
    won = [leaf for tree in played for leaf in tree.leaves() if total_reward(leaf) == 1.0]
    assert 0 < len(won) < 24
    found = of_run(tmp_path / "run")
    assert len(found) == len(won)
    assert {len(one.actions) for one in found} == {3, 4}
    assert all(len(one.observations or ()) == len(one.actions) for one in found)
    trees = grown([task for task in TASKS if task.id in {one.task for one in found}], teacher=replay_run(str(tmp_path / "run")))
    for tree in trees:
        first = next(one for one in found if one.task == tree.task.id)
        assert [turn.action for turn in demonstrated(tree)] == list(first.actions)
        assert total_reward(demonstrated(tree)[-1]) == 1.0
        assert not any(turn.sampled_tokens for turn in demonstrated(tree))
    assert assigned(Credit(), *trees)["pivots_seen"] > 0


def test_a_run_without_a_success_is_refused(tmp_path: Any) -> None:
    RunStore.create(tmp_path / "run", {})
    with pytest.raises(AgentGymError, match="no episode with full reward"):
        of_run(tmp_path / "run")
    with pytest.raises(AgentGymError, match="holds no run"):
        replay_run(str(tmp_path))


def conversation(way: str, **more: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Go!"}, {"role": "user", "content": f"Go through {way}."}]
    for number, door in enumerate(way):
        function = {"name": "go", "arguments": json.dumps({"door": door}) if number else {"door": door}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "1", "function": function}]})
        messages.append({"role": "tool", "content": f"Behind {way[: number + 1]}."})
    return {"messages": messages, **more}


def test_conversations_are_played_again(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(orjson.dumps(conversation("abc", task="tabc")) + b"\n\n" + orjson.dumps(conversation("bca", task_id="tbca")) + b"\n")
    trees = grown(TASKS[:2], teacher=replay_messages(str(path)))
    assert [total_reward(tree.leaves()[0]) for tree in trees] == [1.0, 1.0]
    found = of_messages([conversation("cab"), conversation("abb", id="tabb")], TASKS)
    assert [one.task for one in found] == ["tcab", "tabb"]  # the first by its prompt
    assert found[0].observations == ("Behind c.", "Behind ca.", "Behind cab.")
    assert of_messages([conversation("cab")], TASKS, compare=False)[0].observations is None
    assert replay_messages(str(path), "doors:Doors").demonstrations.keys() == {"tabc", "tbca"}


def test_what_the_assistant_said_is_kept_in_whole() -> None:
    said = {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls": None}
    end = {"role": "assistant", "content": "<think>so</think>Done."}
    (found,) = of_messages([{"task": 7, "messages": [said, {"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, end]}])
    assert found == Demonstration("7", ("<think>\nhm\n</think>\nLet me see.", "<think>so</think>Done."), ("a\nb",))


def test_lines_are_played_again(tmp_path: Any) -> None:
    path = tmp_path / "lines.jsonl"
    rows = [{"task": task.id, "actions": [call("go", door=door) for door in task.answer]} for task in TASKS]
    rows[0]["observations"] = ["Behind a.", "Behind ab."]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    trees = grown(TASKS, teacher=replay_lines(str(path)))
    assert [total_reward(tree.leaves()[0]) for tree in trees] == [1.0] * 4
    assert of_lines(rows) == of_lines(path)


def test_a_divergent_demonstration_names_task_turn_and_what_differs_and_the_others_go_on() -> None:
    rows = [{"task": task.id, "actions": [call("go", door=door) for door in task.answer]} for task in TASKS[:3]]
    rows[0]["observations"] = ["Behind a.", "In the garden, wondering.", "Behind abc."]
    rows[1]["observations"] = ["Behind b.", "Behind bc.", "never looked at"]
    rows[2]["actions"] = rows[2]["actions"][:2]
    trees = grown(TASKS, teacher=Replay(of_lines(rows)))
    errors = [tree.leaves()[0].error for tree in trees]
    assert "demonstration of task tabc diverges at turn 2: expected 'In the garden, wondering.', got 'Behind ab.'" in errors[0]
    assert errors[1] == ""
    assert "demonstration of task tcab ends after turn 2" in errors[2]
    assert "no demonstration of task tabb" in errors[3]
    assert all(tree.closed for tree in trees)
    metrics = assigned(Credit(), *trees)
    assert (metrics["demonstrations_failed"], metrics["pivots_seen"]) == (3, 3)
    assert [total_reward(tree.leaves()[0]) for tree in trees] == [None, 1.0, None, None]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task": "t", "actions": []}], "row 1: actions"),
        ([{"task": "t", "actions": ["a", "b"], "observations": []}], "has 2 actions and 0 observations"),
        ([{"actions": ["a"]}], "row 1: task: it is required"),
        ([["a"]], "row 1: all of it"),
    ],
)
def test_bad_lines_are_named(rows: Any, message: str) -> None:
    with pytest.raises(AgentGymError, match=message):
        of_lines(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation("zzz"), "row 1: it names no task"),
        (conversation("abc", task="elsewhere"), "row 1: the environment has no task 'elsewhere' among its 4"),
        ({"task": "tabc", "messages": [{"role": "user", "content": "Hi"}]}, "row 1: no message is the assistant's"),
        ({"task": "tabc", "messages": []}, "row 1: messages"),
        (
            {"task": "tabc", "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "go", "arguments": "{"}}]}]},
            "row 1: messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_bad_conversations_are_named(row: Any, message: str) -> None:
    with pytest.raises(AgentGymError, match=message):
        of_messages([row], TASKS)


def test_bad_files_are_named(tmp_path: Any) -> None:
    (tmp_path / "bad.jsonl").write_text('{"task": "t", "actions": ["a"]}\n{"task"\n')
    with pytest.raises(AgentGymError, match=r"bad\.jsonl, line 2: not JSON"):
        replay_lines(str(tmp_path / "bad.jsonl"))
    with pytest.raises(AgentGymError, match=r"none\.jsonl cannot be read"):
        replay_lines(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(AgentGymError, match="no demonstrations"):
        replay_lines(str(tmp_path / "empty.jsonl"))
