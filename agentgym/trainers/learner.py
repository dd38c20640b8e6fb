"""The learner: packed forests in, gradients and optimiser steps out, for any unpatched Hugging Face causal model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentgym.errors import AgentGymError, MissingExtra
from agentgym.pack import Bools, Packed
from agentgym.trainers.attention import keep_layer_inputs, seeing
from agentgym.trainers.seams import Metrics, Objective, State

LearningRate = Callable[[int], float]
HEADS = frozenset({"logprobs", "entropy", "at", "paths", "gradient_norms"})


class PackedHeads:
    """The model's view of a pack, at the tokens that ``wanted`` marks."""

    def __init__(self, model: Any, packed: Packed, wanted: np.ndarray[Any, Any]) -> None:
        self._model = model
        device = next(model.parameters()).device
        self._tokens = torch.from_numpy(np.flatnonzero(wanted & (packed.parent >= 0))).to(device)
        self._targets = torch.from_numpy(packed.token).to(device)[self._tokens]
        self._size = len(packed)
        parents = torch.from_numpy(packed.parent).to(device)[self._tokens]
        places, rows = torch.unique(parents, return_inverse=True)
        with seeing(model, packed) as attention:
            out = model(
                input_ids=torch.from_numpy(packed.token).to(device)[None],
                position_ids=torch.from_numpy(packed.depth).to(device)[None],
                use_cache=False,
                logits_to_keep=places,
                **attention,
            )
        self._rows = rows
        self._read(out.logits[0] if out.logits.dtype == torch.float64 else out.logits[0].float())

    def _read(self, logits: Tensor) -> None:
        """Keep what is needed of the model's output at the predicting places, shape (places, outputs)."""
        self._log_softmax = logits.log_softmax(-1)

    @cached_property
    def logprobs(self) -> Tensor:
        chosen = self._log_softmax[self._rows, self._targets]
        return chosen.new_zeros(self._size).index_put((self._tokens,), chosen)

    @cached_property
    def entropy(self) -> Tensor:
        entropy = -(self._log_softmax.exp() * self._log_softmax).sum(-1)[self._rows]
        return entropy.new_zeros(self._size).index_put((self._tokens,), entropy)

    def at(self, ids: Tensor) -> Tensor:
        chosen = self._log_softmax[self._rows].gather(-1, ids[self._tokens])
        return chosen.new_zeros(ids.shape).index_put((self._tokens,), chosen)

    def topk(self, k: int | None) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens in place of each, likeliest first, and their log-probabilities, shapes (T, k); all where k is None."""
        rows = self._log_softmax.shape[-1]
        logprobs, ids = self._log_softmax.topk(rows if k is None else min(k, rows))
        size = (self._size, ids.shape[-1])
        place = (self._tokens,)
        return ids.new_zeros(size).index_put(place, ids[self._rows]), logprobs.new_zeros(size).index_put(place, logprobs[self._rows])

    def gradient_norms(self, values: Tensor) -> Tensor:
        weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        norms = values.detach().new_zeros(len(values))
        for place, value in enumerate(values):
            gradient = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            norms[place] = sum(part.square().sum() for part in gradient if part is not None)
        return norms


class TorchLearner:
    """AdamW on packed forests, through ``accelerate``.

    ``rate`` is the learning rate, or a function of the optimiser step (from 0). Gradients add up over ``accumulate``
    until ``step`` clips them to the norm ``max_grad_norm`` and applies them. A model for which a packed tree would not
    equal its paths is refused: dropout, layers without full attention, attention kernels without a free mask.

    Weights that do not require a gradient stay as they are, and out of the checkpoints. Those that do become float32 where they
    were of 16 bits: an update of one part in a thousand would be rounded away. The ``accelerator``'s mixed precision says what
    the model multiplies in. With ``checkpointing``, each layer keeps its inputs alone and is computed again in the backward pass.
    """

    heads = HEADS
    view = PackedHeads

    def __init__(
        self,
        model: Any,
        rate: float | LearningRate,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        checkpointing: bool = False,
        accelerator: Any = None,
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingExtra("accelerate", "train") from error
        self._window = _sight(model, model.training or checkpointing)
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.checkpointing = checkpointing
        if checkpointing:
            keep_layer_inputs(model)
        widen(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() > 1]
        vectors = [p for p in trained if p.dim() <= 1]
        self._rate: LearningRate = rate if callable(rate) else partial(_constant, rate)
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self._rate(0), betas=betas, fused=True)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # placed and cast, but in no wrapper
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.max_grad_norm = max_grad_norm
        self.version = 0

    @property
    def half(self) -> bool:
        """Whether it multiplies in 16 bits, so that its log-probabilities are exact to hundredths of a nat only."""
        return self.accelerator.mixed_precision != "no" or any(p.dtype.itemsize == 2 for p in self.model.parameters())

    def logprobs(self, packed: Packed) -> Tensor:
        """Log-probability of every token given its own path, shape (T,), without gradient; 0 at roots."""
        with torch.no_grad():
            return self._heads(packed, np.ones(len(packed), dtype=bool)).logprobs

    def topk(self, packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
        """As a `PackScorer`'s."""
        with torch.no_grad():
            return self._heads(packed, np.ones(len(packed), dtype=bool)).topk(k)

    def accumulate(self, packed: Packed, objective: Objective, factor: float = 1.0) -> Metrics:
        """Add ``factor`` times the gradient of the objective on one pack."""
        if unknown := objective.needs - self.heads - packed.streams.keys():
            raise AgentGymError(
                f"{type(objective).__name__} needs {sorted(unknown)}; this learner gives {sorted(self.heads)}, "
                f"and the pack has the streams {sorted(packed.streams)}"
            )
        weight = packed.streams.get("weight")
        if weight is None:
            raise AgentGymError("the pack has no stream 'weight': apply a divisor to the trees before packing")
        if not weight.any():
            return {}
        wanted = weight != 0
        if "paths" in objective.needs:
            wanted = wanted | packed.sampled
        heads = self._heads(packed, wanted)
        loss, metrics = objective(heads, packed)
        self.accelerator.backward(factor * loss)
        gap = _sampler_gap(heads, packed, (weight != 0) & packed.sampled) if "logprobs" in self.heads else {}
        return {"loss": float(loss.detach()), **gap, **metrics}

    def accumulate_all(self, packs: Sequence[Packed], objective: Objective) -> list[Metrics]:
        return [self.accumulate(packed, objective) for packed in packs]

    def gradient(self, packs: Sequence[Packed], objective: Objective) -> Tensor:
        for packed in packs:
            self.accumulate(packed, objective)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        found = torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, pace: float = 1.0) -> Metrics:
        rate = pace * self._rate(self.version)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if not torch.isfinite(norm):
            self.discard()
            raise AgentGymError(f"the gradient is not finite at learner step {self.version}: lower the learning rate")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        return {"gradient_norm": float(norm), "learning_rate": rate}

    def _heads(self, packed: Packed, wanted: np.ndarray[Any, Any]) -> PackedHeads:
        _within(self._window, packed)
        training = self.model.training  # an actor that shares the model has switched it off, and no layer would be checkpointed
        self.model.train(training or self.checkpointing)
        try:
            return self.view(self.model, packed, wanted)
        finally:
            self.model.train(training)

    def weights(self) -> State:
        """The model's state without the weights that do not train, by its names."""
        fixed = {name for name, weight in self.model.named_parameters(remove_duplicate=False) if not weight.requires_grad}
        return {name: weight for name, weight in self.model.state_dict().items() if name not in fixed}

    def state_dict(self) -> State:
        """What trains, and what it takes to go on to the last bit."""
        own = {"model": self.weights(), "optimizer": self.optimizer.state_dict(), "version": self.version}
        return {**own, "processes": self.accelerator.num_processes}

    def load_state_dict(self, state: State) -> None:
        self.refuse_other(state)
        self.discard()
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.version = state["version"]

    def refuse_other(self, state: State) -> None:
        """Raises `AgentGymError` for the state of another architecture or another number of processes."""
        _refuse_other_weights(self.weights(), state["model"])
        if state["processes"] != self.accelerator.num_processes:
            raise AgentGymError(
                f"the checkpoint was written by {state['processes']} processes and this run has {self.accelerator.num_processes}, "
                "whose sums round otherwise: go on with as many"
            )


