"""How long new weights take to a running vLLM server on this machine, from the learner's step to the canary, by the way they come.

    python benchmarks/pushes.py --python .vllm/bin/python [--json] [--quick]

The peer is vLLM's own: the server reads a checkpoint's folder again. Two models, the shipped tiny one and a Qwen3 of 46M parameters,
in float32; between pushes every weight changes, or, where adapters alone are brought, every adapter of rank 8. Two minutes.
"""

from __future__ import annotations

import asyncio
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from commandline import parser
from transformers import Qwen3ForCausalLM

from agentgym.chat import Chat
from agentgym.policies import tiny
from agentgym.policies.adapters import adapt
from agentgym.policies.vllm import VllmPolicy
from agentgym.policies.vllm.adapters import FileAdapters
from agentgym.policies.vllm.broadcast import BroadcastWeights
from agentgym.policies.vllm.export import save_served
from agentgym.policies.vllm.server import VllmServer
from agentgym.policies.vllm.sync import FileWeights, PushedWeights, by_reload
from agentgym.trainers.learner import PackScorer

RANK, PUSHES = 8, 12
WAYS: dict[str, Callable[..., PushedWeights]] = {
    "adapters alone": FileAdapters,  # first: they are added to the weights that the server was started with
    "reload": partial(FileWeights, route=by_reload),
    "file": FileWeights,
    "broadcast": BroadcastWeights,
}
PEER = "reload"


class Learner:
    """Its steps are noise."""

    def __init__(self, model: Any) -> None:
        self.model, self.version = model, 0
        self.logprobs = PackScorer(model).logprobs

    def weights(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def step(self) -> None:
        self.version += 1
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.requires_grad:
                    weight.add_(1e-3 * torch.randn_like(weight))


def larger(small: Any) -> Any:
    config = copy.deepcopy(small.config)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.head_dim = 768, 6, 2304, 96
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


async def pushed(sync: PushedWeights, pushes: int) -> list[float]:
    learner, taken = Learner(sync.model), []
    for _ in range(pushes + 1):
        learner.step()
        began = time.perf_counter()
        await sync.push(learner)
        taken.append(time.perf_counter() - began)
    return taken[1:]  # the first looks at the server


def measure(name: str, model: Any, chat: Chat, python: str, pushes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"model": name, "parameters": sum(weight.numel() for weight in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        save_served(model, chat, Path(folder))
        with VllmServer(folder, python=python, lora=RANK, environment={"HF_HUB_OFFLINE": "1"}, log=Path(folder) / "vllm.log") as server:
            for way, made in WAYS.items():
                trained = copy.deepcopy(model)
                if made is FileAdapters:
                    adapt(trained, RANK, RANK)
                seconds = asyncio.run(pushed(made(VllmPolicy(server.url, chat, patience=120.0), trained), pushes))
                found[way] = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--python", required=True, help="that of an environment with vLLM and our plugin")
    chosen = options.parse_args()
    model, chat = tiny.load()
    models = {"tiny": model} if chosen.quick else {"tiny": model, "larger": larger(model)}
    results = [measure(name, model, chat, chosen.python, 1 if chosen.quick else PUSHES) for name, model in models.items()]
    if chosen.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"{result['model']}, {result['parameters'] / 1e6:.1f}M parameters; seconds, median (least to most), and in {PEER}s")
        for way in WAYS:
            taken = result[way]
            ratio = taken["median"] / result[PEER]["median"]
            print(f"  {way:15} {taken['median']:6.3f} ({taken['least']:.3f} to {taken['most']:.3f}) {ratio:6.2f}x")


if __name__ == "__main__":
    main()
