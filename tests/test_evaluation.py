import asyncio
from dataclasses import asdict

import pytest

from agentgym import AgentEnv, AgentGymError, InfrastructureError, JudgeError, Reply, Task
from agentgym.evaluation import Episode, evaluate, summary
from agentgym.policies.scripted import Scripted
from agentgym.policy import Generation
from agentgym.store import RunStore

TASKS = [Task(f"t{i}", f"Guess number {i}.", i) for i in range(6)]
BEGUN = []


class Guess(AgentEnv):
    """Task i is solved in episodes whose die shows at most i of 6; tasks "judge" and "dead" have no verdict."""

    reward_range = (0.0, 2.0)

    def begin(self, task):
        BEGUN.append(task.id)
        self.state = 0.0
        if task.answer == "dead":
            raise InfrastructureError("the machine did not start")

    def act(self, action):
        if self.task.answer != "judge":
            self.state = 2.0 if self.rng("die").randrange(6) < self.task.answer else 0.5
        return Reply("Right." if self.state == 2.0 else "Wrong.", ends=True)

    def score(self):
        if self.task.answer == "judge":
            raise JudgeError("the judge did not answer")
        return self.state

    def metrics(self):
        return {"points": self.state * 10}


@pytest.fixture(autouse=True)
def _begun():
    BEGUN.clear()


def play(tasks=TASKS, k=4, **more):
    return asyncio.run(evaluate(Guess, Scripted(["a guess"]), tasks, k=k, **more))


def test_averages_equal_a_computation_by_hand():
    result, episodes = play()
    by_task = [[one.success for one in episodes if one.task == task.id] for task in TASKS]
    assert [len(successes) for successes in by_task] == [4] * 6
    assert 0 < sum(map(sum, by_task)) < 24
    assert result.success.average.estimate == pytest.approx(sum(sum(s) / 4 for s in by_task) / 6)
    assert result.success.any_of_k.estimate == pytest.approx(sum(any(s) for s in by_task) / 6)
    assert result.success.all_of_k.estimate == pytest.approx(sum(all(s) for s in by_task) / 6)
    assert result.reward.estimate == pytest.approx(sum(2.0 if one.success else 0.5 for one in episodes) / 24)
    assert result.metrics["points"].estimate == pytest.approx(result.reward.estimate * 10)
    assert (result.tasks, result.episodes, result.lost, result.turns, result.success.k) == (6, 24, 0, 1.0, 4)
    assert (result.ends, result.outcomes) == ({"done": 24}, {"ok": 24})


def test_episodes_without_a_verdict_are_counted_and_in_no_average():
    lost = [Task("judge", "Guess.", "judge"), Task("dead", "Guess.", "dead")]
    with_lost, episodes = play([*TASKS, *lost])
    without, _ = play()
    assert (with_lost.lost, with_lost.episodes, with_lost.tasks) == (8, 24, 6)
    assert (with_lost.success, with_lost.reward, with_lost.metrics) == (without.success, without.reward, without.metrics)
    assert with_lost.ends == {"done": 24, "error": 8}
    assert with_lost.outcomes == {"ok": 24, "judge": 4, "infrastructure": 4}
    assert {(one.reward, one.success) for one in episodes if one.task in ("judge", "dead")} == {(None, False)}


def test_where_nothing_has_a_verdict_the_commonest_reason_is_told():
    with pytest.raises(AgentGymError, match=r"no episode has a verdict.*the judge did not answer"):
        play([Task("judge", "Guess.", "judge")])
    with pytest.raises(AgentGymError, match="no tasks"):
        play([])


def test_k_shrinks_to_the_fewest_verdicts_of_a_task():
    def one(task, reward):
        return Episode(task, reward, reward == 1.0, "done", {"ok": 1}, 1, 1, {})

    result = summary([one("a", 1.0), one("a", 0.0), one("a", None), one("b", 1.0), one("b", 0.0), one("b", 0.0)], 3)
    assert result.success.k == 2
    assert result.success.any_of_k.estimate == pytest.approx((1 + (1 - 1 / 3)) / 2)  # b: 1 - C(2, 2) / C(3, 2)
    assert result.success.all_of_k.estimate == 0.0


class StoppedError(Exception):
    pass


