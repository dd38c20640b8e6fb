"""Saved runs are judged anew by the environment of today, without asking a policy."""

from __future__ import annotations

import asyncio

import pytest

from agentgym import AgentEnv, AgentGymError, InfrastructureError, JudgeError, Limits, Reply, Task, call, tool
from agentgym.evaluation import evaluate
from agentgym.policies.recorded import rescore
from agentgym.policies.scripted import Scripted
from agentgym.policies.tiny import TinyTokenizer, tiny_chat
from agentgym.store import RunStore

TASKS = [Task(f"t{i}", "Throw well.", i % 6) for i in range(24)]
FAULTS = dict.fromkeys(("judge", "generous", "other", "ends early", "breaks", "does not begin"), False)


class Dice(AgentEnv):
    """The die falls by the turn's own draw; who has twice thrown at least the task's number wins."""

    max_turns = 3

    def begin(self, task):
        self.state = ()
        if task.answer == "dead" or FAULTS["does not begin"]:
            raise InfrastructureError("the machine did not start")

    @tool
    def throw(self) -> Reply:
        """Throw the die."""
        if FAULTS["breaks"] and self.turn == 1:
            raise InfrastructureError("the machine is gone")
        self.state = (*self.state, self.rng("die").randrange(6) + FAULTS["other"])
        return Reply(str(self.state[-1]), ends=FAULTS["ends early"] and self.turn == 1)

    @tool(ends=True)
    def leave(self) -> str:
        """Leave."""
        return "."

    def score(self):
        if FAULTS["judge"]:
            raise JudgeError("the judge is asleep")
        return float(not FAULTS["ends early"]) and float(FAULTS["generous"] or sum(throw >= self.task.answer for throw in self.state) > 1)


@pytest.fixture(autouse=True)
def _faultless():
    yield
    FAULTS.update(dict.fromkeys(FAULTS, False))


def throwing(prompt):
    """Once more, or enough: it differs between episodes, as a policy's actions do."""
    if "5" in prompt.turn.observation:
        raise InfrastructureError("the server is gone")
    return call("leave") if "4" in prompt.turn.observation else call("throw")


def played(folder, tasks=TASKS):
    store = RunStore.create(folder, {})
    asyncio.run(evaluate(Dice, Scripted(throwing), tasks, k=4, seed=3, store=store))
    store.close()
    return RunStore.open(folder).trees()


def again(trees, **more):
    return asyncio.run(rescore(Dice, trees, **{"k": 4, "seed": 3, **more}))


def test_an_unchanged_environment_judges_as_before(tmp_path):
    trees = played(tmp_path / "run", [*TASKS, Task("dead", "Guess.", "dead")])
    store = RunStore.create(tmp_path / "again", {})
    found = again(trees, store=store)
    assert len(found) == 100
    assert {one.before.end for one in found} == {"done", "truncated", "error"}
    assert sum(one.before.reward is None for one in found) > 4
    for one in found:
        assert (one.after.reward, one.after.tokens, one.after.turns) == (one.before.reward, one.before.tokens, one.before.turns)
        assert (one.changed, one.strayed) == (False, False)
    assert len(list(store.read("episodes"))) == 100


def test_a_changed_metric_is_seen_and_what_was_lost_before_its_end_stays_lost(tmp_path):
    trees = played(tmp_path / "run")
    FAULTS["generous"] = True
    found = again(trees)
    assert {one.after.reward for one in found if one.before.reward is not None} == {1.0}
    assert {one.after.reward for one in found if one.before.reward is None} == {None}
    assert any(one.changed for one in found)
    assert not any(one.strayed for one in found)


def test_what_a_judge_had_lost_is_judged(tmp_path):
    judged = {(one.before.task, n): one.before.reward for n, one in enumerate(again(played(tmp_path / "judged")))}
    FAULTS["judge"] = True
    trees = _with_a_sleeping_judge(tmp_path)
    FAULTS["judge"] = False
    found = {(one.after.task, n): one.after.reward for n, one in enumerate(again(trees))}
    assert found == judged
    assert any(reward is not None for reward in found.values())


def _with_a_sleeping_judge(tmp_path):
    store = RunStore.create(tmp_path / "asleep", {})
    with pytest.raises(AgentGymError, match="no episode has a verdict"):
        asyncio.run(evaluate(Dice, Scripted(throwing), TASKS, k=4, seed=3, store=store))
    store.close()
    return RunStore.open(tmp_path / "asleep").trees()


def test_another_environment_is_noticed(tmp_path):
    trees = played(tmp_path / "run")
    FAULTS["other"] = True
    assert all(one.strayed for one in again(trees) if one.before.turns > 1 and one.before.reward is not None)


@pytest.mark.parametrize("fault", ["ends early", "breaks", "does not begin"])
def test_an_episode_that_does_not_come_to_its_recorded_end_has_the_verdict_of_today(tmp_path, fault):
    trees = played(tmp_path / "run")
    FAULTS[fault] = True
    found = [one for one in again(trees) if one.before.reward is not None and one.before.turns > 2]
    assert len(found) > 3
    assert {one.after.reward for one in found} == {0.0 if fault == "ends early" else None}
    assert all(one.strayed for one in found)
    if fault != "ends early":
        assert {(one.after.failure, one.changed) for one in found} == {("environment: infrastructure", False)}


def test_an_episode_whose_tokens_were_spent_ends_so_again(tmp_path):
    store = RunStore.create(tmp_path / "run", {})
    limits = Limits(tokens=90, turn_tokens=40)
    chat = tiny_chat(TinyTokenizer.train(["Throw well. throw leave <tool_call>"]))
    asyncio.run(evaluate(Dice, Scripted(throwing), TASKS, chat=chat, limits=limits, seed=3, store=store))
    found = again(RunStore.open(tmp_path / "run").trees(), k=1)
    assert any(one.before.end == "budget" for one in found)
    assert all((one.after.end, one.after.failure) == (one.before.end, one.before.failure) for one in found)


def test_another_seed_is_refused(tmp_path):
    with pytest.raises(AgentGymError, match="was not recorded with this seed"):
        again(played(tmp_path / "run"), seed=4)
