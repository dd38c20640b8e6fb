# mypy: ignore-errors
"""The worker's side: an update is the whole model in files, and replaces all of it or nothing."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

HEAD = "lm_head.weight"


@dataclass
class Nothing(WeightTransferInitInfo):
    pass


@dataclass
class Files(WeightTransferUpdateInfo):
    paths: list[str]


class FilesEngine(WeightTransferEngine[Nothing, Files]):
    """Everything happens in ``receive_weights``: between start and finish, and after a refusal, the model is whole."""

    init_info_cls = Nothing
    update_info_cls = Files

    def __init__(self, *about) -> None:
        super().__init__(*about)
        with ExitStack() as stack:  # now: a later reload from another folder changes where the configuration points
            paths = sorted(Path(self.model_config.model).glob("*.safetensors"))
            self._known = shapes([stack.enter_context(safe_open(path, "pt", device="cpu")) for path in paths])

    def init_transfer_engine(self, init_info: Nothing) -> None:
        pass

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

    def receive_weights(self, update_info: Files) -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt", device="cpu")) for path in update_info.paths]
            self._refuse_others(shapes(files))
            initialize_layerwise_reload(self.model)
            try:
                self.model.load_weights((name, file.get_tensor(name)) for file in files for name in file.keys())  # noqa: SIM118
            finally:
                finalize_layerwise_reload(self.model, self.model_config)
                self._pack_head_again()

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
