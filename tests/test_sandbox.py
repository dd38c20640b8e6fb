"""Sandboxes from the host's side: which is opened, what it remembers, and that it comes back when its worker hangs or dies."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from escapes import ATTEMPTS, PRELUDE
from hypothesis import given, settings
from hypothesis import strategies as st
from sandboxes import BACKENDS, SMALL, sandbox_of

from agentgym.errors import AgentGymError, InfrastructureError, MissingExtra, SnapshotMismatch
from agentgym.tools.sandbox import SandboxLimits, open_sandbox, rootfs, unguarded
from agentgym.tools.sandbox.inside import folder, frames
from agentgym.tools.sandbox.memory import MOST, Cell, Memory


@pytest.fixture
def own():
    """A bubblewrap sandbox that a test may break."""
    sandbox_of("bubblewrap")
    sandbox = open_sandbox("bubblewrap", SMALL)
    yield sandbox
    sandbox.close()


def processes_below(pid):
    found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, found[::2]), map(int, found[1::2]), strict=True))
    below, queue = [], [pid]
    while queue:
        parent = queue.pop()
        children = [child for child, of in parents.items() if of == parent]
        below += children
        queue += children
    return below


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def gone(pids):
    """A moment later."""
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


def shell_of(sandbox):
    return sandbox._worker._shell._process.pid


def kill_all(sandbox):
    """The worker, and the interpreters that stand there."""
    pids = [shell_of(sandbox), *processes_below(shell_of(sandbox))]
    for pid in pids:
        kill(pid)
    sandbox._worker._shell._process.wait()
    assert gone(pids)


def test_a_worker_that_hangs_is_ended_and_replaced(own):
    own.run("pass")
    own._worker._idle[0]._patience = 0.3
    below = processes_below(shell_of(own))
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    found = own.run("print(1)")
    assert (found.status, found.stopped) == (None, "wall")
    assert gone(below)
    assert own.run("print(2)").stdout == "2\n"


def test_a_worker_that_dies_during_a_call_is_infrastructure_and_replaced(own):
    own.run("pass")
    killer = threading.Timer(0.2, lambda: [kill(pid) for pid in processes_below(shell_of(own))])
    killer.start()
    with pytest.raises(InfrastructureError, match="the next call gets a new one"):
        own.run("import time\ntime.sleep(0.9)")
    assert own.run("print(2)").stdout == "2\n"


def test_a_worker_that_died_between_calls_is_replaced_unseen(own):
    kill_all(own)
    assert own.run("print(2)").stdout == "2\n"


def test_a_worker_outlives_who_started_it_and_ends_when_closed(own):
    below = processes_below(shell_of(own))
    kill(shell_of(own))
    own._worker._shell._process.wait()
    assert own.run("print(2)").stdout == "2\n"
    own.close()
    assert gone(below)


def test_a_worker_that_cannot_be_started_again_is_infrastructure(own):
    kill_all(own)
    own._launcher._program = "/bin/false"
    with pytest.raises(InfrastructureError, match="cannot be started again"):
        own.run("pass")


def test_a_cell_that_closes_its_folder_does_not_hinder_the_next(own):
    own.run("import os\nos.chmod('.', 0)", history=("",))
    assert own.run("print(2)", history=("",)).stdout == "2\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_processor_time_is_that_of_the_program_and_of_all_it_starts(backend):
    busy = "import time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until:\n    pass\n"
    child = f"import os\nif os.fork() == 0:\n    {busy.strip().replace(chr(10), chr(10) + '    ')}\n    os._exit(0)\nos.wait()"
    for program in (busy, child):
        assert 0.18 < sandbox_of(backend).run(program).cpu < 0.3


def test_a_closed_sandbox_leaves_no_process_and_no_folder(own):
    own.run("pass")
    below, place = [shell_of(own), *processes_below(shell_of(own))], Path(own._worker._path)
    own.close()
    assert len(below) > 3
    assert gone(below)
    assert not place.parent.exists()


def test_the_worker_ends_with_its_host(tmp_path):
    sandbox_of("bubblewrap")
    program = (
        "from agentgym.tools.sandbox import open_sandbox; s = open_sandbox('bubblewrap'); s.run('pass'); "
        "print(s._worker._shell._process.pid, flush=True); input()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # where it leaves a folder, as it cannot clean up
    host = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(host.stdout.readline())
    host.kill()
    host.wait()
    assert gone([pid])


def test_a_host_may_have_a_thousand_files_open():
    sandbox_of("bubblewrap")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2048), hard), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        sandbox = open_sandbox("bubblewrap", SMALL)
        assert [sandbox.run("print(5)").stdout for _ in range(2)] == ["5\n"] * 2
        sandbox.close()
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_fork_of_the_host_gets_a_worker_of_its_own(own):
    own.run("pass")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: (answers.put(own.run("print(3)").stdout), own.close()))
    child.start()
    assert answers.get(timeout=30) == "3\n"
    child.join()
    with ThreadPoolExecutor() as threads:  # so that one of them needs a new connection
        answers = threads.map(own.run, ["import time\ntime.sleep(0.2)\nprint(4)"] * 2)
        assert [answer.stdout for answer in answers] == ["4\n"] * 2


@pytest.mark.parametrize("backend", ["bubblewrap", "subprocess"])
def test_a_network_is_there_if_it_is_allowed(backend):
    sandbox_of(backend)
    sandbox = open_sandbox(backend, SandboxLimits(network=True))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = sandbox.run(f"import socket\nprint(socket.create_connection(('127.0.0.1', {port})).getpeername()[1])")
    sandbox.close()
    assert found.stdout == f"{port}\n"


def as_nobody(root):
    """Within a process of its own, without any right: a sandbox of bubblewrap, and how an escape and a limit fare in it."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    tempfile.tempdir = "/tmp"
    rootfs.this_machine = lambda: root
    sandbox = open_sandbox("bubblewrap", SMALL)
    escape = PRELUDE + ATTEMPTS["new namespaces"] + "\n" + ATTEMPTS["capabilities"]
    found = [sandbox.run(program) for program in ("import os\nprint(os.getpid())", escape, "import time\ntime.sleep(3)")]
    sandbox.close()
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become nobody; for others all tests are of this kind")
def test_bubblewrap_works_for_users_without_rights(tmp_path_factory):
    sandbox_of("bubblewrap")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        unguarded._copy(Path(place))  # nobody may not reach the Python of root
        found = rootfs.this_machine()
        library = Path(place + found.library_target)
        files = tuple((to, place + to if to.startswith(("/python", "/worker")) else path) for to, path in found.files)
        root = rootfs.Root(library, found.library_target, files, ())
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=lambda: answers.put(as_nobody(root)))
        child.start()
        plain, escape, slow = answers.get(timeout=60)
        child.join()
    assert plain.stdout == "2\n"
    assert "ESCAPED" not in escape.stdout
    assert "stopped" in escape.stdout
    assert slow.stopped == "wall"


