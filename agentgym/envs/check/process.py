"""Scripts replayed in another process with another hash seed: ``python -m agentgym.envs.check.process``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from agentgym.env import AgentEnv
from agentgym.envs.check.play import NotCheckedError, Script, Seen, Transcript, play

SECONDS = 120


def replay(factory: Callable[[], AgentEnv], scripts: Sequence[Script], hash_seeds: Sequence[int]) -> list[list[Transcript]]:
    """The transcripts of the scripts in one new process for each hash seed. Raises `NotCheckedError` where that cannot be done."""
    try:
        body = pickle.dumps((factory, list(scripts)))
    except Exception as error:
        raise NotCheckedError(f"it cannot be made in another process ({error}): give a class, an id or module:Class") from error
    job = pickle.dumps((sys.path, _module_file(factory))) + body
    path = os.pathsep.join(part for part in sys.path if part)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "agentgym.envs.check.process"],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for hash_seed in hash_seeds
    ]
    try:
        return [_result(process, job) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _result(process: subprocess.Popen[bytes], job: bytes) -> list[Transcript]:
    try:
        output, errors = process.communicate(job, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NotCheckedError(f"the replay in another process took more than {SECONDS} s") from None
    if process.returncode != 0:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise NotCheckedError(f"it cannot be made in another process ({last}): give a class, an id or module:Class")
    transcripts: list[Transcript] = pickle.loads(output)
    return transcripts


def _module_file(factory: Any) -> tuple[str, str | None]:
    """The module that the factory lives in, and its file, for a module that cannot be imported by its name."""
    factory = getattr(factory, "func", factory)  # functools.partial
    name = getattr(factory, "__module__", None) or type(factory).__module__
    return name, getattr(sys.modules.get(name), "__file__", None)


def _load(name: str, file: str | None) -> None:
    """Make the module of that name stand in ``sys.modules``, so that pickle finds the factory in it."""
    if name == "__main__":
        if file is not None:
            module = ModuleType("__mp_main__")
            module.__dict__.update(runpy.run_path(file, run_name="__mp_main__"))
            sys.modules["__main__"] = module
        return
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file) if file is not None else None
        if spec is None or spec.loader is None:
            raise
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _portable(factory: Callable[[], AgentEnv], script: Script) -> Transcript:
    env: AgentEnv = factory().unwrapped  # type: ignore[assignment]
    try:
        return [replace(seen, info={}) for seen in play(env, script)]
    except Exception as error:
        return [Seen(raised=type(error).__name__, why=str(error))]
    finally:
        env.close()


def main() -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the environment prints must not mix with the result
    sys.path, (name, file) = pickle.load(sys.stdin.buffer)
    _load(name, file)
    factory, scripts = pickle.load(sys.stdin.buffer)
    with output:
        pickle.dump([_portable(factory, script) for script in scripts], output)


if __name__ == "__main__":
    main()
