"""Environments, with their sandboxes, in Ray actors on other machines. The rollout engine stays here and asks them call by call."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count
from typing import Any, Self, SupportsFloat

from agentgym.cluster import PING, Share, actor_on, connect
from agentgym.env import AgentEnv, Info
from agentgym.errors import AgentGymError, InfrastructureError, MissingExtra
from agentgym.snapshot import Snapshot
from agentgym.task import Task

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
except ImportError as error:
    raise MissingExtra("ray", "ray") from error

CALLS_AT_ONCE = 1000  # of one worker; environments that do not wait for anything answer one after another all the same
SHARED = ("system", "max_turns", "max_calls", "reward_range", "splits")  # attributes of all environments that one function makes
BEGINNINGS = ("attributes", "tasks", "gold", "tool_specs", "reset", "restore")  # what needs no episode that stands
START = 300.0  # seconds until a worker is there: machines may have to load the package first
LONGEST_PAUSE = 30.0  # seconds until a lost worker is asked again


class Host:
    """What a Ray actor is made of: environments by number. One that is ``blocking`` works in a thread, the others on the event loop."""

    def __init__(self, make_env: bytes) -> None:
        self.pickled = make_env
        self.envs: dict[int, AgentEnv] = {}
        self.threads = ThreadPoolExecutor(CALLS_AT_ONCE)

    @cached_property  # not in the constructor: an actor that cannot be made says too little about why
    def make_env(self) -> Callable[[], AgentEnv]:
        made: Callable[[], AgentEnv] = pickle.loads(self.pickled)
        return made

    async def where(self) -> str:
        return f"{ray.util.get_node_ip_address()} (node {ray.get_runtime_context().get_node_id()[:8]})"

    async def call(
        self, number: int, forgotten: Sequence[int], name: str, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """What the method of that environment answers, or raised. ``forgotten``: environments that nobody has a hold on any more."""
        for gone in forgotten:
            self.envs.pop(gone, None)
        try:
            if number not in self.envs:
                if name not in BEGINNINGS:
                    raise InfrastructureError(f"it was started anew, and the environment that {name}() is for is gone")
                self.envs[number] = self.make_env()
            env = self.envs[number] if name != "close" else self.envs.pop(number)
            work = partial(_perform, env, name, arguments, named)
            return await asyncio.get_running_loop().run_in_executor(self.threads, work) if env.blocking else work(), None
        except (Exception, SystemExit) as error:  # the last would end the worker
            return None, _portable(error)

    async def leave(self) -> None:
        """Close all environments."""
        for env in self.envs.values():
            with suppress(Exception):
                env.close()
        self.threads.shutdown()


def _perform(env: AgentEnv, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    if name == "attributes":
        return {attribute: getattr(env, attribute) for attribute in SHARED}
    if name == "restore":
        (snapshot,) = arguments
        arguments = (replace(snapshot, state=pickle.loads(snapshot.state)),)
    found = getattr(env, name)
    answer = found(*arguments, **named) if callable(found) else found
    if name == "snapshot":
        return replace(answer, state=_pickled(answer.state, f"a snapshot of {type(env).__name__}"))
    return (answer, env.key()) if name in ("reset", "step", "restore") else answer


def _pickled(value: Any, what: str) -> bytes:
    try:
        data: bytes = ray.cloudpickle.dumps(value)
    except Exception as error:
        raise AgentGymError(f"{what} cannot be brought to another machine: {error}. Make it of what can be pickled") from error
    return data


def _portable(error: BaseException) -> BaseException:
    """``error``, or an infrastructure error that says the same where its class cannot be pickled."""
    try:
        pickle.loads(ray.cloudpickle.dumps(error))
    except Exception:
        return InfrastructureError(f"{type(error).__name__}: {error}")
    return error


@dataclass(eq=False)
class Worker:
    """A Ray actor, seen from here."""

    name: str
    actor: Any
    place: str = "a node that never answered"
    envs: set[int] = field(default_factory=set)
    forgotten: deque[int] = field(default_factory=deque)  # to be told with the next call: nothing may be sent from a finaliser
    heard: float = 0.0
    back: float = 0.0  # when it may be asked again, if it did not answer
    pause: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} on {self.place}"

    def answers(self, seconds: float = PING) -> bool:
        """Asks. One that does not answer is left alone for a while, longer each time."""
        try:
            self.place = ray.get(self.actor.where.remote(), timeout=seconds)
        except RayError:
            self.pause = min(2 * self.pause or 1.0, LONGEST_PAUSE)
            self.back = time.monotonic() + self.pause
            return False
        self.heard, self.pause, self.back = time.monotonic(), 0.0, 0.0
        return True

    def send(self, number: int, name: str, *arguments: Any, **named: Any) -> Any:
        gone: list[int] = []
        with suppress(IndexError):
            while True:
                gone.append(self.forgotten.popleft())
        return self.actor.call.remote(number, gone, name, arguments, named)

    def ask(self, seconds: float, number: int, name: str, *arguments: Any, **named: Any) -> Any:
        """Raises what the environment raised, and `InfrastructureError` where the worker is lost or silent.

        One that has answered nobody in all of ``seconds`` is started anew.
        """
        asked = time.monotonic()
        try:
            answer, error = ray.get(self.send(number, name, *arguments, **named), timeout=seconds)
        except GetTimeoutError:
            if self.heard < asked:
                self.heard = time.monotonic()
                ray.kill(self.actor, no_restart=False)
            raise InfrastructureError(f"{self} did not answer {name}() within {seconds:g} s") from None
        except RayError as lost:
            raise InfrastructureError(f"{self} was lost in {name}(): {str(lost).splitlines()[-1][:300]}") from None
        self.heard = time.monotonic()
        if isinstance(error, InfrastructureError):
            error.args = (f"{self}: {error}",)
        if error is not None:
            raise error
        return answer


class RayWorkers:
    """Makes environments that live in ``number`` Ray actors of ``cpus`` each, spread over a cluster; or in as many as have room.

    ``address`` is Ray's: "auto", "local", or that of a head. ``nodes``: those that `connect` chose, where it was asked before. A worker
    that is lost takes the episodes along that stand in it, each of which ends without a verdict; Ray starts it anew, on another node where
    its own is gone, and meanwhile the others go on. A call that takes longer than ``patience`` seconds is such a loss too. All machines
    have the same agentgym, environments and data.

    Raises `AgentGymError` where there is no cluster, it is too small, or a worker cannot make the environment.
    """

    def __init__(
        self,
        make_env: Callable[[], AgentEnv],
        address: str = "auto",
        number: int | None = None,
        cpus: float = 1.0,
        patience: float = 600.0,
        nodes: Sequence[str] | None = None,
    ) -> None:
        share = Share("workers", number, cpus)
        nodes = connect(address, share)[0] if nodes is None else nodes
        self.patience = patience
        self.numbers = count()
        self._lock = threading.Lock()
        pickled = _pickled(make_env, "what makes the environment")
        actors = [actor_on(node, Host, share, max_concurrency=CALLS_AT_ONCE).remote(pickled) for node in nodes]
        self.workers = [Worker(f"worker {i}", actor) for i, actor in enumerate(actors, 1)]
        try:
            self.attributes = self._start()
        except BaseException:
            self.close()
            raise

    def __call__(self) -> AgentEnv:
        return OnRay(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, with their environments."""
        leaving = [worker.actor.leave.remote() for worker in self.workers]
        ray.wait(leaving, num_returns=len(leaving), timeout=PING)
        for worker in self.workers:
            ray.kill(worker.actor)

    def place(self, number: int) -> Worker:
        """A worker that answers, one with the fewest environments, which gets one of that number."""
        until = time.monotonic() + self.patience
        while True:
            with self._lock:
                now = time.monotonic()
                worker = min(self.workers, key=lambda worker: (worker.back > now, len(worker.envs)))
                away = worker.back > now  # then so are all
                worker.envs.add(number)
            if not away and worker.answers():
                return worker
            worker.envs.discard(number)
            if now > until:
                raise InfrastructureError(f"none of {len(self.workers)} Ray workers answered for {self.patience:g} s")
            if away:
                time.sleep(0.2)

    def _start(self) -> dict[str, Any]:
        """Make an environment in each, so that a machine without the code or the data is found now; what they have in common."""
        started = [worker.actor.where.remote() for worker in self.workers]
        _, missing = ray.wait(started, num_returns=len(started), timeout=START)
        if missing:
            free, present = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
            raise AgentGymError(
                f"{len(missing)} of {len(started)} Ray workers did not start in {START:g} s, with {free:g} of the cluster's {present:g} "
                "CPUs free: end other jobs, or ask for fewer workers"
            )
        found: dict[str, Any] = {}
        for worker in self.workers:
            try:
                worker.answers()
                found = worker.ask(START, number := next(self.numbers), "attributes")
                worker.send(number, "close")
            except Exception as error:
                where = "" if isinstance(error, InfrastructureError) else f"{worker}: "  # else it says so itself
                raise AgentGymError(f"the environment cannot be made: {where}{error}") from error
        return found