def test_an_evaluation_that_was_stopped_goes_on_and_plays_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("agentgym.evaluation.TASKS_AT_ONCE", 2)
    tasks = [*TASKS, Task("dead", "Guess.", "dead")]
    whole, episodes = play(tasks, k=3)
    BEGUN.clear()
    folder = tmp_path / "run"

    def stop(batch):
        raise StoppedError

    for number in range(3):
        store = RunStore.open(folder) if number else RunStore.create(folder, {})
        with pytest.raises(StoppedError):
            play(tasks, k=3, store=store, done=stop)
        store.close()
    assert sorted(BEGUN) == sorted(task.id for task in TASKS)
    heard = []
    resumed, again = play(tasks, k=3, store=RunStore.open(folder), done=heard.extend)
    assert sorted(BEGUN) == sorted(task.id for task in tasks)
    assert [one.task for one in heard] == ["dead"] * 3
    assert (resumed, again) == (whole, episodes)
    BEGUN.clear()
    assert play(tasks, k=3, store=RunStore.open(folder))[0] == whole
    assert BEGUN == ["dead"]  # what has no verdict is tried again: the fault may be over


def test_a_task_that_was_cut_off_is_played_again_as_a_whole_and_gives_the_same(tmp_path):
    whole, episodes = play()
    store = RunStore.create(tmp_path / "run", {})
    play(store=store)
    store.close()
    path = store.folder / "episodes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + lines[10][:30])  # two tasks whole, half of the third, and a torn line
    BEGUN.clear()
    resumed, again = play(store=RunStore.open(store.folder))
    assert set(BEGUN) == {"t2", "t3", "t4", "t5"}
    assert resumed == whole
    assert list(map(asdict, again)) == list(map(asdict, episodes))
    BEGUN.clear()
    assert play(store=RunStore.open(store.folder))[0] == whole
    assert BEGUN == []
    trees = RunStore.open(store.folder).trees()
    assert len(trees) == 6


def test_a_task_gives_the_same_in_any_company():
    _, alone = play([TASKS[3]])
    _, beside = play(TASKS)
    assert [one for one in beside if one.task == "t3"] == alone


def test_it_stops_once_it_is_precise_and_the_tasks_played_are_a_random_part():
    many = [Task(f"t{i}", "Guess.", i // 50) for i in range(300)]
    exact, _ = play(many, k=1)
    assert exact.tasks == 300
    coarse, episodes = play(many, k=1, precision=0.1)
    assert 64 <= coarse.tasks < 300
    found = coarse.success.average
    assert max(found.high - found.estimate, found.estimate - found.low) <= 0.1
    assert len({int(one.task[1:]) // 50 for one in episodes}) == 6  # all kinds, though equal ones stand together
    assert play(many, k=1, precision=1e-6)[0].success == exact.success


def test_a_precise_evaluation_that_is_opened_again_plays_no_more(tmp_path):
    many = [Task(f"t{i}", "Guess.", i % 6) for i in range(300)]
    store = RunStore.create(tmp_path / "run", {})
    first, _ = play(many, k=1, precision=0.1, store=store)
    BEGUN.clear()
    assert play(many, k=1, precision=0.1, store=store)[0] == first
    assert BEGUN == []


def test_failures_are_counted_by_blame_and_manner():
    class Blaming(Guess):
        def metrics(self):
            return {"blame_user": float(self.task.id == "t1"), "blame_agent": float(self.task.id != "t1")}

    tasks = [*TASKS, Task("judge", "Guess.", "judge"), Task("dead", "Guess.", "dead")]
    result, episodes = asyncio.run(evaluate(Blaming, Scripted(["a guess"]), tasks, k=4))
    wrong = sum(not one.success for one in episodes if one.task not in ("judge", "dead"))
    assert result.failures["user: done"] > 0
    assert result.failures["agent: done"] + result.failures["user: done"] == wrong
    assert (result.failures["judge: judge"], result.failures["environment: infrastructure"]) == (4, 4)
    assert sum(result.failures.values()) == sum(not one.success for one in episodes)


def test_tokens_are_those_that_a_server_counted():
    class Served:
        async def generate(self, prompt, sampling):
            return Generation(text="a guess", tokens_read=100, tokens_written=7)

    result, _ = asyncio.run(evaluate(Guess, Served(), TASKS, k=2))
    assert (result.read, result.tokens) == (1200, 84)
