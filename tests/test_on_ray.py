"""Environments on a Ray cluster of several nodes, one of which is killed while episodes stand in it."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from test_cli import ORDERS, agentgym, fails
from test_rollout import ADD_AND_END, Blocking, Counter, Forks, play, tasks, tiny_chat

from agentgym import AgentEnv, Lineage, Outcome, Task, call, tool
from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.store import turn_record
from agentgym.turn import total_reward

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'agentgym[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from agentgym.cluster import Share, connect  # noqa: E402
from agentgym.envs.on_ray import RayWorkers  # noqa: E402

pytestmark = pytest.mark.long  # each test starts worker processes
WIDE = {"patience": 60.0}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, so that no environment is on it, and two nodes with one each. Workers find the classes of these files."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield from a_cluster()


def a_cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def on_ray(cluster):
    made = []

    def start(make_env, number=2, **settings):
        made.append(RayWorkers(make_env, cluster.address, number, **{**WIDE, **settings}))
        return made[-1]

    yield start
    for workers in made:
        workers.close()


def until(happened, seconds=90):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)
    return found


def inside(worker):
    """How many environments the worker itself holds."""
    with suppress(ray.exceptions.RayError):
        return ray.get(worker.actor.__ray_call__.remote(lambda host: len(host.envs)))


def records(forest):
    """Trees, whatever the order in which siblings were committed."""
    kept = [{**turn_record(turn), "turn": 0, "parent": turn.parent and turn.parent.seed} for tree in forest for turn in tree.turns]
    return sorted(kept, key=lambda record: record["seed"])


class Copied(Counter):
    snapshots = "copy"


class Logged(Counter):
    """Adds up in a lock's company: nothing of its state can be pickled."""

    snapshots = "log"

    def begin(self, task):
        super().begin(task)
        self.lock = threading.Lock()


class Unpicklable(Counter):
    @tool
    def add(self, n: int) -> str:
        """Add a number.

        Args:
            n: what to add.
        """
        self.state = Locked()
        return "locked"


class Locked:
    values = ()

    def __init__(self):
        self.lock = threading.Lock()

    def __state_digest__(self):
        return "locked"


@pytest.mark.parametrize("make_env", [Counter, Copied, Logged, Blocking])
def test_trees_with_forks_are_those_that_grow_here(on_ray, make_env):
    there = on_ray(make_env)
    asked = {"script": lambda prompt: ADD_AND_END[prompt.turn.depth], "chat": tiny_chat(), "seed": 4}
    here = play(tasks(6), make_env=make_env, expander=Forks(3), **asked)
    forest = play(tasks(6), make_env=there, expander=Forks(3), **asked)
    assert [len(tree.leaves()) for tree in forest] == [4] * 6
    assert records(forest) == records(here)
    assert all(turn.reward is not None and turn.key for tree in forest for turn in tree.turns)
    until(lambda: [inside(worker) for worker in there.workers] == [0, 0])  # nobody waits for an environment to close


def test_a_snapshot_goes_on_in_another_node(on_ray):
    workers = on_ray(Logged)
    first, second = workers(), workers()
    first.reset(options={"task": tasks(1)[0], "lineage": Lineage.of(3)})
    second.reset(options={"task": tasks(2)[1], "lineage": Lineage.of(4)})
    assert first._worker.place.split("(")[1] != second._worker.place.split("(")[1]
    first.step(call("add", n=5))
    second.restore(first.snapshot())
    assert second.key() == first.key() == "(5,)"
    assert second.step(call("add", n=2)) == first.step(call("add", n=2))
    assert second.stop("truncated") == (0.07, {"numbers": 2})


def test_what_is_asked_of_an_environment_that_plays_nothing(on_ray):
    class Shop(Counter):
        splits = ("train", "held out")
        reward_range = (0.0, 0.5)
        system = "You count."

        def tasks(self, split):
            return tasks(3)

        def gold(self, task):
            return ADD_AND_END

    here, there = Shop(), on_ray(Shop)()
    for name in ("splits", "reward_range", "system", "max_turns", "tool_specs"):
        assert getattr(there, name) == getattr(here, name)
    assert there.tasks("train") == tasks(3)
    assert there.gold(tasks(1)[0]) == ADD_AND_END


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Raises(Counter):
    @tool
    def add(self, n: int) -> str:
        """Add a number.

        Args:
            n: what to add.
        """
        if self.task.answer == "odd":
            raise Odd(1, 2)
        return super().add(n)


