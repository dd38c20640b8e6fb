import math
import random

import numpy as np
import orjson
import pytest
from processes import finish, kill, start, what_it_left

from agentgym import AgentGymError, Outcome, Task, Turn, TurnTree
from agentgym.store import FORMAT, RunStore, turn_record
from agentgym.trainers.credit.streams import log_advantages

STEPS = 8


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {"seed": 3})


def a_tree():
    tree = TurnTree("0/train/t/0", Task("t", "Which?", answer="x", data={"hops": 2}), {"split": "train"})
    tree.tools = [{"type": "function", "function": {"name": "look"}}]
    root = tree.add(Turn(0, None, "env", 2**62 + 1, ids=[1, 2], replies=[{"role": "user", "content": "Which?"}]))
    action = tree.add(
        Turn(-1, root, "policy", 7, ids=[5, 6, 9], sampled_tokens=2, logprobs=[-0.1, -2 / 3], versions=[(0, 1), (1, 1)])
    )
    action.action, action.action_tokens, action.key, action.outcome = "नमस्ते \x00", 2, "k", Outcome.TOOL_ERROR
    tree.add(Turn(-1, root, "teacher", 8, executed=False, ids=[4]))
    fresh = tree.add(Turn(-1, action, "env", 9, restarts=True, ids=[1, 2, 5, 8]))
    tree.add(Turn(-1, fresh, "policy", 10, reward=None, end="error", outcome=Outcome.JUDGE, error="JudgeError: no answer"))
    return tree


def log(store, *trees):
    for tree in trees:
        for turn in tree.turns:
            store.turn(tree, turn)


def written(turn):
    return orjson.dumps(turn_record(turn))


def test_a_forest_is_read_as_it_was_written(store):
    tree = a_tree()
    log(store, tree)
    (read,) = RunStore.open(store.folder).trees()
    assert (read.id, read.task, read.tags, read.tools) == (tree.id, tree.task, tree.tags, tree.tools)
    assert [written(turn) for turn in read.turns] == [written(turn) for turn in tree.turns]
    assert [(turn.length, turn.depth) for turn in read.turns] == [(turn.length, turn.depth) for turn in tree.turns]
    assert [turn.index for turn in read.turns[1].children] == [turn.index for turn in tree.turns[1].children]


def test_a_turn_that_is_logged_again_replaces_the_first_and_keeps_its_place(store):
    tree = a_tree()
    log(store, tree)
    leaf = tree.turns[4]
    leaf.end, leaf.reward, leaf.metrics = "budget", 0.5, {"found": 1.0}
    store.turn(tree, leaf)
    (read,) = store.trees()
    assert len(read.turns) == 5
    assert written(read.turns[4]) == written(leaf)
    assert len(read.turns[3].children) == 1


def test_a_log_probability_that_is_not_finite_is_read_back_as_unknown(store):
    tree = a_tree()
    tree.turns[1].logprobs = [-1.0, -math.inf]
    log(store, tree)
    (read,) = store.trees()
    assert (read.turns[1].logprobs[0], math.isnan(read.turns[1].logprobs[1])) == (-1.0, True)


def test_advantages_come_back_on_the_sampled_tokens(store):
    tree = a_tree()
    log(store, tree)
    for turn in tree.turns:
        turn.streams["advantage"] = np.where(turn.sampled, 1.25, 0.0)
    log_advantages(store, [tree])
    (read,) = store.trees()
    assert read.turns[1].streams["advantage"].tolist() == [1.25, 1.25, 0.0]
    assert not any(turn.streams["advantage"].any() for turn in read.turns if turn.index != 1)


