"""Training runs in processes of their own, to be killed."""

from __future__ import annotations

import multiprocessing
import signal
import time

HEAVY = [
    "torch._dynamo",
    "accelerate",
    "transformers.models.qwen3.modeling_qwen3",
    "agentgym.policies.sync",
    "agentgym.policies.transformers",
    "agentgym.trainers.loop",
]


def start(main, folder, steps):
    """Plays the function of `resumable_run` of that name, forked from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    import resumable_run

    run = context.Process(target=getattr(resumable_run, main), args=(folder, steps))
    run.start()
    return run


def finish(main, folder, steps):
    run = start(main, folder, steps)
    run.join(timeout=200)
    assert run.exitcode == 0


def kill(run, log, size):
    """As soon as the log is longer than that."""
    while run.is_alive() and not (log.exists() and log.stat().st_size > size):
        time.sleep(0.002)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL, "the run ended before it was killed"


def what_it_left(folder):
    return {name: (folder / name).read_bytes() for name in ("weights", "metrics.jsonl", "turns.jsonl")}