@pytest.mark.parametrize("blocking", [False, True])
def test_what_an_environment_raises_there_ends_an_episode_as_it_does_here(on_ray, blocking):
    answers = ("fault", "infrastructure", "exit", "judge", "no beginning", "odd", None)
    asked = [Task(f"t{answer}", "Count.", answer) for answer in answers]
    make_env = type("Raising", (Raises,), {"blocking": blocking})
    there = on_ray(make_env)
    for tree, same in zip(play(asked, make_env=there), play(asked, make_env=make_env), strict=True):
        (leaf,), (here,) = tree.leaves(), same.leaves()
        assert (leaf.outcome, leaf.end, total_reward(leaf), leaf.metrics) == (here.outcome, here.end, total_reward(here), here.metrics)
        assert leaf.error.endswith(here.error.split(": ", 1)[-1])
    assert total_reward(leaf) == 0.07
    gc.collect()
    for worker in there.workers:  # each is told what nobody holds any more
        worker.ask(60, number := next(there.numbers), "attributes")
        worker.ask(60, number, "close")
    until(lambda: [inside(worker) for worker in there.workers] == [0, 0])  # nobody waits for an environment to close


def test_a_snapshot_that_cannot_travel_loses_its_episode_and_says_what_to_do(on_ray):
    (tree,) = play(tasks(1), make_env=on_ray(Unpicklable), expander=Forks(1))
    (leaf,) = tree.leaves()
    assert (leaf.outcome, leaf.reward) == (Outcome.INFRASTRUCTURE, None)
    assert "a snapshot of Unpicklable cannot be brought to another machine" in leaf.error