class OnRay(AgentEnv):
    """An environment that lives in a worker: what it is asked is asked there. Each episode may be in another worker than the last."""

    blocking = True

    def __init__(self, workers: RayWorkers) -> None:
        super().__init__()
        self._workers = workers
        self._worker: Worker | None = None
        self._number = -1  # another in each worker
        self._key: str | None = None
        vars(self).update(workers.attributes)

    def tasks(self, split: str) -> Sequence[Task]:
        return self._ask("tasks", split)  # type: ignore[no-any-return]

    def gold(self, task: Task) -> Sequence[str] | None:
        return self._ask("gold", task)  # type: ignore[no-any-return]

    @property
    def tool_specs(self) -> list[dict[str, Any]]:
        return self._ask("tool_specs")  # type: ignore[no-any-return]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        answer, self._key = self._ask("reset", seed=seed, options=options)
        return answer  # type: ignore[no-any-return]

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, Info]:
        answer, self._key = self._ask("step", action)
        return answer  # type: ignore[no-any-return]

    def stop(self, reason: str) -> tuple[float, dict[str, float]]:
        return self._ask("stop", reason)  # type: ignore[no-any-return]

    def key(self) -> str | None:
        return self._key

    def snapshot(self) -> Snapshot:
        """Its state is bytes: it waits here, where no lost machine takes it along."""
        return self._ask("snapshot")  # type: ignore[no-any-return]

    def restore(self, snapshot: Snapshot) -> None:
        _, self._key = self._ask("restore", snapshot)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.send(self._number, "close")  # nobody waits: the worker may be gone
            self._leave()

    def __del__(self) -> None:
        if "_worker" in vars(self):
            self._leave()

    def _ask(self, name: str, *arguments: Any, **named: Any) -> Any:
        if name in BEGINNINGS and (self._worker is None or not self._worker.answers()):
            self._leave()
            self._number = next(self._workers.numbers)
            self._worker = self._workers.place(self._number)
        if self._worker is None:
            raise AgentGymError(f"{name}() of an environment on Ray that has no episode: call reset() first")
        try:
            return self._worker.ask(self._workers.patience, self._number, name, *arguments, **named)
        except InfrastructureError:
            self._leave()  # the episode is over, and its place is free
            raise

    def _leave(self) -> None:
        if self._worker is not None:
            self._worker.envs.discard(self._number)
            self._worker.forgotten.append(self._number)
            self._worker = None