class PackScorer:
    """A model that only scores packs, such as a teacher's."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self._window = _sight(self.model)

    def logprobs(self, packed: Packed) -> Tensor:
        """As the learner's."""
        return self._heads(packed).logprobs

    def at(self, packed: Packed, ids: Tensor) -> Tensor:
        """Log-probabilities of ``ids`` in place of every token, shapes (T, k) to (T, k); 0 at roots."""
        return self._heads(packed).at(ids)

    def topk(self, packed: Packed, k: int | None) -> tuple[Tensor, Tensor]:
        """The likeliest tokens in place of every token, and their log-probabilities, shapes (T, k); None is the whole vocabulary."""
        return self._heads(packed).topk(k)

    def _heads(self, packed: Packed) -> PackedHeads:
        _within(self._window, packed)
        with torch.no_grad():
            return PackedHeads(self.model, packed, np.ones(len(packed), dtype=bool))


class Frozen(PackScorer):
    """A copy of a model that only scores, such as the reference of a KL term. Weights that do not train are shared with it."""

    def __init__(self, model: Any) -> None:
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        super().__init__(copy.deepcopy(model, shared))


def _sampler_gap(heads: PackedHeads, packed: Packed, drawn: Bools) -> Metrics:
    """The mean absolute difference to the sampler's log-probabilities, in nats: on-policy, before a second update, that of two engines."""
    if not drawn.any():
        return {}
    gap = heads.logprobs.detach().double().cpu().numpy() - packed.logprobs
    return {"sampler_gap": float(np.abs(gap[drawn]).mean())}