def test_an_interpreter_is_forked_where_it_stands_and_not_computed_again():
    sandbox = sandbox_of("bubblewrap")
    cell = "import os\nx = os.urandom(8).hex()"  # would differ if it were run again
    tokens = {sandbox.run("print(x)", history=(cell,)).stdout for _ in range(4)}
    assert len(tokens) == 1
    trunk = sandbox.run("y = x", history=(cell,))
    assert {sandbox.run("print(y)", history=(cell, "y = x"), files=trunk.files).stdout for _ in range(2)} == tokens


@pytest.mark.parametrize("history", [("",), ("", "x = 1")])
def test_a_cell_may_be_longer_than_what_a_socket_holds(history):
    assert sandbox_of("bubblewrap").run(f"print(len('{'x' * 2**20}'))", history=history).stdout == f"{2**20}\n"


def test_a_cell_that_fails_when_it_is_repeated_is_a_mismatch_that_names_it(own):
    until = time.time() + 1.0
    cells = ("x = 1", f"import time\nassert time.time() < {until}")
    for index, cell in enumerate(cells):
        assert own.run(cell, history=cells[:index]).status == 0
    kill_all(own)
    time.sleep(max(0.0, until - time.time()))
    with pytest.raises(SnapshotMismatch, match="cell 2 of a history of 2 had succeeded and fails when it is repeated: 'import time"):
        own.run("print(x)", history=cells)
    assert own.run("print(x)", history=cells[:1]).stdout == "1\n"


def test_a_docker_container_that_died_between_calls_is_replaced_unseen():
    sandbox_of("docker")
    sandbox = open_sandbox("docker", SMALL)
    sandbox._worker._shell._api.kill(sandbox._worker._shell._container)
    time.sleep(0.5)
    assert sandbox.run("print(2)").stdout == "2\n"
    sandbox.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_search_of_memory_finds_what_is_there(backend):
    search = ATTEMPTS["the tests of another call, in memory"]
    program = "NEEDLE = 'secret-of-this-call'[::-1]\n" + PRELUDE + "x = open('a', 'rb').read()\n" + search
    found = sandbox_of(backend).run(program, files={"a": b"secret-of-this-call"})
    assert "ESCAPED" in found.stdout


