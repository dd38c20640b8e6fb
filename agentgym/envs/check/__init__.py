"""The contract check: what every environment promises, each promise tried from outside by scripted play."""

from __future__ import annotations

import functools
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from agentgym.envs.check import form, grading, repetition
from agentgym.envs.check.play import NotCheckedError, Subject
from agentgym.errors import AgentGymError
from agentgym.registry import make

Check = Callable[[Subject], Iterator[str]]

CHECKS: dict[str, Check] = {
    "neighbour": repetition.neighbour,  # first: its solo plays must be the first in the process
    "contract": form.contract,
    "seed": repetition.seed,
    "process": repetition.process,
    "leak": repetition.leak,
    "fork": repetition.fork,
    "end": form.end,
    "limits": form.limits,
    "schema": form.schema,
    "reward": grading.reward,
    "gold": grading.gold,
    "idle": grading.idle,
    "answer": grading.answer,
    "blocking": form.blocking,
    "gymnasium": form.gymnasium,
}


@dataclass(frozen=True, slots=True)
class Problem:
    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(slots=True)
class Report:
    """What `check_env` found: the problems, the names of the checks that passed, and those skipped with the reason."""

    problems: list[Problem] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def raise_if_broken(self) -> None:
        """Raises `AgentGymError` with all problems."""
        if self.problems:
            found = "\n".join(f"- {problem}" for problem in self.problems)
            raise AgentGymError(f"the environment breaks its contract:\n{found}")


def check_env(env_or_factory: Any, *, seed: int = 0, gymnasium_check: bool = True) -> Report:
    """Check an environment's contract by scripted play. Takes a class, a factory, a registered id or ``module:Class``.

    ``seed`` sets the play. Episodes are replayed in other processes too, for which the factory must be importable.
    """
    subject = Subject(_factory(env_or_factory), seed)
    report = Report()
    states = random.getstate(), np.random.get_state()
    try:
        if _plays(subject, report):
            for name, check in CHECKS.items():
                if name != "gymnasium" or gymnasium_check:
                    _run(name, check, subject, report)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return report


def _plays(subject: Subject, report: Report) -> bool:
    """Whether an instance can be made, and its tasks and scripts: without these there is nothing to check."""
    try:
        return bool(subject.scripts)
    except Exception as error:
        report.problems.append(Problem("contract", _crash(error)))
        return False


def _run(name: str, check: Check, subject: Subject, report: Report) -> None:
    before = len(report.problems)
    try:
        for message in check(subject):
            report.problems.append(Problem(name, message))
    except NotCheckedError as why:
        report.skipped.append((name, str(why)))
        return
    except Exception as error:
        report.problems.append(Problem(name, _crash(error)))
    if len(report.problems) == before:
        report.passed.append(name)


def _crash(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"the environment raised {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno}, in {frame.name})"


def _factory(given: Any) -> Callable[[], Any]:
    if isinstance(given, gymnasium.Env):
        name = type(given).__name__
        raise AgentGymError(f"check_env makes its own instances: give it the class {name} or a function that makes one")
    if not isinstance(given, str):
        if not callable(given):
            raise AgentGymError(f"check_env takes a class, a factory, a registered id or module:Class, not {given!r}")
        return given  # type: ignore[no-any-return]
    if given in gymnasium.registry:
        spec = gymnasium.spec(given)
        entry: Any = spec.entry_point
        creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        return functools.partial(creator, **spec.kwargs)
    return functools.partial(make, given)
