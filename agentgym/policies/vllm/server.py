"""A vLLM server of our own: started with the flags that token-exact rollouts need, watched, and stopped with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from agentgym.errors import AgentGymError

MODULE = "vllm.entrypoints.openai.api_server"  # the script ``vllm`` of the CPU build looks for a distribution that is called otherwise
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # else there is no way to pause, or to bring new weights
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
ENVIRONMENT_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: half the time to start, and no two that wait for each other busily
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # else the first request for log-probabilities waits for a compiler
}
FLAGS = (
    "--enable-scale-out",  # tokens in, tokens out
    "--logprobs-mode=processed_logprobs",  # of the distribution that was sampled from, temperature included
    "--generation-config=vllm",  # the checkpoint's own would change what is sampled
    "--enable-prompt-tokens-details",
    "--disable-uvicorn-access-log",
)
BACKEND = '{"backend": "agentgym"}'  # of the plugin in ``plugin/``
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of the adapters that vLLM has room for
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FLAGS_CPU = ("--enforce-eager", "--dtype=float32", "--block-size=32", "--kv-cache-memory-bytes=268435456", "--max-num-seqs=64")


class VllmServer:
    """One server. ``python`` is that of an environment with vLLM in it; ``command`` stands in its place, as in ``("vllm", "serve")``.

    With ``weights`` it can be brought new ones, for which our plugin must be installed beside vLLM, and with ``lora`` adapters of that
    rank at most; ``cpu`` adds what float32 on processors needs. ``flags`` come last and so overrule ours. What it says goes to ``log``.
    The routes by which weights come have no authentication: ``host`` is this machine's own, or one on a private network.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        python: str = "python",
        command: Sequence[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str = "policy",
        cpu: bool = True,
        weights: bool = True,
        lora: int | None = None,
        max_model_len: int | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        log: Path | str = "vllm.log",
    ) -> None:
        self.host, self.port = host, port or _free_port(host)
        self.url = f"http://{host}:{self.port}"
        self.log = Path(log)
        length = [] if max_model_len is None else [f"--max-model-len={max_model_len}"]
        start = [*command, str(model)] if command else [python, "-m", MODULE, f"--model={model}"]
        served = [f"--served-model-name={name}", f"--host={host}", f"--port={self.port}"]
        transfer = [f"--weight-transfer-config={BACKEND}"] if weights else []
        adapters = [] if lora is None else _room_for_adapters(lora)
        self.command = [*start, *served, *FLAGS, *(FLAGS_CPU if cpu else ()), *transfer, *adapters, *length, *flags]
        self.environment = {**ENVIRONMENT, **(ENVIRONMENT_CPU if cpu else {}), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 600.0) -> Self:
        """Start it and wait until it answers. Raises `AgentGymError` with the end of its log where it dies or takes too long."""
        self.kill()  # what an ended one has left
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self.command, env={**os.environ, **self.environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                reason = f"{self.command[0]!r} cannot be started ({error.strerror})"
                raise AgentGymError(f"{reason}: name the python of an environment that has vLLM") from error
        until = time.monotonic() + timeout
        try:
            self._lifeline = _end_with_us(self._process.pid)
            while not self.healthy():
                if not self.running():
                    raise AgentGymError(f"vLLM ended as it started, with status {self._process.returncode}. {self._last_words()}")
                if time.monotonic() > until:
                    raise AgentGymError(f"vLLM does not answer at {self.url} after {timeout:g} s. {self._last_words()}")
                time.sleep(0.2)
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> int:
        """Until it ends by itself; its status."""
        assert self._process is not None
        return self._process.wait()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def healthy(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200
        return False

    def stop(self, timeout: float = 30.0) -> None:
        """What is in flight is aborted first: with a request unanswered, it would not end."""
        if self._process is not None and self.running():
            with contextlib.suppress(httpx.TransportError):
                httpx.post(f"{self.url}/pause", params={"mode": "abort"}, timeout=5.0, trust_env=False)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """All its processes at once: an engine outlives the server that started it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._lifeline is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._lifeline.pid, signal.SIGKILL)
            self._lifeline.wait()
        self._lifeline = None

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return f"It said: {(errors or lines or ['nothing'])[-1].strip()[:300]} (all of it is in {self.log})"


def _end_with_us(group: int) -> subprocess.Popen[bytes]:
    """Kills a process group as soon as this process is no more, however it ended: a server that nobody asks keeps its memory."""
    us = os.getpid()
    lives = f"kill -0 {us} && ! grep -qs '^State:.*Z' /proc/{us}/status"  # one that nobody has waited for is no more, too
    script = f"while {lives}; do sleep 1; done; kill -KILL -{group}"
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(["sh", "-c", script], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)


def _room_for_adapters(rank: int) -> list[str]:
    """For two at once: the last, and the one before, with which some requests are still under way.

    Not for the output, to which vLLM would else add the adapter's part, even if it has none; on CPU this ends the engine as soon as it
    scores a prompt beside another request.
    """
    room = next((size for size in RANKS if size >= rank), None)
    if rank < 1 or room is None:
        raise AgentGymError(f"vLLM has room for adapters of rank 1 to {RANKS[-1]}, not {rank}")
    return ["--enable-lora", f"--max-lora-rank={room}", "--max-loras=2", "--lora-target-modules", *ADAPTED]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
