"""A policy as a folder that vLLM serves: its weights under their checkpoint's names, its tokenizer, its configuration."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from agentgym.chat import Chat
from agentgym.errors import AgentGymError
from agentgym.policies import tiny
from agentgym.policies.adapters import ADAPTER, merged

HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # the head sizes of vLLM's attention on CPU


def servable(model: str, folder: Path) -> str:
    """What vLLM is to be told of a policy: a tiny one is written anew into ``folder``, any other folder or name is served as it is."""
    saved = tiny.folder_of(model)
    if saved is None:
        return model
    save_served(*tiny.load(saved), folder)
    return str(folder)


def save_served(model: Any, chat: Chat, folder: Path) -> None:
    """Write ``model`` and the tokenizer of ``chat`` as a folder for ``agentgym serve-policy``.

    Raises `AgentGymError` for heads of a size that vLLM lacks and that cannot be widened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.head_dim = served_head(config)
    config.tie_word_embeddings = False  # vLLM on CPU keeps a packed copy of a tied embedding, which no update reaches
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    write_weights(served_weights(model), folder / "model.safetensors")
    _save_tokenizer(chat.tokenizer, folder)


def write_weights(weights: dict[str, Any], path: Path) -> None:
    """The file that vLLM reads, complete or not there at all."""
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({name: weight.cpu() for name, weight in weights.items()}, partial, metadata={"format": "pt"})
    partial.replace(path)


def served_weights(model: Any) -> dict[str, Any]:
    """The weights by their checkpoint's names, with heads as wide as vLLM has them. A tied head is among them too."""
    config = model.config.get_text_config()
    old, new = _head(config), served_head(config)
    weights = {name: weight.detach() for name, weight in merged(model).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = model.get_output_embeddings().weight.detach().clone()
    if new != old:
        weights = {name: _widened(name, weight, old, new) for name, weight in weights.items()}
    return {name: weight.contiguous() for name, weight in weights.items()}


def served_adapter(model: Any) -> dict[str, Any]:
    """The factors that `agentgym.policies.adapters.adapt` added, by the names of peft's files, with heads as wide as vLLM has them."""
    config = model.config.get_text_config()
    old, new = _head(config), served_head(config)
    weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    if new != old:
        weights = {name: _widened_factor(name, weight, old, new) for name, weight in weights.items()}
    return {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": weight.contiguous() for name, weight in weights.items()}


def served_head(config: Any) -> int:
    """The size of a head as vLLM serves it: as it is, or the least multiple of it that vLLM has."""
    size = _head(config)
    if size in HEADS:
        return size
    wider = [width for width in HEADS if width % size == 0]
    if config.model_type != "qwen3" or getattr(config, "attention_bias", False) or not wider:
        sizes = ", ".join(map(str, HEADS))
        raise AgentGymError(f"a {config.model_type} with heads of size {size} cannot be served on CPU: vLLM has {sizes}")
    return wider[0]


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _widened(name: str, weight: Any, old: int, new: int) -> Any:
    """The same function with wider heads: new places are zero, and old ones lie where they turn at their old frequencies.

    A norm over ``new`` places, of which the others are zero, divides by sqrt(old / new) too much, which a larger projection makes
    good; attention over wider heads divides by sqrt(new / old) more, which the queries' norm makes good.
    """
    part = name.split(".")[-2]
    grown = math.sqrt(new / old)
    match part:
        case "q_proj" | "k_proj":
            return _spread(weight, old, new, rotary=True) * grown
        case "k_norm":
            return _spread(weight, old, new, rotary=True) / grown
        case "q_norm":
            return _spread(weight, old, new, rotary=True)
        case "v_proj":
            return _spread(weight, old, new, rotary=False)
        case "o_proj":
            return _spread(weight.T, old, new, rotary=False).T
        case _:
            return weight


def _widened_factor(name: str, weight: Any, old: int, new: int) -> Any:
    """What widens the product B A widens its factor at the heads: B, and of the projection from the heads A."""
    layer, _, factor = name.partition(".lora_")
    at_heads = "A" if layer.endswith("o_proj") else "B"
    return _widened(f"{layer}.weight", weight, old, new) if factor.startswith(at_heads) else weight


def _spread(weight: Any, old: int, new: int, *, rotary: bool) -> Any:
    """Rows of each head, shape (heads * old, …) to (heads * new, …)."""
    places = slice(0, new, new // old) if rotary else slice(0, old)
    heads = weight.reshape(-1, old, *weight.shape[1:])
    wide = heads.new_zeros(heads.shape[0], new, *heads.shape[2:])
    wide[:, places] = heads
    return wide.reshape(-1, *weight.shape[1:])


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    if not hasattr(tokenizer, "apply_chat_template"):  # the tiny policy's is no Hugging Face one, and vLLM reads only those
        from transformers import PreTrainedTokenizerFast

        end = tokenizer.decode([tokenizer.eos_token_id])
        made: Any = PreTrainedTokenizerFast
        made(tokenizer_file=str(folder / "tokenizer.json"), eos_token=end).save_pretrained(folder)
