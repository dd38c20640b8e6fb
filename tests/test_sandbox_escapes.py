"""Attempts to get out of a sandbox, to see or harm what is not its own, or to outlast a call: each on every backend."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from escapes import ATTEMPTS, MARK, NOT_STOPPED_BY_SUBPROCESS, PRELUDE, SECRET, WITHIN_A_HISTORY
from sandboxes import BACKENDS, sandbox_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "sandbox.md"


class Host:
    """What an attempt might reach: files, listeners, and a process, with what becomes of them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="canary-")
        os.chmod(self._folder.name, 0o777)
        self.canary, self.unix = Path(self._folder.name, "canary"), Path(self._folder.name, "unix")
        self.canary.write_text(SECRET)
        self.canary.chmod(0o666)
        self.visitors = 0
        self._listeners = [self._listen(socket.AF_INET, ("0.0.0.0", 0)), self._listen(socket.AF_UNIX, str(self.unix))]
        self._listeners.append(self._listen(socket.AF_UNIX, "\0agentgym-canary"))
        self.unix.chmod(0o777)
        self.port = self._listeners[0].getsockname()[1]
        self.victim = subprocess.Popen(["sleep", "600"], user=65534 if os.geteuid() == 0 else None)

    def _listen(self, family, address):
        listener = socket.socket(family)
        listener.bind(address)
        listener.listen()
        threading.Thread(target=self._count, args=(listener,), daemon=True).start()
        return listener

    def _count(self, listener):
        while True:
            try:
                listener.accept()
            except OSError:
                return
            self.visitors += 1

    def program(self, attempt):
        names = {"CANARY": str(self.canary), "PORT": self.port, "UNIX": str(self.unix), "VICTIM": self.victim.pid, "MARK": MARK}
        names |= {"NEEDLE": SECRET[::-1], "REPOSITORY": str(Path(__file__).parent.parent), "ADDRESS": own_address()}
        return "\n".join(f"{name} = {value!r}" for name, value in names.items()) + PRELUDE + attempt

    def assert_unharmed(self):
        assert self.canary.read_text() == SECRET
        assert {path.name for path in self.canary.parent.iterdir()} == {"canary", "unix"}
        assert self.visitors == 0
        assert self.victim.poll() is None
        assert not survivors()
        assert abs(time.time() - time.monotonic() - self.clock) < 60

    clock = time.time() - time.monotonic()

    def close(self):
        self.victim.kill()
        self.victim.wait()
        for listener in self._listeners:
            listener.close()
        self._folder.cleanup()


def own_address():
    """An address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return sock.getsockname()[0]


def survivors():
    """Processes that an attempt has marked, a moment after its call."""
    for _ in range(50):
        found = [path for path in Path("/proc").glob("[0-9]*/comm") if read(path) == MARK]
        if not found:
            return []
        time.sleep(0.02)
    return found


def read(path):
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def host():
    os.environ["AGENTGYM_CANARY"] = SECRET
    found = Host()
    yield found
    found.close()
    del os.environ["AGENTGYM_CANARY"]


def tried():
    for backend in BACKENDS:
        for name in ATTEMPTS:
            if backend != "subprocess" or name not in NOT_STOPPED_BY_SUBPROCESS:
                yield backend, name


@pytest.mark.parametrize(("backend", "name"), list(tried()))
def test_an_attempt_gets_nowhere(backend, name, host):
    sandbox = sandbox_of(backend)
    if "another call" in name:
        sandbox.run("pass", files={"hidden_tests.py": SECRET.encode()})
    found = sandbox.run(host.program(ATTEMPTS[name]))
    seen = found.stdout + found.stderr + repr(dict(found.files))
    assert "ESCAPED" not in found.stdout, found
    assert SECRET not in seen, found
    assert "SyntaxError" not in found.stderr
    assert "NameError" not in found.stderr
    assert found.stdout or found.stopped or found.files, f"the attempt was not made: {found}"
    host.assert_unharmed()
    assert sandbox.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("name", WITHIN_A_HISTORY)
def test_an_attempt_within_a_history_harms_that_history_at_most(name, host):
    sandbox, history = sandbox_of("bubblewrap"), ("", "x = 1")
    sandbox.run(host.program(ATTEMPTS[name]), history=history)
    host.assert_unharmed()
    assert sandbox.run("print(x)", history=history).stdout == "1\n"
    assert sandbox.run("print(1)").stdout == "1\n"


def test_nothing_of_a_history_runs_between_its_calls(tmp_path):
    sandbox = sandbox_of("bubblewrap")
    burner = "import os, threading\nos.register_at_fork(after_in_child=lambda: threading.Thread(target=burn, daemon=True).start())\n"
    burner += "def burn():\n    import ctypes\n    ctypes.CDLL(None).prctl(15, b'agentgym-mark', 0, 0, 0)\n    while True: pass"
    sandbox.run(burner, history=("",))
    before = cpu_of_all()
    time.sleep(0.5)
    assert cpu_of_all() - before < 0.2


def cpu_of_all():
    """Seconds that marked threads have used."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/task/*/stat"):
        if f"({MARK})" in (text := read(path)):
            total += sum(map(int, text.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def test_there_are_at_least_sixty_attempts():
    assert len(ATTEMPTS) >= 60


def test_the_document_lists_what_subprocess_does_not_stop():
    text = DOCUMENT.read_text()
    listed = text.split("<!-- not stopped by subprocess -->")[1].split("<!-- end -->")[0]
    assert [line.removeprefix("- ") for line in listed.strip().splitlines()] == sorted(NOT_STOPPED_BY_SUBPROCESS)
    assert set(ATTEMPTS) >= set(NOT_STOPPED_BY_SUBPROCESS)
