"""Low-rank adapters (LoRA, arXiv 2106.09685) in a model, through ``peft``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from agentgym.errors import MissingExtra

ADAPTER = "default"  # peft's name for the only adapter of a model


def adapt(model: Any, rank: int, alpha: int, seed: int = 0) -> None:
    """Add adapters of ``rank``, scaled by ``alpha / rank``, to every linear layer but the output; they alone train from here on.

    They begin as 0. The model stays the object that it is, and answers with them.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("peft", "lora") from error
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"), model, ADAPTER)


def merged(model: Any) -> dict[str, Tensor]:
    """The model's state with the adapters added to its weights, under the names that it has without them; others as they are."""
    state = model.state_dict()
    whole = {name.replace(".base_layer.", "."): weight for name, weight in state.items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weight = whole[f"{name}.weight"]
            delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            whole[f"{name}.weight"] = (weight + delta).detach().to(weight.dtype)  # added in the adapters' precision
    return whole
