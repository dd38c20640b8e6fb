"""Whether an answer is the expected one, by `math-verify`, and ReTool's reward."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache, lru_cache
from queue import SimpleQueue

from agentgym.errors import JudgeError, MissingExtra

LONGEST_ANSWER = 500  # characters; longer ones are wrong
WAIT = 60.0  # seconds: well above the processor time that a comparison may take
_starting = threading.Lock()
_BOXED = "\\boxed{"
_PLAIN = re.compile(r"[-+]?[\d.,/]+%?|\w*")


def equivalent(answer: str, expected: str) -> bool:
    """Whether both are the same in mathematics. Raises `JudgeError` where that could not be found out."""
    if len(answer) > LONGEST_ANSWER:
        return False
    return answer.strip() == expected.strip() or _compared(answer, expected)


def is_copied(answer: str, problem: str) -> bool:
    """Whether an answer is a formula of the question, which is no answer; a number or a word may well stand in it."""
    short, question = ("".join(text.replace("$", "").split()) for text in (answer, problem))
    return _PLAIN.fullmatch(short) is None and short in question


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` of a text holds; None without one that is closed."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(_BOXED), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len(_BOXED) : place]
    return None


def right_or_wrong(right: bool, turns: int) -> float:
    return float(right)


def retool(right: bool, turns: int) -> float:
    """1 if right, else -1 and a little more for each turn, up to -0.6.

    Source: ReTool, arXiv 2504.11536: 1 and -1; the softening is that of a community recipe [S2].
    """
    return 1.0 if right else min(-0.6, -1.0 + 0.1 * (turns - 2) / 2)


class Comparison:
    """A process of `agentgym.envs.maths.checker`, for one thread at a time, started when it is needed and anew when it died.

    A fork of the process that started it starts another one.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("math_verify", "maths")
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, answer: str, expected: str) -> bool:
        process = self._running()
        line = self._line(process, json.dumps([answer, expected]))
        if line:
            return bool(json.loads(line))
        self.close()
        if process.returncode == -signal.SIGXCPU:
            return False  # the answer costs more than an answer may
        raise JudgeError(f"no verdict on the answer {answer[:80]!r}: the comparing process died, or took over {WAIT:g} s")

    def _line(self, process: subprocess.Popen[str], question: str) -> str:
        """The answer, or nothing where the process ended or is too slow."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answers = select.poll()
            answers.register(process.stdout, select.POLLIN)
            if answers.poll(1000 * WAIT):
                return process.stdout.readline()
        return ""

    def close(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.5)  # how it ended by itself counts
            self._process.kill()
            self._process.wait()
        self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner = os.getpid()
            command = [sys.executable, "-m", "agentgym.envs.maths.checker"]
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
        return self._process


@lru_cache(2**14)
def _compared(answer: str, expected: str) -> bool:
    with _starting:
        waiting = _comparisons()
    comparison = waiting.get()
    try:
        return comparison.ask(answer, expected)
    finally:
        waiting.put(comparison)


@cache
def _comparisons() -> SimpleQueue[Comparison]:
    """One for each processor, so that a slow answer holds up few."""
    waiting: SimpleQueue[Comparison] = SimpleQueue()
    for _ in range(os.cpu_count() or 1):
        waiting.put(comparison := Comparison())
        atexit.register(comparison.close)
    return waiting