def test_bubblewrap_is_preferred_and_docker_comes_next(monkeypatch):
    sandbox_of("bubblewrap")
    with_both = open_sandbox()
    assert with_both.name == "bubblewrap"
    with_both.close()
    sandbox_of("docker")
    monkeypatch.setenv("PATH", "/nowhere")
    with_docker = open_sandbox()
    assert with_docker.name == "docker"
    with_docker.close()


def test_without_an_engine_the_weaker_one_is_named_and_not_used(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(AgentGymError, match=r"bubblewrap is not installed.*no Docker engine answers.*weaker guarantees: they can read"):
        open_sandbox()
    with pytest.raises(AgentGymError, match="no 'bwrap' in PATH"):
        open_sandbox("bubblewrap")
    with pytest.raises(AgentGymError, match="no Docker engine answers"):
        open_sandbox("docker")


def test_docker_without_its_package_says_which_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MissingExtra, match="docker"):
        open_sandbox("docker")


def test_a_folder_with_too_long_a_path_is_refused(monkeypatch, tmp_path):
    sandbox_of("bubblewrap")
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with pytest.raises(AgentGymError, match="set TMPDIR to a shorter one"):
        open_sandbox("bubblewrap")


def test_a_backend_that_is_none_is_refused():
    with pytest.raises(AgentGymError, match="no sandbox 'podman'; there are docker, bubblewrap and subprocess"):
        open_sandbox("podman")


@pytest.mark.parametrize("limit", [{"wall": 0}, {"memory": -1}, {"cpu": float("nan")}])
def test_a_limit_is_a_positive_number(limit):
    with pytest.raises(AgentGymError, match="a limit is a positive number"):
        SandboxLimits(**limit)


def test_the_memory_finds_how_a_history_went_and_with_which_files():
    memory = Memory()
    memory.note((), "a", {"f": b"0"}, {"f": b"1"}, True)
    memory.note(("a",), "b", {"f": b"1"}, {"f": b"2"}, False)
    memory.note((), "a", {"f": b"8"}, {"f": b"9"}, False)  # the same program elsewhere
    assert memory.cells(("a", "b"), {"f": b"2"}) == [Cell("a", True, {"f": b"0"}), Cell("b", False, {"f": b"1"})]
    assert memory.cells(("a",), {"f": b"9"}) == [Cell("a", False, {"f": b"8"})]
    changed = memory.cells(("a", "b", "new"), {"g": b""})  # nobody knows the last: it finds the files of now, and those before it theirs
    assert changed == [Cell("a", True, {"f": b"0"}), Cell("b", False, {"f": b"1"}), Cell("new", None, {"g": b""})]


def test_the_memory_forgets_the_oldest_before_it_grows_large():
    memory = Memory()
    for index in range(4):
        memory.note((), str(index), {"f": bytes(MOST // 5)}, {}, True)
    known = [memory.cells((str(index),), {})[0].succeeded for index in range(4)]
    assert known == [None, None, True, True]


NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)
HEADERS = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=10)), max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=6), st.lists(NAMES, max_size=3))
def test_files_that_go_in_come_out_and_go_away(files, above):
    files = {"/".join([*(f"d{part}" for part in above), f"f{name}"]): content for name, content in files.items()}
    with tempfile.TemporaryDirectory() as place:
        at = os.open(place, os.O_RDONLY)
        folder.fill(at, files, os.getuid())
        assert folder.collect(at, 10_000) == (files, True)
        folder.empty(at)
        assert os.listdir(at) == []
        os.close(at)


def test_files_beyond_what_is_allowed_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    os.truncate(os.open(tmp_path / "b", os.O_CREAT | os.O_RDWR), 2**40)
    assert folder.collect(os.open(tmp_path, os.O_RDONLY), 1000) == ({"a": bytes(100)}, False)


@settings(max_examples=50, deadline=None)
@given(HEADERS, st.lists(st.binary(max_size=50), max_size=4))
def test_a_frame_arrives_as_it_was_sent(header, blobs):
    here, there = socket.socketpair()
    with here, there:
        frames.send(here, header, blobs, [here.fileno()])
        found, contents, fds = frames.receive(there, most_fds=1)
        os.close(fds[0])
    assert found == {**header, "sizes": [len(blob) for blob in blobs]}
    assert contents == blobs


def test_a_frame_that_is_none_is_refused():
    here, there = socket.socketpair()
    here.sendall(b"\xff" * 8)
    with pytest.raises(ValueError, match="at most 1000 are allowed"):
        frames.receive(there, longest=1000)
    here.close()
    with pytest.raises(EOFError):
        frames.receive(there)
    there.close()
