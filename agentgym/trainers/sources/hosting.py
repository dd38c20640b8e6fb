"""Judge tasks beside those of another environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from agentgym.env import AgentEnv
from agentgym.snapshot import Snapshot
from agentgym.task import Task
from agentgym.trainers.sources.judging import SPLIT, Judge


class Hosting:
    """Leaves a task of `judging` to `Judge`, and all else to ``env``. To the rollout engine it is an environment like any other."""

    def __init__(self, env: AgentEnv) -> None:
        self._env, self._judge = env, Judge()
        self._now = env
        self.blocking = env.blocking

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._turn_to((options or {}).get("task"))
        return self._now.reset(seed=seed, options=options)

    def restore(self, snapshot: Snapshot) -> None:
        self._turn_to(snapshot.task)
        self._now.restore(snapshot)

    def close(self) -> None:
        self._env.close()

    def _turn_to(self, task: Task | str | None) -> None:
        self._now = self._judge if isinstance(task, Task) and task.split == SPLIT else self._env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)


def hosting(make_env: Callable[[], AgentEnv]) -> AgentEnv:
    return cast(AgentEnv, Hosting(make_env()))  # no subclass: what it does not define must be asked of the other