def widen(model: Any) -> None:
    """Make float32 of what trains and has 16 bits."""
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype.itemsize == 2:
            weight.data = weight.data.float()


def _within(window: int | None, packed: Packed) -> None:
    if window is not None and packed.depth.max(initial=0) >= window:
        raise AgentGymError(
            f"a context of {packed.depth.max() + 1} tokens is longer than the model's sliding window of {window}, "
            "which the packed mask does not follow: lower the rollout's token limit"
        )


def _refuse_other_weights(own: State, saved: State) -> None:
    shapes, found = ({name: tuple(weight.shape) for name, weight in state.items()} for state in (own, saved))
    if wrong := sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)):
        sizes = [f"{len(state)} tensors of {sum(weight.numel() for weight in state.values()):,} weights" for state in (saved, own)]
        raise AgentGymError(
            f"the checkpoint is of another architecture: it has {sizes[0]}, this model trains {sizes[1]}; {wrong[0]} is "
            f"{found.get(wrong[0], 'missing')} there and {shapes.get(wrong[0], 'missing')} here. Go on with the recipe that it was made by"
        )


def _sight(model: Any, training: bool = False) -> int | None:
    """How many tokens the model's attention reaches back, None for all. Raises where packing would not be exact."""
    config = model.config.get_text_config()
    dropout = [getattr(config, "attention_dropout", 0.0) or 0.0]
    dropout += [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    if training and any(dropout):
        raise AgentGymError("the model trains with dropout, which a packed tree cannot share: call model.eval(), or set it to 0")
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        raise AgentGymError(f"attention by {kernel!r} takes no tree mask: load the model with attn_implementation='sdpa'")
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if strange:
        raise AgentGymError(f"layers of kind {sorted(strange)} carry a state from branch to branch: they cannot be packed")
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _constant(rate: float, step: int) -> float:
    return rate


def warm_up(rate: float, steps: int = 6) -> LearningRate:
    """A learning rate that rises linearly over its first ``steps`` and then stays."""
    return lambda step: rate * min(1.0, (step + 1) / steps)