def test_a_torn_last_line_is_left_out_and_not_written_into(store):
    for number in range(3):
        store.append("metrics", {"step": number})
    store.close()
    path = store.folder / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 11):
        path.write_bytes(whole[:-cut])
        again = RunStore.open(store.folder)
        assert [line["step"] for line in again.read("metrics")] == [0, 1]
        again.append("metrics", {"step": "new"})
        assert [line["step"] for line in again.read("metrics")] == [0, 1, "new"]
        again.close()
    path.write_bytes(b'{"st')
    again = RunStore.open(store.folder)
    assert list(again.read("metrics")) == []
    again.append("metrics", {"step": 9})
    assert [line["step"] for line in again.read("metrics")] == [9]


def test_damage_within_a_log_is_named_with_its_line(store):
    (store.folder / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(AgentGymError, match=r"metrics.jsonl, line 2: damaged"):
        list(store.read("metrics"))


def test_another_format_version_is_refused_and_nothing_is_changed(store):
    log(store, a_tree())
    store.write("run.json", {"format": FORMAT + 1, "config": {}})
    before = {path: path.read_bytes() for path in store.folder.iterdir() if path.is_file()}
    with pytest.raises(AgentGymError, match=f"format {FORMAT + 1}"):
        RunStore.open(store.folder)
    with pytest.raises(AgentGymError, match="Nothing was overwritten"):
        RunStore.create(store.folder, {})
    assert {path: path.read_bytes() for path in store.folder.iterdir() if path.is_file()} == before


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AgentGymError, match="not empty"):
        RunStore.create(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(AgentGymError, match=r"run.json is missing"):
        RunStore.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(AgentGymError, match="damaged"):
        RunStore.open(tmp_path)


def saver(text):
    return lambda folder: (folder / "state").write_text(text)


def test_resume_cuts_the_logs_to_where_the_checkpoint_was(store):
    store.append("metrics", {"step": 1})
    store.checkpoint(1, saver("one"))
    store.append("metrics", {"step": 2})
    store.append("turns", {"tree": "later"})
    again = RunStore.open(store.folder)
    assert again.config == {"seed": 3}
    step, folder = again.resume()
    assert (step, (folder / "state").read_text()) == (1, "one")
    assert list(again.read("metrics")) == [{"step": 1}]
    assert list(again.read("turns")) == []
    again.append("metrics", {"step": "2 again"})
    assert [line["step"] for line in again.read("metrics")] == [1, "2 again"]


def test_without_a_checkpoint_a_run_begins_anew(store):
    store.append("metrics", {"step": 1})
    again = RunStore.open(store.folder)
    assert again.resume() is None
    assert list(again.read("metrics")) == []


def test_a_checkpoint_is_whole_or_it_is_not_there(store):
    store.append("metrics", {"step": 1})
    store.checkpoint(1, saver("one"))
    store.append("metrics", {"step": 2})

    def fails(folder):
        (folder / "state").write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(AgentGymError, match="the disk is full"):
        store.checkpoint(2, fails)
    step, folder = store.resume()
    assert (step, (folder / "state").read_text()) == (1, "one")
    for number in range(2, 6):
        store.checkpoint(number, saver(str(number)))
    assert sorted(path.name for path in (store.folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(tmp_path):
    pytest.importorskip("accelerate")
    rng = random.Random(0)
    finish("main", tmp_path / "whole", STEPS)
    killed = tmp_path / "killed"
    turns = (tmp_path / "whole" / "turns.jsonl").stat().st_size
    for _ in range(3):
        run = start("main", killed, STEPS)
        log = killed / "turns.jsonl"
        reached = log.stat().st_size if log.exists() else 0
        deadly = min(turns * 0.95, reached + rng.uniform(0.1, 0.4) * turns)  # a moment of the run, not of its start
        kill(run, log, deadly)
        assert not (killed / "weights").exists()
    finish("main", killed, STEPS)
    assert what_it_left(killed) == what_it_left(tmp_path / "whole")
    steps = [line["step"] for line in RunStore.open(killed).read("metrics")]
    assert steps == list(range(1, STEPS + 1))
    taught = [turn for tree in RunStore.open(killed).trees() for turn in tree.turns if turn.streams["advantage"].any()]
    assert taught, "nothing was learnt, so nothing was compared"
