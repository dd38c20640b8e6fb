"""Trackers hear every step once, and none of them can end a training."""

import os
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import orjson
import pytest

from agentgym.errors import AgentGymError, MissingExtra
from agentgym.store import RunStore
from agentgym.trainers.trackers import Service, TensorBoard, Trackers, Trackio, Wandb


@pytest.fixture
def folder(tmp_path):
    RunStore.create(tmp_path / "run", {"seed": 3}).close()
    return tmp_path / "run"


def scalars(folder):
    """What TensorBoard shows of a run: its points by name."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = reader.EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, round(event.value, 6)) for event in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


KILLED = """
import os, sys
from pathlib import Path
from agentgym.trainers.trackers import TensorBoard
killed = TensorBoard(Path(sys.argv[1]))
for step in range(1, 6):
    killed.log(step, {"reward": step / 10, "only/before": 1.0})
os._exit(0)
"""


def test_a_resumed_run_takes_the_place_of_the_steps_that_it_plays_again(folder):
    pytest.importorskip("tensorboard")
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=True)
    assert scalars(folder) == {"reward": [(n, n / 10) for n in range(1, 6)], "only/before": [(n, 1.0) for n in range(1, 6)]}
    ended = int(time.time())
    while int(time.time()) == ended:  # files are read in the order of the seconds that their names tell; no run resumes in the same
        time.sleep(0.05)
    resumed = TensorBoard(folder)
    for step in range(4, 8):
        resumed.log(step, {"reward": float(step)})
    resumed.close()
    assert scalars(folder)["reward"] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 4.0), (5, 5.0), (6, 6.0), (7, 7.0)]
    assert [step for step, _ in scalars(folder)["only/before"]] == [1, 2, 3]


class Hears:
    def __init__(self, fails_at=None):
        self.heard, self.closed, self.fails_at = [], 0, fails_at

    def log(self, step, metrics):
        if step == self.fails_at:
            raise ConnectionError("the network is down")
        self.heard.append((step, metrics["reward"]))

    def close(self):
        self.closed += 1
        if self.fails_at == "close":
            raise OSError("the disk is full")


def test_a_tracker_that_fails_is_told_of_once_and_left_out():
    first, broken, last, at_the_end = Hears(), Hears(2), Hears(), Hears("close")
    trackers = Trackers([first, broken, at_the_end, last])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, 5):
            trackers.log(step, {"reward": 0.5})
        trackers.close()
        trackers.log(5, {"reward": 0.5})
    assert first.heard == last.heard == [(step, 0.5) for step in range(1, 6)]
    assert broken.heard == [(1, 0.5)]
    assert (first.closed, broken.closed, last.closed) == (1, 0, 1)
    assert [str(warning.message) for warning in told] == [
        f"Hears failed and is left out from here on; the training goes on ({reason})"
        for reason in ("ConnectionError: the network is down", "OSError: the disk is full")
    ]


FULL = """
import resource, signal, sys, warnings
from pathlib import Path
from agentgym.trainers.trackers import TensorBoard, Trackers
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trackers = Trackers([TensorBoard(Path(sys.argv[1]))])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for step in range(200):
        trackers.log(step, {"reward": 1.0})
    trackers.close()