class Holds(Blocking):
    """Says that it is in a step, and waits there until the folder says go."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    @tool
    def add(self, n: int) -> str:
        """Add a number.

        Args:
            n: what to add.
        """
        if n == 3 and self.task.answer == "hold":
            node = ray.get_runtime_context().get_node_id()
            (self.folder / f"{node} {self.task.id}").touch()
            until((self.folder / "go").exists)
        return super().add(n)


def test_a_node_killed_in_mid_step_costs_the_episodes_that_stood_there_their_verdict_and_no_others(cluster, on_ray, tmp_path):
    workers = on_ray(partial(Holds, tmp_path))
    victim = cluster.list_all_nodes()[-1]
    played = []
    thread = threading.Thread(target=lambda: played.extend(play(tasks(8, "hold"), make_env=workers)))
    thread.start()
    until(lambda: len(list(tmp_path.iterdir())) == 8)
    gone = {path.name.split()[1] for path in tmp_path.glob(f"{victim.node_id} *")}
    assert len(gone) == 4
    cluster.remove_node(victim, allow_graceful=False)
    until(lambda: any(worker.back or not worker.answers() for worker in workers.workers))
    (tmp_path / "go").touch()
    thread.join(90)
    assert not thread.is_alive()
    lost = {tree.task.id for tree in played if total_reward(tree.leaves()[0]) is None}
    assert lost == gone
    for tree in played:
        (leaf,) = tree.leaves()
        if tree.task.id in lost:
            assert (leaf.outcome, leaf.end, leaf.reward) == (Outcome.INFRASTRUCTURE, "error", None)
            assert f"node {victim.node_id[:8]}" in leaf.error
            assert "was lost in step()" in leaf.error
        else:
            assert (leaf.outcome, total_reward(leaf)) == (Outcome.OK, 0.07)
    # Later episodes go to the node that is left,
    again = play(tasks(8), make_env=workers)
    assert [total_reward(tree.leaves()[0]) for tree in again] == [0.07] * 8
    # and to another once there is one.
    joined = cluster.add_node(num_cpus=1)
    until(lambda: all(worker.answers() for worker in workers.workers))
    assert any(joined.node_id[:8] in worker.place for worker in workers.workers)
    envs = [workers() for _ in range(4)]
    for env in envs:
        env.reset(options={"task": tasks(1)[0]})
    assert [inside(worker) for worker in workers.workers] == [2, 2]


class Sticks(Counter):
    def act(self, action):
        if self.task.answer == "stick":
            while True:
                pass
        return super().act(action)


def test_a_worker_that_is_silent_for_too_long_is_started_anew(on_ray):
    workers = on_ray(Sticks, number=1)
    workers.patience = 3.0
    (tree,) = play(tasks(1, "stick"), make_env=workers)
    (leaf,) = tree.leaves()
    assert (leaf.outcome, leaf.reward) == (Outcome.INFRASTRUCTURE, None)
    assert "worker 1 on" in leaf.error
    assert "did not answer step() within 3 s" in leaf.error
    until(lambda: workers.workers[0].answers())
    workers.patience = 60.0  # its first call loads this file
    (tree,) = play(tasks(1), make_env=workers)
    assert total_reward(tree.leaves()[0]) == 0.07


def test_an_episode_whose_worker_was_started_anew_is_lost_and_its_environment_plays_the_next(on_ray):
    workers = on_ray(Counter, number=1)
    env, task = workers(), tasks(1)[0]
    env.reset(options={"task": task})
    saved = env.snapshot()
    (worker,) = workers.workers
    ray.kill(worker.actor, no_restart=False)  # which takes a moment
    until(lambda: worker.answers() and inside(worker) == 0)
    with pytest.raises(InfrastructureError, match=r"worker 1 on .*: it was started anew, and the environment that step\(\) is for is gone"):
        env.step(call("add", n=1))
    env.restore(saved)
    assert env.step(call("add", n=1))[0].startswith("The sum is 1")


def test_where_nobody_answers_an_episode_is_lost_and_not_waited_for(on_ray):
    workers = on_ray(Counter, number=1, patience=1.0)
    ray.kill(workers.workers[0].actor)
    (tree,) = play(tasks(1), make_env=workers)
    assert "none of 1 Ray workers answered for 1 s" in tree.root.error
    assert tree.root.reward is None


def test_a_cluster_that_is_too_small_is_refused_with_the_figures(cluster):
    with pytest.raises(AgentGymError, match=r"3 workers of 1 CPUs each \(3 CPUs\) are asked for, .* room for 2"):
        RayWorkers(Counter, cluster.address, 3)
    with pytest.raises(AgentGymError, match=r"workers of 2 CPUs each are asked for, .* room for 0"):  # two nodes of one make none of two
        connect(cluster.address, Share("workers", None, 2.0))
    assert len(connect(cluster.address, Share("workers", None, 0.1))[0]) == 20


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    (tmp_path / "orders.py").write_text(ORDERS)
    said = fails(agentgym("eval", "orders:Orders", "--policy", "gold", "--ray", "127.0.0.1:1", folder=tmp_path))
    assert "no Ray cluster at '127.0.0.1:1'" in said
    assert "ray start --head" in said


class NeedsData(AgentEnv):
    def __init__(self):
        raise FileNotFoundError("no /data/corpus here")


def test_a_worker_that_cannot_make_the_environment_is_named_at_the_start(on_ray):
    with pytest.raises(AgentGymError, match=r"cannot be made: worker 1 on .*: no /data/corpus here"):
        on_ray(NeedsData)


def test_the_command_line_evaluates_and_trains_on_a_cluster(cluster, tmp_path):
    (tmp_path / "orders.py").write_text(ORDERS)
    for name, more in (("here", ()), ("there", ("--ray", cluster.address))):
        done = agentgym("eval", "orders:Orders", "--policy", "gold", "--k", 2, "--out", name, *more, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    here, there = ((tmp_path / name / "episodes.jsonl").read_text() for name in ("here", "there"))
    assert here == there
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("env: {id: agentgym/Search-v0}\nsteps: 1\nbatch: 2\nworkers: {number: 2}\n")
    done = agentgym("train", recipe, "--ray", cluster.address, "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (metrics,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert (metrics["lost"], metrics["episodes"]) == (0, 16)
    recipe.write_text("env: {id: agentgym/Search-v0}\nsteps: 1\nworkers: {number: 3, cpus: 2}\n")
    said = fails(agentgym("train", recipe, "--ray", cluster.address, "--out", "big", folder=tmp_path))
    assert "3 workers of 2 CPUs each (6 CPUs)" in said
    assert not (tmp_path / "big").exists()
