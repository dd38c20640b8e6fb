"""EffOPD: how far the way that training took leads on, tried out at steps 1, 2, 4, 8, …"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import AgentGymError
from agentgym.evaluation import evaluate
from agentgym.seeds import Lineage
from agentgym.trainers.hooks.extrapolation import Weights, extrapolate
from agentgym.trainers.seams import Metrics, State

MOVED = ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "mlp", "feed_forward", "ffn", "gate_proj", "up_proj", "down_proj")


class EffOPD:
    """After a step that is a power of two, walk on along ``weights - base`` while success on a small fixed set of tasks rises.

    ``base`` are the weights accepted at the step before at which it was tried, at first those that training begins with. The set: up to
    ``tasks`` tasks of ``split``, drawn by ``seed``, ``episodes`` of each; all candidates play the same tasks with the same seeds. Only
    weights whose name has one of `MOVED` in it move: a ``post_attention_layernorm`` does, embeddings and head do not. The optimiser's
    state stays as it is. A candidate that is no better than the last accepted is rejected. LoRA's factors are refused: their product is
    not linear in them.

    Source: Learning to Foresee, arXiv 2605.11739, by the released code [S-code]; a set of 50 [S2]; success of agents' episodes as
    score [R]. With 50 episodes near 50 % the standard error is 7 points, so that only their being paired makes the comparison fair.

    Metrics, at those steps: ``extrapolation``, the accepted multiple of ``weights - base`` (1: no further than training came);
    ``validation``, the accepted weights' success; ``validation_tokens``, sampled for it all, which no other count has.
    """

    def __init__(self, tasks: int = 50, episodes: int = 1, iterations: int = 5, split: str = "train", seed: int = 0) -> None:
        if min(tasks, episodes, iterations) < 1:
            raise AgentGymError(f"EffOPD needs tasks, episodes and iterations of at least 1, not {tasks}, {episodes} and {iterations}")
        self.tasks, self.episodes, self.iterations, self.split, self.seed = tasks, episodes, iterations, split, seed
        self.base: Weights = {}

    async def begin(self, run: Any) -> None:
        self.base = self.base or _copied(_moved(run))

    async def after_step(self, run: Any, step: int) -> Metrics:
        if not is_trigger(step):
            return {}
        with closing(run.make_env()) as env:
            chosen = env.tasks(self.split)
        chosen = Lineage.of(self.seed, "EffOPD").rng().sample(list(chosen), min(self.tasks, len(chosen)))
        tokens = 0

        async def score(weights: Weights) -> float:
            nonlocal tokens
            await self._put(run, weights)
            found, _ = await evaluate(run.make_env, run.actor, chosen, chat=run.chat, k=self.episodes, seed=self.seed, limits=run.limits)
            tokens += found.tokens
            return found.success.average.estimate

        found = await extrapolate(_copied(_moved(run)), self.base, score, self.iterations)
        await self._put(run, found.weights)
        self.base = found.weights
        return {"extrapolation": found.multiple, "validation": found.score, "validation_tokens": tokens}

    async def _put(self, run: Any, weights: Weights) -> None:
        """Into the learner, and from there to the actor, which forgets what it computed with others."""
        with torch.no_grad():
            for name, parameter in _moved(run).items():
                parameter.copy_(weights[name])
        await run.sync.push(run.learner)

    def state_dict(self) -> State:
        return {"base": dict(self.base)}

    def load_state_dict(self, state: State) -> None:
        self.base = state["base"]

    def metrics(self) -> Metrics:
        return {}


def is_trigger(step: int) -> bool:
    """Whether a step, from 1, is a power of two."""
    return step & (step - 1) == 0


def _moved(run: Any) -> dict[str, Tensor]:
    trained = run.learner.accelerator.unwrap_model(run.learner.model).named_parameters()
    found = {name: weight for name, weight in trained if weight.requires_grad and any(part in name.lower() for part in MOVED)}
    if not found:
        raise AgentGymError("EffOPD finds no weights to move: none that trains is named after attention or a feed-forward layer")
    if wrong := next((name for name in found if "lora" in name.lower()), None):
        raise AgentGymError(f"EffOPD cannot extrapolate {wrong}, a factor of a product: merge the adapters, and train whole weights")
    return found


def _copied(weights: Weights) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}
