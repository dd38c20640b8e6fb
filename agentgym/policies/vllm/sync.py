"""The learner's weights on running servers, with proof that they arrived."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agentgym.errors import AgentGymError
from agentgym.policies.sync import HALF_TOLERANCE, TOLERANCE, Canary, Teaches
from agentgym.policies.vllm.client import VllmPolicy, version_number
from agentgym.policies.vllm.export import served_weights, write_weights
from agentgym.policies.vllm.replica import Anything, Lost, Replica
from agentgym.policies.vllm.server import BACKEND

SHARED_MEMORY = Path("/dev/shm")
Route = Callable[[Replica, Path, str], Awaitable[None]]
Phase = Callable[[Replica], Awaitable[None]]
REFUSALS = {  # by what vLLM or our plugin says
    "not configured": f"takes no weights: start it with --weight-transfer-config='{BACKEND}'",
    "weights differ": "serves another architecture",
    "No such file": "does not see the weights: give FileWeights a folder that it shares",
}


class PushedWeights:
    """The learner trains ``model``; a push brings its weights to every server while its requests stand still.

    All servers are paused before any is updated, and go on only with the new weights: requests in flight keep their tokens, read
    them again, and each token has its version. A server that is lost is not waited for: as soon as it is back, it gets what was
    pushed last, and only then is it asked again. A push ends with a canary: each server must give a fixed prompt the learner's
    log-probabilities, within ``tolerance`` nats, which is for float32; a server in bfloat16 needs about 0.1.

    The weights that were pushed last are in every checkpoint, so that a run that is resumed brings them to whatever servers there are.
    How they come there is for who extends it to say: `FileWeights`, `agentgym.policies.vllm.broadcast.BroadcastWeights`.
    """

    def __init__(self, policy: VllmPolicy, model: Any, *, tolerance: float = TOLERANCE) -> None:
        self.policy, self.model, self.tolerance = policy, model, tolerance
        self._copy: Any = None  # of the model, where the learner leaves that in parts
        self._name = ""  # of what is kept, for the servers
        self._canary: Canary | None = None
        self._gap = 0.0
        self._half = False
        policy.rows = model.config.get_text_config().vocab_size
        policy.bring = self._bring_one

    def copy_model(self) -> None:
        """For a learner that will leave ``model`` in parts (FSDP): what is pushed is taken from a copy in this machine's memory."""
        self._copy = copy.deepcopy(self.model).cpu()

    def whole(self, learner: Teaches) -> Any:
        """The model, with the learner's weights."""
        if self._copy is None:
            return self.model
        self._copy.load_state_dict(learner.weights(), strict=False, assign=True)
        return self._copy

    async def push(self, learner: Teaches) -> None:
        """Raises `AgentGymError` where a server answers with other weights, and `InfrastructureError` where none can be brought any."""
        first = self.policy.pushed is None
        fleet = await self.policy.ready() if first else self.policy.fleet()
        async with fleet.pushing:  # a server that comes back meanwhile gets these weights, not the last
            self._name = self._named(learner.version)
            await asyncio.to_thread(lambda: self._keep(self._taken(self.whole(learner))))
            self._canary, self._half = Canary.of(self.policy.chat, learner), getattr(learner, "half", False)
            lost = await self._bring(fleet.up)
            self.policy.pushed = self._name
            for replica, error in lost.items():
                fleet.lose(replica, str(error))
        await fleet.wait(len(fleet.replicas) if first else 1, self.policy.patience)

    def state_dict(self) -> dict[str, Any]:
        if self.policy.pushed is None or self._canary is None:
            return {}
        return {
            "version": version_number(self.policy.pushed),
            "weights": self._kept(),
            "canary": self._canary.learnt.tolist(),
            "half": self._half,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        self._name = self._named(state["version"])
        self._keep(state["weights"])
        ids = Canary.prompt(self.policy.chat)
        self._canary = Canary(ids, np.array(state["canary"], dtype=np.float32), state["version"])
        self.policy.pushed, self._half = self._name, state["half"]
        self.policy.forget()

    def metrics(self) -> dict[str, float]:
        """``canary_gap``: the largest difference at the last push, in nats; and the policy's."""
        version = version_number(self.policy.pushed or "")
        return {"actor_version": float(version), "canary_gap": self._gap, **self.policy.metrics()}

    @property
    def _asked(self) -> str:
        """The name by which a request asks for what was pushed."""
        return self.policy.model

    def _named(self, version: int) -> str:
        return f"step-{version}"

    def _taken(self, model: Any) -> dict[str, Any]:
        return served_weights(model)

    def _keep(self, weights: dict[str, Any]) -> None:
        """For servers now and later. Called in a thread."""
        raise NotImplementedError

    def _kept(self) -> dict[str, Any]:
        raise NotImplementedError

    async def _send(self, replica: Replica) -> None:
        """What is kept, to a server that stands still."""
        raise NotImplementedError

    def _phases(self) -> Sequence[Phase]:
        return self._pause, self._send, self._confirm, self._go_on, self._listen

    async def _bring_one(self, replica: Replica) -> None:
        for error in (await self._bring([replica])).values():
            raise error

    async def _bring(self, replicas: Sequence[Replica]) -> dict[Replica, Lost]:
        """Each phase on all servers before the next on any. Gives back who was lost on the way."""
        lost: dict[Replica, Lost] = {}
        for phase in self._phases():
            left = [replica for replica in replicas if replica not in lost]
            for replica, found in zip(left, await asyncio.gather(*map(phase, left), return_exceptions=True), strict=True):
                if isinstance(found, Lost):
                    lost[replica] = found
                elif isinstance(found, BaseException):
                    raise found
        return lost

    async def _pause(self, replica: Replica) -> None:
        await replica.quick("/pause", Anything, params={"mode": "keep"})

    async def _confirm(self, replica: Replica) -> None:
        if (version := await replica.weight_version()) != self._name:
            raise Lost(f"{replica.url} has weights {version!r} after a push of {self._name!r}")

    async def _go_on(self, replica: Replica) -> None:
        await replica.quick("/resume", Anything)

    async def _listen(self, replica: Replica) -> None:
        assert self._canary is not None
        answered = (await self.policy.score_at(replica, self._canary.ids, model=self._asked)).logprobs
        tolerance = max(self.tolerance, HALF_TOLERANCE) if self._half else self.tolerance
        self._gap = self._canary.hear(answered, tolerance, replica.url)
        replica.proved = self._name


class FileWeights(PushedWeights):
    """Weights by a file in ``folder``, which every server can read: one of shared memory, unless it is given.

    ``route`` is `by_transfer`, which needs the plugin in vLLM's environment, or `by_reload`.
    """

    def __init__(
        self, policy: VllmPolicy, model: Any, *, folder: Path | None = None, tolerance: float = TOLERANCE, route: Route | None = None
    ) -> None:
        super().__init__(policy, model, tolerance=tolerance)
        self.route = route or by_transfer
        self._temporary = tempfile.TemporaryDirectory(prefix="agentgym-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        self.folder = folder or Path(self._temporary.name)

    @property
    def _file(self) -> Path:
        return self.folder / "model.safetensors"

    def _keep(self, weights: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(weights, self._file)

    def _kept(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self._file)

    async def _send(self, replica: Replica) -> None:
        await self.route(replica, self.folder, self._name)


async def by_transfer(replica: Replica, folder: Path, version: str) -> None:
    """vLLM's weight-transfer protocol, with the backend of our plugin (``agentgym serve-policy`` says how to install it).

    The file is checked before anything of the model is touched: what is refused leaves the old weights whole.
    """
    with refusals(replica):
        await replica.quick("/init_weight_transfer_engine", Anything, {"init_info": {}})
        await replica.quick("/start_weight_update", Anything)
        await replica.post("/update_weights", Anything, {"update_info": {"paths": [str(folder / "model.safetensors")]}})
    await replica.post("/finish_weight_update", Anything, {"weight_version": version})


async def by_reload(replica: Replica, folder: Path, version: str) -> None:
    """For servers without the plugin. A file that does not fit breaks the server, and tied embeddings go stale on CPU."""
    await replica.post("/collective_rpc", Anything, {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
    await replica.quick("/update_weight_version", Anything, {"new_version": version})


@contextmanager
def refusals(replica: Replica) -> Iterator[None]:
    """Raises `AgentGymError` where another try would end in the same way, with what to do."""
    try:
        yield
    except Lost as error:
        for said, means in REFUSALS.items():
            if said in str(error):
                raise AgentGymError(f"{replica.url} {means} ({error})") from error
        raise
