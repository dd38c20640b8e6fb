"""Commands in a file system of their own, judged by what they change and print; InterCode's recorded runs again."""

import json
from pathlib import Path

import pytest

import agentgym
from agentgym import AgentGymError, InfrastructureError, Outcome, call
from agentgym.envs.bash import Bash
from agentgym.envs.bash.shell import LATE, MALFORMED, Place, perform
from agentgym.envs.bash.tree import Entry, tree_of
from agentgym.tools.sandbox import SandboxLimits, open_sandbox
from agentgym.tools.sandbox.conformance import PROMISES, check

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "intercode" / "bash"
LONGEST = 2  # turns of the recorded episodes that are played here, and of these every other one
VARYING = ("$(date)", "${DIRECTORY}")  # a gold command with these prints something else each second
NOW = 1_700_000_000
SMALL = Place(tree_of({"/a": Entry("folder", 0o755, -60), "/a/b": Entry("file", 0o640, -60, b"x\n")}))
ROW = '{"id": "a", "fs": 1, "query": "q", "gold": "ls"}'


@pytest.fixture(scope="module")
def env():
    env = Bash()
    try:
        env._sandbox.run("pass")
    except AgentGymError as error:
        pytest.skip(str(error))
    return env


@pytest.fixture(scope="module")
def official(env):
    if not FOLDER.is_dir():
        pytest.skip("there is no folder intercode/bash beside the repository")
    return Bash(FOLDER)


@pytest.fixture
def run(env):
    def run(command, place=SMALL):
        return perform(env._sandbox, place, command, NOW)

    return run


def step(env, command):
    return env.step(call("bash", command=command))


def recorded():
    for file in sorted(FOLDER.glob("replay_gpt4_fs*.jsonl")):
        yield from map(json.loads, file.read_text().splitlines())


def test_the_recorded_episodes_are_rewarded_as_they_were(official):
    equal, seen, same, episodes = 0, 0, 0, 0
    for row in [row for row in recorded() if len(row["actions"]) <= LONGEST][::2]:
        official.reset(options={"task": row["id"]})
        for action, reward in zip(row["actions"], row["rewards"], strict=True):
            if official.ended:
                break
            step(official, action)
            equal, seen = equal + (abs(official.state.last.total - reward) < 0.015), seen + 1
        same, episodes = same + ((official.score() == 1) is (row["max_reward"] == 1)), episodes + 1
    assert episodes >= 10
    assert equal >= 0.8 * seen
    assert same >= 0.9 * episodes


def test_gold_commands_score_one(official):
    tasks = [task for task in official.tasks("test") if not any(word in task.answer["gold"] for word in VARYING)]
    for task in tasks[::8]:
        official.reset(options={"task": task})
        assert official.step(official.gold(task)[0])[1:3] == (1.0, True), task.id


def test_our_own_tasks_are_solved_by_their_gold_commands_alone(env):
    for task in env.tasks("train"):
        env.reset(options={"task": task})
        assert step(env, "true")[2] is False, task.id
        assert env.step(env.gold(task)[0])[1:3] == (1.0, True), task.id
        assert env.score() == 1.0


def test_the_best_command_counts_and_ten_are_the_most(env):
    env.reset(options={"task": "make"})
    text, *_ = step(env, "mkdir /garden/new; touch /garden/new/bed.txt; echo done")
    assert text == "done\nReward: 0.67"
    for _ in range(8):
        assert step(env, "rm -r /garden/beds; echo more")[2:4] == (False, False)
    *_, reward, terminated, truncated, info = step(env, "echo no")
    assert (reward, terminated, truncated) == (pytest.approx(0.67), False, True)
    assert info["metrics"] == {"paths": 0.33, "contents": 0.33, "output": 0.0, "commands": 10.0}


def test_an_episode_without_a_command_earns_nothing(env):
    env.reset(options={"task": "make"})
    assert env.stop("budget")[0] == 0.0


def test_what_a_command_leaves_is_there_for_the_next_and_for_every_fork(env):
    env.reset(options={"task": "count"})
    step(env, "mkdir ~/kept; ln -s ../garden /home/link; chmod 600 /garden/plan.txt; touch -d 2001-02-03 /usr/old; cd /garden")
    snapshot = env.snapshot()
    look = "ls -l /home/link /garden/plan.txt | cut -c1-10; ls -d ~/kept; date -r /usr/old +%Y; ls /garden/seeds.csv"
    answers = []
    for _ in range(2):
        env.restore(snapshot)
        answers.append(step(env, look)[0])
        step(env, "rm -r /garden ~/kept /usr/old")
    assert answers[0] == answers[1]
    assert answers[0].splitlines()[:5] == ["-rw-------", "lrwxrwxrwx", "/root/kept", "2001", "/garden/seeds.csv"]


def test_equal_files_are_one_state_whenever_they_were_written(env):
    keys = set()
    for first, second in (("touch /garden/x", "touch /garden/y"), ("touch /garden/y", "touch /garden/x")):
        env.reset(options={"task": "count"})
        step(env, first)
        between = env.key()
        step(env, second)
        assert env.key() != between
        keys.add(env.key())
    assert len(keys) == 1


def test_cd_moves_the_commands_after_it(run):
    moved = run("cd a/../a/.")
    assert (moved.output, moved.place.folder) == ("", "/a")
    assert run("pwd; cat b", moved.place).output == "/a\nx\n"
    assert run("cd /none", moved.place).place.folder == "/a"
    assert run("pwd && cd /", moved.place).place.folder == "/a"
    assert "cannot run in /a" in run("ls", run("rm -r /a", moved.place).place).output


