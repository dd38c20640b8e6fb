# mypy: ignore-errors
"""The worker's side: an update is the whole model, from files or from the learner's process. What is refused leaves all as it was."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from socket import create_connection

import torch
import torch.distributed as dist
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

HEAD = "lm_head.weight"


@dataclass
class Announced(WeightTransferInitInfo):
    """What will come by a process group: name, type and shape of each weight, in the order in which they come."""

    weights: list[tuple[str, str, list[int]]] = field(default_factory=list)


@dataclass
class Where(WeightTransferUpdateInfo):
    """Files, or the learner's store, at which a process group of ``world`` meets; the learner has rank 0."""

    paths: list[str] = field(default_factory=list)
    host: str = ""
    port: int = 0
    world: int = 0
    patience: float = 0.0  # seconds


class Engine(WeightTransferEngine[Announced, Where]):
    """Everything happens in ``receive_weights``: between start and finish the model is whole. A line that breaks leaves a mixture."""

    init_info_cls = Announced
    update_info_cls = Where

    def __init__(self, *about) -> None:
        super().__init__(*about)
        self._announced = Announced()
        with ExitStack() as stack:  # now: a later reload from another folder changes where the configuration points
            paths = sorted(Path(self.model_config.model).glob("*.safetensors"))
            self._known = shapes([stack.enter_context(safe_open(path, "pt", device="cpu")) for path in paths])

    def init_transfer_engine(self, init_info: Announced) -> None:
        if init_info.weights:
            self._refuse_others({name: tuple(shape) for name, _, shape in init_info.weights})
        self._announced = init_info

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():  # the base class asks for it on CPU too, and fails
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Where) -> None:
        with ExitStack() as stack:
            if update_info.paths:
                files = [stack.enter_context(safe_open(path, "pt", device="cpu")) for path in update_info.paths]
                self._refuse_others(shapes(files))
                weights = ((name, file.get_tensor(name)) for file in files for name in file.keys())  # noqa: SIM118
            else:
                weights = self._heard(self._join(update_info))
            self._load(weights)

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(weights)
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
            self._pack_head_again()

    def _join(self, where: Where) -> dist.ProcessGroup:
        parallel, patience = self.parallel_config, timedelta(seconds=where.patience)
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = dist.TCPStore(where.host, where.port, timeout=patience, wait_for_workers=False)
        with create_connection((where.host, where.port)) as probe:  # by the way that leads there, and on no other network
            mine = probe.getsockname()[0]
        store.set(f"rank {rank}", "is here")
        options = dist.ProcessGroupGloo._Options()
        options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname=mine)], patience
        return dist.ProcessGroupGloo(store, rank, where.world, options)

    def _heard(self, group: dist.ProcessGroup) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype, shape in self._announced.weights:
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")  # vLLM copies it to where it serves
            group.broadcast(weight, 0).wait()
            yield name, weight

    def _refuse_others(self, brought: dict[str, tuple[int, ...]]) -> None:
        """A part of the model would leave the rest of what vLLM fuses with it undefined."""
        known = self._known
        if not known:
            return  # from the hub: vLLM's own errors must do
        tied = self.model_config.hf_config.tie_word_embeddings
        differ = {name for name in known.keys() | brought.keys() if known.get(name) != brought.get(name) and not (tied and name == HEAD)}
        if differ:
            first = min(differ)
            shown = f"{first} has the shape {brought.get(first)}, and {known.get(first)} in the served model"
            raise ValueError(f"{len(differ)} weights differ: {shown}")

    def _pack_head_again(self) -> None:
        """On CPU a head that is tied to the embedding keeps a packed copy, which a reload does not reach."""
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


def shapes(files: list) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for file in files for name in file.keys()}  # noqa: SIM118