assert [str(warning.message)[:18] for warning in told] == ["TensorBoard failed"], told
"""


@pytest.mark.timeout(60)
def test_event_files_that_cannot_be_written_any_more_hold_nobody_up(tmp_path):
    pytest.importorskip("tensorboard")
    subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=True, capture_output=True)
    assert 0 < max(path.stat().st_size for path in tmp_path.iterdir()) <= 2000


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="TensorBoard failed"):
        Trackers([TensorBoard(tmp_path / "file" / "run")]).log(1, {"reward": 0.5})


@pytest.mark.parametrize(
    ("tracker", "module", "extra"), [(TensorBoard, "tensorboard", "train"), (Wandb, "wandb", "wandb"), (Trackio, "trackio", "trackio")]
)
def test_a_package_that_is_not_there_is_said_before_the_training(folder, monkeypatch, tracker, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra, match=rf"'{module}'.*pip install 'agentgym\[{extra}\]'"):
        tracker(folder)


class Records(types.ModuleType):
    """A package such as wandb, as far as a tracker uses it."""

    def __init__(self):
        super().__init__("records")
        self.begun, self.heard, self.finished = [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return self

    def log(self, metrics, step):
        self.heard.append((step, metrics))

    def finish(self):
        self.finished += 1


def test_what_takes_no_step_back_is_told_each_step_once_under_one_name(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "records", package := Records())
    for steps in (range(1, 6), range(4, 8)):
        tracker = Service(folder, "records", project="mine")
        assert len(package.begun) == package.finished  # nothing is opened before the first step
        for step in steps:
            tracker.log(step, {"reward": step / 10})
        tracker.close()
    assert package.heard == [(step, {"reward": step / 10}) for step in range(1, 8)]
    assert package.begun == [{"project": "mine", "resume": "allow", "config": {"seed": 3}}] * 2
    assert package.finished == 2
    assert orjson.loads((folder / "records.json").read_bytes()) == {"id": tracker.told["id"], "step": 7}
    other = RunStore.create(folder.parent / "other", {}).folder
    assert Service(other, "records").told["id"] != tracker.told["id"]


def test_wandb_takes_a_run_and_goes_on_with_it(folder, monkeypatch):
    pytest.importorskip("wandb")
    ids = []
    for steps in (range(1, 4), range(3, 5)):
        tracker = Wandb(folder, project="tests", mode="offline")
        for step in steps:
            tracker.log(step, {"reward": 0.5})
        ids.append(tracker._run.id)
        assert (tracker._run.project, tracker._run.name) == ("tests", "run")
        tracker.close()
    assert ids == [tracker.told["id"]] * 2
    assert list(folder.glob(f"wandb/offline-run-*/run-{ids[0]}.wandb"))


TRACKIO = """
import sys
from pathlib import Path
from agentgym.trainers.trackers import Trackio
for steps in (range(1, 6), range(4, 8)):
    tracker = Trackio(Path(sys.argv[1]), project="tests", auto_log_cpu=False, auto_log_gpu=False)
    for step in steps:
        tracker.log(step, {"reward": step / 10})
    tracker.close()
from trackio.sqlite_storage import SQLiteStorage
print([row["step"] for row in SQLiteStorage.get_logs("tests", tracker.settings["name"])])
"""


def test_trackio_shows_every_step_once(folder):
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(folder.parent / "trackio")}
    shown = subprocess.run([sys.executable, "-c", TRACKIO, str(folder)], check=True, capture_output=True, text=True, env=environment)
    assert "[1, 2, 3, 4, 5, 6, 7]" in shown.stdout.splitlines()


RECIPE = """
env: {id: agentgym/Search-v0}
steps: 2
batch: 1
updates: 1
expander: {class: "agentgym.expand:Groups", size: 2}
limits: {tokens: 300, turn_tokens: 24}
checkpoint_every: 1
trackers: [{class: "test_trackers:Notes", word: "%s"}]
"""


class Notes:
    def __init__(self, folder, word):
        self.file = Path(folder) / f"{word}.txt"

    def log(self, step, metrics):
        assert "reward" in metrics
        with open(self.file, "a") as file:
            file.write(f"{step} ")

    def close(self):
        with open(self.file, "a") as file:
            file.write("end")


@pytest.mark.long
def test_a_training_tells_its_trackers_and_may_be_resumed_with_others(tmp_path):
    pytest.importorskip("tensorboard")
    from agentgym.cli.training import run

    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE % "first")
    run(recipe, out, resume=False)
    assert (out / "first.txt").read_text() == "1 2 end"
    assert [step for step, _ in scalars(out)["reward"]] == [1, 2]
    assert {"seconds_generate", "sampled_tokens"} <= scalars(out).keys()
    recipe.write_text(RECIPE % "second")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(recipe, out, resume=True)
    assert (out / "second.txt").read_text() == "end"


def test_a_tracker_that_a_recipe_gets_wrong_is_refused(tmp_path):
    from agentgym.trainers.recipe import Recipe

    wrong = {"class": "test_trackers:Notes", "wrod": "x"}
    (tracker,) = Recipe.model_validate({"env": {"id": "x"}, "steps": 1, "trackers": [wrong]}).trackers
    with pytest.raises(AgentGymError, match="wrod"):
        tracker.build(folder=tmp_path)