def test_a_command_is_quoted_as_in_the_official_environment(run):
    assert run('echo "a  b"').output == "a\n"  # the inner quotes end the text; b is the name of the shell
    assert run("echo 'a  b'").output == "a  b\n"
    assert run('echo \\"a  b\\"').output == "a  b\n"
    assert run('echo "').output == run("#" * 2 * 10**7).output == MALFORMED
    assert run("nothing_such; echo $0").output == "/bin/bash: line 1: nothing_such: command not found\n/bin/bash\n"
    assert run("echo .* | cut -c1-4").output == ". ..\n"


def test_both_streams_are_one_and_are_text(run):
    assert run("echo a; echo b >&2; echo c").output == "a\nb\nc\n"
    assert run("printf '\\377'").output == MALFORMED
    assert len(run("yes | head -c 9000000").output) == 2**20


def test_a_name_that_is_no_text_survives(run):
    place = run("true; cd /a; touch $'\\377'; mkdir -m 0 shut; chmod 0 b").place
    assert run("ls -l /a | cut -c1-10 | tail -n +2; ls /a | wc -l", place).output == "----------\nd---------\n-rw-r--r--\n3\n"


FAKES = "echo '{}' > /work/result; kill -9 $PPID"


# A tree that the command writes by itself, with 1,990 names of 720 characters, each of which is sent as twelve.
FORGED = """python3 -c 'import json
tree = [[chr(47) + str(i) + chr(0x1F600) * 720, \\"file\\", MODE, 1, str()] for i in range(1990)]
result = dict(output=str(), status=0, late=False, tree=tree)
open(\\"/work/result\\", \\"w\\").write(json.dumps(result, ensure_ascii=False))'; kill -9 $PPID"""
LONG, ENDLESS = FORGED.replace("MODE", "420"), FORGED.replace("MODE", "1e999")


@pytest.mark.parametrize("command", ["kill -9 $PPID", "kill -9 -1", FAKES, LONG, ENDLESS, "head -c 9000000 /dev/zero > /a/b"])
def test_no_command_can_void_its_episode(run, command):
    done = run(command)
    assert "The files are as before it" in done.output
    assert run("cat /a/b", done.place).output == "x\n"


def test_a_state_of_too_many_files_is_refused(run):
    done = run("cd /a && seq 3000 | xargs touch")
    assert "The files are as before it" in done.output
    assert [path for path, _ in done.place.tree] == ["/a", "/a/b"]


def test_a_command_that_takes_too_long_is_ended_and_what_it_did_stays(run, monkeypatch):
    monkeypatch.setattr("agentgym.envs.bash.shell.SECONDS", 0.5)
    done = run("echo y > /a/b; sleep 60")
    assert done.output == LATE
    assert dict(done.place.tree)["/a/b"].content == b"y\n"


def test_a_gold_command_that_is_late_is_no_answer(env, monkeypatch):
    monkeypatch.setattr("agentgym.envs.bash.shell.SECONDS", 0.0)
    env.reset(options={"task": "count"})
    with pytest.raises(InfrastructureError, match="gold command of task count"):
        step(env, "true")


def test_what_goes_on_in_the_background_ends_with_its_command(run):
    done = run("(sleep 0.3; echo late > /a/b) >/dev/null 2>&1 & echo now")
    assert done.output == "now\n"
    assert run("sleep 0.5; cat /a/b", done.place).output == "x\n"
    assert run("(while :; do touch /a/{1..200}; rm /a/{1..200}; done) >/dev/null 2>&1 & sleep 0.2; echo now").output == "now\n"


def test_the_machine_is_out_of_reach(run):
    repository = Path(__file__).resolve().parents[1]
    assert run(f"ls {repository}; ls /machine /box /worker; echo x > /usr/bin/x; echo x > /etc/x").output.count("No such file") == 4
    assert run("ls /usr/bin/x /etc/x").output.count("No such file") == 2
    assert run("ls -A /usr/local /usr/src /usr/lib*/python*/*-packages | grep -v :$ | sort -u").output in ("", "\n")


@pytest.mark.parametrize("promise", PROMISES)
def test_a_sandbox_with_commands_keeps_every_promise(promise, small):
    assert check(small, promise).problem == ""


@pytest.fixture(scope="module")
def small(env):
    return open_sandbox(limits=SandboxLimits(wall=1.0, cpu=0.8, memory=64, processes=12, output=4096, disk=4), commands=True)


@pytest.mark.parametrize("backend", ["docker", "subprocess"])
def test_other_backends_refuse_to_offer_commands(backend):
    with pytest.raises(AgentGymError, match="cannot offer this machine's commands"):
        open_sandbox(backend, commands=True)


def test_a_refused_call_is_no_command(env):
    env.reset(options={"task": "count"})
    assert env.step(call("bash"))[4]["outcome"] is Outcome.MODEL_ERROR
    assert env.state.best is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "holds no fs1.jsonl"),
        ({"fs1.jsonl": '{"id": "a", "fs": 1, "query": "q"}'}, "line 1: gold"),
        ({"fs1.jsonl": ROW}, "fs1_manifest.json cannot be read"),
        ({"fs1.jsonl": ROW, "fs1_manifest.json": '[{"path": "/a"}]'}, "fs1_manifest.json: 0.type"),
        ({"fs4.jsonl": f"{ROW}\n{ROW}".replace(": 1", ": 4")}, "line 2: there is a task 'a' already"),
    ],
)
def test_bad_data_are_named(tmp_path, files, reason):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(AgentGymError, match=reason):
        Bash(tmp_path)


def test_it_is_made_by_its_class_path():
    assert isinstance(agentgym.make("agentgym.envs.bash:Bash"), Bash)
