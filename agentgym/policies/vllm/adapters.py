"""The learner's adapter alone on running servers, which keep the weights that they were started with."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentgym.errors import AgentGymError, InfrastructureError
from agentgym.policies.adapters import ADAPTER
from agentgym.policies.sync import TOLERANCE, Teaches
from agentgym.policies.vllm.client import VllmPolicy
from agentgym.policies.vllm.export import served_adapter
from agentgym.policies.vllm.replica import Anything, Replica
from agentgym.policies.vllm.sync import FileWeights, Phase

NEEDED = {  # by what vLLM says
    "LoRA is not enabled": "start it with 'agentgym serve-policy --lora RANK'",
    "max_lora_rank": "start it with 'agentgym serve-policy --lora RANK', and a rank as large as the learner's",
    "expected target modules": "serve the policy that the learner trains",
    "No adapter found": "give FileAdapters a folder that it shares",
}


class FileAdapters(FileWeights):
    """The learner trains the adapters of ``model``; a push brings them to servers that have its other weights from their start.

    Each push is an adapter with a name of its own, which every request from then on asks for. Nothing stands still: what is under
    way ends with the adapter that it began with, and that one leaves the servers with the first push after. (vLLM can also replace
    an adapter under its name; what is under way would then be drawn from a mixture of both, and what is cached may be of the old.)

    The servers need ``agentgym serve-policy --lora``. The rest is as in `FileWeights`: the canary hears the adapter by its name, so
    a server that answers with its own weights alone fails the push.
    """

    def __init__(self, policy: VllmPolicy, model: Any, *, folder: Path | None = None, tolerance: float = TOLERANCE) -> None:
        if ADAPTER not in getattr(model, "peft_config", ()):
            raise AgentGymError("FileAdapters brings adapters alone, and the model has none: set learner.lora, or use FileWeights")
        if more := [name for name, weight in model.named_parameters() if weight.requires_grad and ".lora_" not in name]:
            raise AgentGymError(f"FileAdapters brings adapters alone, and {more[0]} trains too: use FileWeights")
        super().__init__(policy, model, folder=folder, tolerance=tolerance)
        policy.adapters = True
        self._old: list[str] = []
        self._gone: list[str] = []  # from the servers, but not yet from the folder

    async def push(self, learner: Teaches) -> None:
        if self.policy.pushed is not None:
            self._old.append(self.policy.pushed)
        await super().push(learner)
        await self._retire()

    @property
    def _file(self) -> Path:
        return self.folder / self._name / "adapter_model.safetensors"

    @property
    def _asked(self) -> str:
        return self._name

    def _named(self, version: int) -> str:
        """vLLM's prefix cache goes by names: what another run, or this one before, pushed at this step must not share it."""
        return f"step-{version}-{secrets.token_hex(4)}"

    def _taken(self, model: Any) -> dict[str, Any]:
        return served_adapter(model)

    def _keep(self, weights: dict[str, Any]) -> None:
        super()._keep(weights)
        self.model.peft_config[ADAPTER].save_pretrained(self._file.parent)

    def _phases(self) -> Sequence[Phase]:
        return self._load, self._go_on, self._listen

    async def _load(self, replica: Replica) -> None:
        body = {"lora_name": self._name, "lora_path": str(self._file.parent)}
        try:
            await replica.post("/v1/load_lora_adapter", Anything, body)
        except InfrastructureError as error:
            if "already been loaded" in str(error):
                return
            for said, needed in NEEDED.items():
                if said in str(error):
                    raise AgentGymError(f"{replica.url} takes no such adapter ({error}): {needed}") from error
            raise

    async def _retire(self) -> None:
        """A file stays for one push more: vLLM may have to read it again for a request that it has not yet found to be given up."""
        for name in self._gone:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._gone = [name for name in self._old if not self.policy.under_way[name]]
        self._old = [name for name in self._old if name not in self._gone]
        for name in self._gone:
            del self.policy.under_way[name]
            await asyncio.gather(*(self._unload(replica, name) for replica in self.policy.fleet().up))

    async def _unload(self, replica: Replica, name: str) -> None:
        with suppress(InfrastructureError):  # it was restarted, or is about to be lost
            await replica.quick("/v1/unload_lora_adapter", Anything, {"lora_name": name})
